package exporter_test

import (
	"encoding/json"
	"fmt"
	"net/http"
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

// sealing is an export that drops rows when all are read: from open spool files, from files that the bucket has already, and
// all rows of such a file.
type sealing struct {
	*bubble
	begun bool
	// passed are the events of the sealing.
	passed []string
}

func inSealing(t *testing.T, fn func(*testing.T, *sealing)) {
	t.Helper()
	small := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers = 12, 1500, 1 }
	fill := func(s *fhirtest.Server) {
		spread(t, s, "Observation", 40, 7*time.Second, time.Hour)
		spread(t, s, "Condition", 40, 7*time.Second, time.Hour)
		spread(t, s, "Patient", 9, time.Minute, time.Hour)
	}
	inBubble(t, fhirtest.HAPI(), small, fill, func(t *testing.T, b *bubble) { fn(t, &sealing{bubble: b}) })
}

// late makes writes that are stamped before the transaction time, once all rows are read.
func (s *sealing) late(t *testing.T) {
	jobs, err := s.store.List(t.Context())
	must(t, err)
	if s.begun || !jobs[0].Planned { // the probe asks for a history, too
		return
	}
	s.begun = true
	clock := s.sample.Now
	s.sample.Now = func() time.Time { return jobs[0].TransactionTime.Add(-time.Second) }
	for i := range 40 {
		if i < 14 || i%9 == 0 {
			must(t, s.sample.Delete("Condition", fmt.Sprintf("Con-%d", i)))
		}
		if i%7 == 0 {
			must(t, s.sample.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":"Obs-%d","language":"late"}`, i)))
		}
	}
	must(t, s.sample.Delete("Patient", "Pat-0"), s.sample.Delete("Patient", "Pat-5"))
	s.sample.Now = clock
}

// run makes the export. Its process is ended at events of the sealing, each given by its number after the one before.
func (s *sealing) run(t *testing.T, hard bool, deaths ...int) (rows map[string]string, rest string) {
	t.Helper()
	s.link.hook = func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/_history") {
			s.late(t)
		}
	}
	kickoff := system()
	kickoff.Since = time.Now().Add(-24 * time.Hour)
	id := ""
	for _, death := range append(deaths, 0) { // at last none
		n := 0
		reached := s.bubble.events.freezeWhen(func(name string) bool {
			if !s.begun || !strings.Contains(name, "son") || strings.HasPrefix(name, "GET") {
				return false
			}
			s.passed = append(s.passed, name[:strings.LastIndexByte(name, ' ')]+" "+name[strings.LastIndexByte(name, '/')+1:])
			n++
			return n == death
		})
		if id == "" {
			id = s.kickOff(kickoff)
		}
		if death == 0 {
			break
		}
		select {
		case <-reached:
			s.resume(hard)
		case <-time.After(10 * patience): // the export ended before
		}
	}
	job := s.finish(id)
	return s.rows(job), s.rest(t, job)
}

// rest is what else the client gets, and what lies in the bucket, in one text. The account has to agree with the files.
func (s *sealing) rest(t *testing.T, job *state.Job) string {
	t.Helper()
	files, err := s.store.Files(t.Context(), job.ID)
	must(t, err)
	counts := map[string]int64{}
	names := []string{"manifest.json"}
	for _, file := range files {
		names = append(names, file.Name)
		if file.Kind == state.Output {
			counts[file.Type] += file.Count
		}
	}
	for _, proof := range job.Proof {
		if proof.Exported != counts[proof.Type] {
			t.Errorf("the account of %s has %d resources, its files %d", proof.Type, proof.Exported, counts[proof.Type])
		}
	}
	slices.Sort(names)
	if got := s.objects(t, job); !slices.Equal(got, names) {
		t.Errorf("the bucket holds %v, want %v", got, names)
	}
	manifest := state.NewManifest(job, files, func(file state.File) string { return file.Name })
	manifest.TransactionTime = ""
	text, err := json.Marshal([]any{manifest, s.deleted(job), job.Issues})
	must(t, err)
	return string(text)
}

// Ensure an export is the undisturbed one wherever its process is ended while it seals, also twice, and although rows were
// dropped that stand in files.
func TestKilledWhileSealing(t *testing.T) {
	var rows map[string]string
	var rest string
	var passed []string
	inSealing(t, func(t *testing.T, s *sealing) {
		rows, rest = s.run(t, false)
		same(t, rows, s.snapshot())
		passed = s.passed
	})
	t.Logf("%d events: %s", len(passed), strings.Join(passed, ", "))
	for _, event := range []string{"after delete Condition", "after put Condition", "after put Patient.1", "after put OperationOutcome", "after put manifest"} {
		if !slices.ContainsFunc(passed, func(name string) bool { return strings.HasPrefix(name, event) }) {
			t.Errorf("no event is %q: the test shows less than it should", event)
		}
	}
	for at := 1; at <= len(passed); at++ {
		for name, deaths := range map[string][]int{"hard": {at}, "soft": {at}, "twice": {at, 2}} {
			t.Run(fmt.Sprintf("%s/%s", passed[at-1], name), func(t *testing.T) {
				t.Parallel()
				inSealing(t, func(t *testing.T, s *sealing) {
					gotRows, gotRest := s.run(t, name != "soft", deaths...)
					same(t, gotRows, rows)
					if gotRest != rest {
						t.Errorf("got %s\nwant %s", gotRest, rest)
					}
				})
			})
		}
	}
}

// objects are the names of what the bucket holds of a job.
func (s *sealing) objects(t *testing.T, job *state.Job) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.folder, "files", job.Folder))
	must(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
