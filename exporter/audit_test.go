package exporter_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// auditTrail keeps events.
type auditTrail struct {
	mu     sync.Mutex
	events []state.Audit
}

func (a *auditTrail) Note(_ context.Context, event *state.Audit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, *event)
}

// take returns the events since it was called last. The last may come a moment after the end of its job.
func (a *auditTrail) take() []state.Audit {
	<-time.After(time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	events := a.events
	a.events = nil
	return events
}

// checkHashes holds the hashes of a completed job against its files, of every kind.
func (e *engine) checkHashes(job *state.Job, trail *auditTrail) {
	e.t.Helper()
	files, err := e.store.Files(e.t.Context(), job.ID)
	must(e.t, err)
	want := map[string]string{}
	for _, file := range files {
		sum := sha256.Sum256([]byte(strings.Join(e.lines(job.Folder+"/"+file.Name), "\n") + "\n"))
		if want[file.Name] = hex.EncodeToString(sum[:]); file.SHA256 != want[file.Name] {
			e.t.Errorf("%s: stored is the hash %q", file.Name, file.SHA256)
		}
	}
	got := trail.take()
	if len(got) != 1 || got[0].Job != job.ID || got[0].What != "completed" || got[0].Files != len(files) || !maps.Equal(got[0].Hashes, want) || len(want) == 0 {
		e.t.Errorf("got %+v, want the hashes %v", got, want)
	}
}

// Ensure the audit line of a completed export has the hash of each file, also of deletions and of blocks, compressed or not and
// over a crash; and that none is taken where there is no audit trail.
func TestAuditHasTheHashOfEachFile(t *testing.T) {
	for name, test := range map[string]struct {
		gzip, crash bool
		organize    string
	}{"plain": {}, "crash": {crash: true}, "gzip": {gzip: true}, "organised": {organize: "Patient"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			trail := &auditTrail{}
			edit := func(c *exporter.Config) {
				smallPages(c)
				c.MaxFileBytes, c.Gzip, c.Audit = 2<<10, test.gzip, trail
			}
			inBubble(t, fhirtest.HAPI(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				kickoff := system()
				kickoff.Since, kickoff.OrganizeBy = time.Now().Add(-30*time.Hour), test.organize
				must(t, b.sample.Put([]byte(`{"resourceType":"Patient","id":"p"}`)))
				must(t, b.sample.Put([]byte(`{"resourceType":"Condition","id":"c","subject":{"reference":"Patient/p"}}`)))
				must(t, b.sample.Delete("Observation", "Obs-3"))
				reached := b.events.freezeWhen(func(event string) bool {
					return test.crash && strings.HasPrefix(event, "after put") && strings.HasSuffix(event, "ndjson")
				})
				id := b.kickOff(kickoff)
				if test.crash {
					<-reached
					b.resume(true)
				}
				job := b.finish(id)
				b.rows(job)
				b.checkHashes(job, trail)
				if test.crash {
					return
				}
				b.stop()
				b.edit = b.wired(smallPages)
				b.start()
				files, err := b.store.Files(t.Context(), b.finish(b.kickOff(kickoff)).ID)
				must(t, err)
				for _, file := range files {
					if file.SHA256 != "" {
						t.Errorf("%s has a hash that nobody wants", file.Name)
					}
				}
			})
		})
	}
}

// Ensure exports that fail, that expire and that are cancelled leave one line each, which says whose they were: of a cancelled one
// the front door notes the DELETE.
func TestAuditSaysHowExportsEnd(t *testing.T) {
	trail := &auditTrail{}
	edit := func(c *exporter.Config) { smallPages(c); c.Audit, c.Retention = trail, time.Hour }
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		kickoff := state.Kickoff{Level: state.Group, Group: "g", Types: []string{"Observation"}, Client: "warehouse", Base: "http://public/fhir", Request: "http://public/fhir/Group/g/$export"}
		hash := sha256.Sum256([]byte("g"))
		want := state.Audit{What: "failed", Status: http.StatusInternalServerError, Client: "warehouse", Level: state.Group, Group: hex.EncodeToString(hash[:])}
		must(t, b.sample.Put([]byte(`{"resourceType":"Patient","id":"p"}`)))
		must(t, b.sample.Put([]byte(`{"resourceType":"Group","id":"g","member":[{"entity":{"reference":"Patient/p"}}]}`)))
		b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Group/g") }, Status: http.StatusForbidden, Times: -1})
		job := b.finish(b.kickOff(kickoff))
		want.Job = job.ID
		if got := trail.take(); job.Status != state.Failed || !reflect.DeepEqual(got, []state.Audit{want}) {
			t.Errorf("%s: got %+v, want %+v", job.Status, got, want)
		}
		<-time.After(2 * time.Hour)
		want.What = "expired"
		if got := trail.take(); !reflect.DeepEqual(got, []state.Audit{want}) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		id := b.kickOff(system())
		<-time.After(5 * time.Second)
		must(t, b.Cancel(t.Context(), id))
		<-time.After(2 * time.Hour)
		if got := trail.take(); len(got) > 0 {
			t.Errorf("of a cancelled export: %+v", got)
		}
	})
}
