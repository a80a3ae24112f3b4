package exporter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// begin kicks the export off.
func (s *sealing) begin(t *testing.T) (id string) {
	t.Helper()
	s.link.hook = func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/_history") {
			s.late(t)
		}
	}
	kickoff := system()
	kickoff.Since = time.Now().Add(-24 * time.Hour)
	return s.kickOff(kickoff)
}

// freezeWhen freezes the process at an event of the sealing, whose name on gets without the job's folder.
func (s *sealing) freezeWhen(on func(name string) bool) <-chan struct{} {
	return s.events.freezeWhen(func(name string) bool {
		when, object, ok := strings.Cut(name, "/")
		if !s.begun || !ok || !strings.HasSuffix(object, "json") {
			return false
		}
		name = when[:strings.LastIndexByte(when, ' ')+1] + object
		s.passed = append(s.passed, name)
		return on(name)
	})
}

func (s *sealing) freezeAt(event string) <-chan struct{} {
	return s.freezeWhen(func(name string) bool { return strings.HasPrefix(name, event) })
}

// run makes the export. Its process is ended at events of the sealing, each given by its number after the one before.
func (s *sealing) run(t *testing.T, hard bool, deaths ...int) (rows map[string]string, rest string) {
	t.Helper()
	id := ""
	for _, death := range append(deaths, 0) { // the last process lives
		n := 0
		reached := s.freezeWhen(func(string) bool {
			n++
			return n == death
		})
		if id == "" {
			id = s.begin(t)
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
	manifest := s.lines(job.Folder + "/manifest.json")
	text, err := json.Marshal([]any{manifest, s.deleted(job), job.Issues})
	must(t, err)
	return string(text)
}

// objects are the names of what the bucket holds of a job.
func (s *sealing) objects(t *testing.T, job *state.Job) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.folder, "files", job.Folder))
	if !errors.Is(err, fs.ErrNotExist) {
		must(t, err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// Ensure an export is the undisturbed one wherever its process is ended while it seals, also twice, and although rows were
// dropped that stand in files.
func TestKilledWhileSealing(t *testing.T) {
	n := 0
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
			if n++; sparse(n) {
				continue
			}
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

// Ensure nothing is left of an export that is deleted while it seals.
func TestDeletedWhileSealing(t *testing.T) {
	for _, event := range []string{
		"before delete Condition", "after delete Condition", "before put Condition.2", "after put Observation.1", "before put Patient",
		"after put Patient", "after put Bundle", "before put manifest", "after put manifest",
	} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			inSealing(t, func(t *testing.T, s *sealing) {
				reached := s.freezeAt(event)
				id := s.begin(t)
				<-reached
				job, err := s.store.Get(t.Context(), id)
				must(t, err)
				s.events.thaw() // what waits goes on waiting; what removes the export must not
				must(t, s.Cancel(t.Context(), id))
				<-time.After(5 * time.Minute)
				if objects := s.objects(t, job); len(objects) > 0 {
					t.Errorf("the bucket holds %v", objects)
				}
				if _, err := os.Stat(filepath.Join(s.folder, "spool", id)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the spool is there: %v", err)
				}
				if files, err := s.store.Files(t.Context(), id); err != nil || len(files) > 0 {
					t.Errorf("%d files are recorded: %v", len(files), err)
				}
			})
		})
	}
}

// Ensure an export outlasts a disk that is full while it seals: where a stored file is copied without its dropped rows, and
// where an open one is.
func TestDiskFullWhileSealing(t *testing.T) {
	for _, stored := range []bool{true, false} {
		t.Run(fmt.Sprintf("stored=%v", stored), func(t *testing.T) {
			t.Parallel()
			inSealing(t, func(t *testing.T, s *sealing) {
				reached := s.freezeAt("before delete Condition")
				id := s.begin(t)
				<-reached
				name := "Condition.2.ndjson.rewritten"
				if !stored {
					all, err := s.store.Slices(t.Context(), id)
					must(t, err)
					n := slices.IndexFunc(all, func(slice state.Slice) bool { return slice.Type == "Patient" && len(slice.Dropped) > 0 })
					name = fmt.Sprintf("%d.ndjson.kept", all[n].Seq)
				}
				path := filepath.Join(s.folder, "spool", id, name)
				must(t, os.Symlink("/dev/full", path))
				s.stop()
				s.events.thaw()
				s.start()
				<-time.After(10 * time.Minute)
				if job, err := s.store.Get(t.Context(), id); err != nil || job.Status != state.InProgress {
					t.Fatalf("on a full disk the export is %+v, %v", job, err)
				}
				must(t, os.Remove(path))
				job := s.finish(id)
				same(t, s.rows(job), s.snapshot())
				s.rest(t, job)
			})
		})
	}
}
