package exporter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// objects are the names of what the folder has of a job.
func (e *engine) objects(job *state.Job) (names []string) {
	e.t.Helper()
	entries, err := os.ReadDir(filepath.Join(e.folder, "files", job.Folder))
	must(e.t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	slices.Sort(names)
	return names
}

// Ensure an export whose spool is removed at a start is made anew from then on, wherever the process was ended: it holds what the
// server has then, and no file of the first attempt is left, also where the removal itself is cut off.
func TestRemovedSpoolBeginsExportsAnew(t *testing.T) {
	edit := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers, c.RemoveSpool = 20, 1<<10, 2, true }
	nth := func(at int) func(string) bool {
		return func(string) bool { at--; return at == 0 }
	}
	ends := func(name string) func(string) bool {
		return func(event string) bool { return strings.HasSuffix(event, "/"+name) }
	}
	for name, at := range map[string]func() func(string) bool{
		"plan":     func() func(string) bool { return nth(10) },
		"crawl":    func() func(string) bool { return nth(60) },
		"files":    func() func(string) bool { return ends("Encounter.3.ndjson") },
		"manifest": func() func(string) bool { return ends("manifest.json") },
	} {
		for _, hard := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/hard=%v", name, hard), func(t *testing.T) {
				t.Parallel()
				inBubble(t, fhirtest.HAPI(), edit, killData(t), func(t *testing.T, b *bubble) {
					reached := b.events.freezeWhen(at())
					id := b.kickOff(system())
					<-reached
					before, err := b.store.Get(t.Context(), id)
					must(t, err)
					stored, err := b.store.Files(t.Context(), id)
					must(t, err)
					for n := 20; n < 90; n++ { // so that fewer files are made
						must(t, b.sample.Delete("Encounter", fmt.Sprintf("burst-%d", n)))
					}
					must(t, b.sample.Put([]byte(`{"resourceType":"Observation","id":"Obs-1","language":"later"}`)))
					want := b.snapshot()
					b.resume(hard)
					if (len(stored) > 1) != (name == "files" || name == "manifest") {
						t.Errorf("%d files of the first attempt", len(stored))
					}
					if len(stored) > 1 {
						cut := b.events.freezeWhen(func(name string) bool {
							return strings.HasPrefix(name, "after delete") && strings.HasSuffix(name, ".1.ndjson")
						})
						<-cut
						b.resume(!hard)
					}
					job := b.finish(id)
					same(t, b.rows(job), want)
					if before.Status == state.InProgress && !job.TransactionTime.After(before.TransactionTime) {
						t.Errorf("the transaction time is %s again", job.TransactionTime)
					}
					files, err := b.store.Files(t.Context(), id)
					must(t, err)
					names := []string{"manifest.json"}
					for _, file := range files {
						names = append(names, file.Name)
					}
					slices.Sort(names)
					if got := b.objects(job); !slices.Equal(got, names) {
						t.Errorf("the folder has %v, want %v", got, names)
					}
				})
			})
		}
	}
}

// Ensure an export of which a manifest was shown fails when its spool is removed, in words that say what to do: the page cannot be
// taken back.
func TestRemovedSpoolFailsExportsWithPages(t *testing.T) {
	edit := func(c *exporter.Config) {
		c.PageSize, c.MaxFileBytes, c.Workers, c.PageRows, c.RemoveSpool = 20, 2<<10, 2, 60, true
	}
	inBubble(t, fhirtest.HAPI(), edit, killData(t), func(t *testing.T, b *bubble) {
		writeBehind(t, b, 1) // which takes time, so that there are pages before the end
		b.slow()
		kickoff := system()
		kickoff.PartialManifests = true
		id := b.kickOff(kickoff)
		for {
			<-time.After(time.Second)
			job, err := b.store.Get(t.Context(), id)
			must(t, err)
			if len(job.Pages) > 0 {
				break
			}
		}
		b.resume(true)
		job := b.finish(id)
		if job.Status != state.Failed || job.Failure.Code != "transient" || !strings.Contains(job.Failure.Text, "begin the export anew") {
			t.Errorf("%s: %+v", job.Status, job.Failure)
		}
		b.link.hook = nil
		same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
	})
}
