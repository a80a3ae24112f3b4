package exporter_test

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// with returns a personality with some habits changed.
func with(p fhirtest.Personality, edit func(*fhirtest.Personality)) fhirtest.Personality {
	edit(&p)
	return p
}

// Ensure servers that lack what the best strategy needs are still exported whole.
func TestServersThatLackSomething(t *testing.T) {
	for name, personality := range map[string]fhirtest.Personality{
		"no sort":         with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true }),
		"no lastUpdated":  with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true }),
		"no summary":      with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoSummaryCount = true }),
		"no count":        with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoSummaryCount = true }),
		"no history":      with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true }),
		"pages of seven":  with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.MaxCount = 7 }),
		"hapi of seven":   with(fhirtest.HAPI(), func(p *fhirtest.Personality) { p.MaxCount = 7 }),
		"everything lost": with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreEverything = true }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, personality, 20, nil)
			want := e.snapshot()
			if name == "no count" {
				refuseTotals(e.sample)
			}
			job := e.await(e.kickOff(system()))
			if name == "everything lost" && job.Status == state.Failed && job.Failure.Code == "incomplete" {
				return // it gives the same page for ever: refusing is right, widening would not be
			}
			same(t, e.rows(job), want)
			if name == "no count" && len(job.Issues) == 0 {
				t.Error("no remark says that completeness could not be verified")
			}
			if name == "no summary" && len(job.Issues) > 0 {
				t.Errorf("remarks %+v, although _total=accurate counts", job.Issues)
			}
		})
	}
}

// refuseTotals makes the server refuse _total=accurate.
func refuseTotals(s *fhirtest.Server) {
	s.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("_total") }, Times: -1, Status: http.StatusBadRequest})
}

// Ensure a server that ignores what it is asked never widens a Group's export.
func TestIgnoredParametersNeverWidenAGroup(t *testing.T) {
	want := cohortRows(t, startEngine(t, fhirtest.Plain(), 30, nil), "demo-group")
	for name, personality := range map[string]fhirtest.Personality{
		"lists":      with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoPatientLists = true }),
		"everything": with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreEverything = true }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, personality, 30, nil)
			job := e.await(e.kickOff(state.Kickoff{Level: state.Group, Group: "demo-group", Base: "http://public/fhir"}))
			if job.Status == state.Failed {
				return
			}
			for key := range e.rows(job) {
				if want[key] == "" {
					t.Errorf("%s is not the group's", key)
				}
			}
		})
	}
}

func cohortRows(t *testing.T, e *engine, group string) map[string]string {
	t.Helper()
	return e.rows(e.await(e.kickOff(state.Kickoff{Level: state.Group, Group: group, Base: "http://public/fhir"})))
}

// Ensure trouble that passes costs time and nothing else.
func TestPassingTroubleLosesNothing(t *testing.T) {
	for name, fault := range map[string]fhirtest.Fault{
		"429":       {Status: 429, Header: http.Header{"Retry-After": {"1"}}},
		"503":       {Status: 503},
		"500 once":  {Status: 500},
		"cut":       {CutBody: true},
		"aborted":   {CutBody: true, Chunked: true},
		"html":      {HTML: true},
		"empty 200": {Status: 200, Body: []byte(`{"resourceType":"Bundle","type":"searchset"`)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, fhirtest.HAPI(), 20, nil)
			want := e.snapshot()
			var pages atomic.Int64
			fault.Match = func(r *http.Request) bool { return isPage(r) && pages.Add(1) > 3 }
			e.sample.Fail(fault)
			same(t, e.rows(e.await(e.kickOff(system()))), want)
		})
	}
}

// Ensure expired links of the server's own pages lead to another pass, and to no loss.
func TestExpiredPageLinksAreReadAgain(t *testing.T) {
	t.Parallel()
	e := startEngine(t, with(fhirtest.HAPI(), func(p *fhirtest.Personality) { p.IgnoreSort = true }), 20, nil)
	e.sample.Fail(fhirtest.Fault{ExpirePages: http.StatusGone})
	same(t, e.rows(e.await(e.kickOff(system()))), e.snapshot())
}

// Ensure a hole fails the job, and a type that is not offered is a remark.
func TestRefusedTypes(t *testing.T) {
	for status, want := range map[int]state.Status{403: state.Failed, 404: state.Completed, 501: state.Completed} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			e := startEngine(t, fhirtest.Plain(), 5, nil)
			e.sample.Fail(fhirtest.Fault{
				Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Immunization") }, Times: -1, Status: status,
			})
			job := e.await(e.kickOff(system()))
			if job.Status != want {
				t.Fatalf("status %s, want %s: %+v", job.Status, want, job.Failure)
			}
			if want == state.Failed {
				if !strings.Contains(job.Failure.Text, "Immunization") {
					t.Errorf("the failure does not name the type: %s", job.Failure.Text)
				}
				return
			}
			files, err := e.store.Files(t.Context(), job.ID)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, file := range files {
				found = found || file.Kind == state.Error && file.Stored
			}
			if !found || len(job.Issues) != 1 {
				t.Errorf("no error file for the type: %+v", job.Issues)
			}
		})
	}
}

// Ensure a cancelled export frees its slot at once and leaves nothing behind.
func TestCancelledExportLeavesNothing(t *testing.T) {
	t.Parallel()
	e := startEngine(t, fhirtest.Plain(), 20, func(c *exporter.Config) { c.MaxFileBytes = 4 << 10 })
	reached := make(chan struct{})
	var pages atomic.Int64
	e.sample.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return isPage(r) && pages.Add(1) == 12 },
		Do:    func(*http.Request) { close(reached) }, Hang: true,
	})
	id := e.kickOff(system())
	<-reached
	if err := e.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := e.store.Get(t.Context(), id); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("after the cancellation: %v, want ErrNotFound", err)
	}
	e.sample.ClearFaults()
	next := e.kickOff(system()) // the slot is free
	e.rows(e.await(next))
	e.goneFrom(id)
}

// goneFrom waits until nothing below the folder carries the job's id.
func (e *engine) goneFrom(id string) {
	e.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		left := ""
		err := filepath.WalkDir(e.folder, func(path string, _ fs.DirEntry, err error) error {
			if strings.Contains(path, id) {
				left = path
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			e.t.Fatal(err)
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("left behind: %s", filepath.Base(left))
		}
	}
}

// Ensure files are closed by size, and that the spool is empty in the end.
func TestFilesAreClosedBySize(t *testing.T) {
	t.Parallel()
	e := startEngine(t, fhirtest.Plain(), 30, func(c *exporter.Config) { c.MaxFileBytes = 16 << 10 })
	job := e.await(e.kickOff(system()))
	same(t, e.rows(job), e.snapshot())
	files, err := e.store.Files(t.Context(), job.ID)
	if err != nil {
		t.Fatal(err)
	}
	observations := 0
	for _, file := range files {
		if file.Type == "Observation" {
			observations++
		}
	}
	if observations < 3 {
		t.Errorf("%d Observation files, want several", observations)
	}
	spool := filepath.Join(e.folder, "spool", job.ID)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if _, err := os.Stat(spool); errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the spool is still there")
		}
	}
}
