package exporter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// deletedKind is the manifest's array of deletions.
const deletedKind state.Kind = "deleted"

// replica is what a client builds that reads a full export and then increments.
type replica map[string]string

// feed applies the files of an export: the resources of its output, and the deletions where it has some.
func (r replica) feed(e *engine, job *state.Job) {
	e.t.Helper()
	rows := e.rows(job)
	files, err := e.store.Files(e.t.Context(), job.ID)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, file := range files {
		if file.Kind != deletedKind {
			continue
		}
		lines := e.lines(job.Folder + "/" + file.Name)
		if int64(len(lines)) != file.Count || len(lines) == 0 {
			e.t.Errorf("%s: %d lines, count %d", file.Name, len(lines), file.Count)
		}
		for _, line := range lines {
			for _, key := range deletions(e.t, line) {
				if _, both := rows[key]; both {
					e.t.Errorf("%s stands in output and in deleted", key)
				}
				delete(r, key)
			}
		}
	}
	maps.Copy(r, rows)
}

// deletions are the addresses in one line of a deleted file.
func deletions(t *testing.T, line string) []string {
	t.Helper()
	var bundle struct {
		ResourceType, Type string
		Entry              []struct {
			Request struct{ Method, URL string }
		}
	}
	if err := json.Unmarshal([]byte(line), &bundle); err != nil {
		t.Fatal(err)
	}
	if bundle.ResourceType != "Bundle" || bundle.Type != "transaction" || len(bundle.Entry) == 0 {
		t.Errorf("a line of a deleted file is no transaction Bundle with entries")
	}
	var keys []string
	for _, entry := range bundle.Entry {
		if entry.Request.Method != "DELETE" || strings.Count(entry.Request.URL, "/") != 1 {
			t.Errorf("an entry of a deleted file is %s %s", entry.Request.Method, entry.Request.URL)
		}
		keys = append(keys, entry.Request.URL)
	}
	return keys
}

// chain makes a full export and increments of it, each from the transaction time of the one before, while data change,
// and calls check after each with the replica and the truth.
func chain(t *testing.T, seed uint64, p product, level state.Level, check checkLink) {
	random := rand.New(rand.NewPCG(seed, 0x636861696e))
	edit := func(c *exporter.Config) {
		c.PageSize, c.Workers, c.MaxFileBytes = 8+random.IntN(25), 1+random.IntN(4), int64(1+random.IntN(20))<<10
		if p.pause > 0 {
			c.Settle = 0 // as the probe says
		}
	}
	var w *writer
	fill := func(s *fhirtest.Server) {
		w = newWriter(t, s, rand.New(rand.NewPCG(seed, 1)), knobs{
			every: max(300*time.Millisecond, p.pause/50), burst: 8, bundles: 10, deletes: 25, returns: 10, ahead: 20, late: 20, lag: 2 * time.Second,
		})
		w.fill()
	}
	inBubble(t, p.Personality, edit, fill, func(t *testing.T, b *bubble) {
		b.link.hook = w.overtake
		defer w.start()()
		copied := replica{}
		kickoff := kickoffOf(level)
		for range 4 {
			<-time.After(time.Duration(1+random.IntN(20)) * time.Second)
			job := b.finish(b.kickOff(kickoff))
			copied.feed(b.engine, job)
			kickoff.Since = job.TransactionTime
			whole := *job
			whole.Kickoff.Since = time.Time{}
			check(t, job, copied, w.expected(t, &whole, everybody()))
		}
	})
}

// checkLink looks at what a replica holds after an export of a chain.
type checkLink func(t *testing.T, job *state.Job, got, want map[string]string)

// chains runs a test on the exact products in turn, and on each level of them, each with a check of its own.
func chains(t *testing.T, check func() checkLink) {
	runs, first := chaosRuns(t)
	t.Logf("CHAOS_SEED=%d CHAOS_RUNS=%d go test ./exporter -run %s", first, runs, t.Name())
	all := slices.DeleteFunc(products(), func(p product) bool { return p.promise != exact })
	for run := range uint64(max(1, runs/5)) { // a chain is several exports
		seed := first + run
		p := all[seed%uint64(len(all))]
		level := []state.Level{state.System, state.Patient, state.Group}[seed/uint64(len(all))%3]
		t.Run(fmt.Sprintf("%s/%s/%d", p.Name, level, seed), func(t *testing.T) {
			t.Parallel()
			chain(t, seed, p, level, check())
		})
	}
}

// Ensure a replica fed from a full export and its increments has every resource in the right version.
func TestChainOfIncrements(t *testing.T) {
	chains(t, func() checkLink {
		return func(t *testing.T, _ *state.Job, got, want map[string]string) {
			kept := maps.Clone(got)
			maps.DeleteFunc(kept, func(key, _ string) bool { _, exists := want[key]; return !exists }) // deleted since
			same(t, kept, want)
		}
	})
}

// Ensure a replica that also applies the deletions equals the server, but for what has left the export by an edit, and that
// each increment counts just that.
func TestChainWithDeletions(t *testing.T) {
	chains(t, equalButForEdits)
}

// equalButForEdits returns a check that a replica equals the server but for what has left the export by an edit, and that the
// export counts just what has left with it.
func equalButForEdits() checkLink {
	left := map[string]bool{}
	return func(t *testing.T, job *state.Job, got, want map[string]string) {
		kept, fresh := maps.Clone(got), map[string]int64{}
		maps.DeleteFunc(left, func(key string, _ bool) bool { return got[key] == "" || want[key] != "" }) // deleted, or back again
		for key := range got {
			if want[key] != "" || job.Kickoff.Level == state.System {
				continue
			}
			if delete(kept, key); !left[key] {
				left[key] = true
				typ, _, _ := strings.Cut(key, "/")
				fresh[typ]++
			}
		}
		same(t, kept, want)
		if counted := departed(job); !maps.Equal(counted, fresh) {
			t.Errorf("counted as departed %v, want %v", counted, fresh)
		}
	}
}

// departed is how many resources of each type the job's account shows to have left by an edit. It is never known of Provenance.
func departed(job *state.Job) map[string]int64 {
	counts := map[string]int64{}
	for _, proof := range job.Proof {
		if proof.Departed != 0 && proof.Type != "Provenance" {
			counts[proof.Type] = proof.Departed
		}
	}
	return counts
}
