package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/proxy/admin"
	"sidecar/state"
)

const jobID = "6d0a3c1e-2222-4333-8444-955555555555"

// stored are two exports: one that runs, and an older one that has failed.
type stored struct{ broken error }

func (s stored) List(context.Context) ([]*state.Job, error) {
	began := time.Now().Add(-10 * time.Second)
	return []*state.Job{
		{
			ID: "failed", Status: state.Failed, Accepted: began.Add(-time.Hour), Finished: began.Add(-time.Minute),
			Failure: &state.Failure{Status: 500, Code: "exception", Text: "a reason"},
		},
		{
			ID: jobID, Status: state.InProgress, Accepted: began, Types: []string{"Patient"}, Folder: "a-folder", Kickoff: state.Kickoff{
				Level: state.Patient, Since: began, Patients: []string{"patient-of-somebody"}, Request: "http://public/secret",
				Filters: []state.TypeFilter{{Type: "Patient", Query: "name=somebody"}},
			},
		},
	}, s.broken
}

func (s stored) Get(ctx context.Context, id string) (*state.Job, error) {
	all, err := s.List(ctx)
	for _, job := range all {
		if job.ID == id {
			return job, err
		}
	}
	return nil, state.ErrNotFound
}

func (s stored) Slices(_ context.Context, id string) ([]state.Slice, error) {
	if id != jobID {
		return nil, s.broken
	}
	return []state.Slice{
		{Seq: 1, Type: "Patient", Strategy: state.Keyset, Counted: 70, Met: 60, Written: 50, Boundary: []string{"patient-of-somebody"}},
		{Seq: 2, Type: "Patient", Strategy: state.Keyset, Counted: -1, Met: 40, Written: 40, Done: true},
	}, s.broken
}

func (s stored) Files(context.Context, string) ([]state.File, error) {
	return []state.File{{Name: "Patient.1.ndjson", Kind: state.Output, Count: 9, Bytes: 99, Stored: true}}, s.broken
}

// idle is the work of a process.
type idle struct{}

func (idle) Stage(string) string  { return "waiting" }
func (idle) Retries(string) int64 { return 7 }

func openJobs(s stored) *admin.Admin {
	return admin.New(admin.Config{Metrics: prometheus.NewRegistry(), Server: unasked{}, Exports: s, Work: idle{}})
}

func TestJobsAreListedNewestFirst(t *testing.T) {
	got := ask(openJobs(stored{}), http.MethodGet, "/jobs")
	var shown struct {
		Jobs []struct {
			ID, Status, Level, Stage string
			Parameters               []string
			Counted, Met, Written    int64
			PerSecond, Seconds       float64
			Retries                  int64
			Failure                  *state.Failure
		}
	}
	if err := json.Unmarshal(got.Body.Bytes(), &shown); err != nil || len(shown.Jobs) != 2 {
		t.Fatalf("%v: got %d %s", err, got.Code, got.Body)
	}
	running, failed := shown.Jobs[0], shown.Jobs[1]
	if running.ID != jobID || running.Stage != "waiting" || running.Counted != 70 || running.Met != 100 || running.Written != 90 || running.Retries != 7 {
		t.Errorf("got %+v", running)
	}
	if running.PerSecond <= 5 || running.PerSecond > 10 || !slices.Equal(running.Parameters, []string{"_since", "_typeFilter", "patient"}) {
		t.Errorf("got %+v", running)
	}
	if failed.ID != "failed" || failed.Failure == nil || failed.Failure.Text != "a reason" || failed.Seconds < 3500 || failed.Seconds > 3600 {
		t.Errorf("got %+v", failed)
	}
}

func TestOneJobIsShownInDetail(t *testing.T) {
	got := ask(openJobs(stored{}), http.MethodGet, "/jobs/"+jobID)
	var shown struct {
		ID     string
		Slices []struct {
			Seq, Counted, Met int64
			Done              bool
		}
		Files []struct {
			Name   string
			Count  int64
			Stored bool
		}
	}
	if err := json.Unmarshal(got.Body.Bytes(), &shown); err != nil || shown.ID != jobID || len(shown.Slices) != 2 || len(shown.Files) != 1 {
		t.Fatalf("%v: got %d %s", err, got.Code, got.Body)
	}
	if shown.Slices[0].Met != 60 || shown.Slices[0].Done || !shown.Slices[1].Done || !shown.Files[0].Stored || shown.Files[0].Count != 9 {
		t.Errorf("got %+v", shown)
	}
}

// Ensure no value that a client gave and no id of a resource is shown.
func TestJobsShowNobody(t *testing.T) {
	for _, path := range []string{"/jobs", "/jobs/" + jobID} {
		if got := ask(openJobs(stored{}), http.MethodGet, path).Body.String(); strings.Contains(got, "somebody") || strings.Contains(got, "secret") {
			t.Errorf("%s shows %s", path, got)
		}
	}
}

func TestJobsThatCannotBeRead(t *testing.T) {
	if got := ask(openJobs(stored{}), http.MethodGet, "/jobs/nobody"); got.Code != http.StatusNotFound {
		t.Errorf("an unknown job: got %d %s", got.Code, got.Body)
	}
	broken := openJobs(stored{errors.New("disk /var/secret")})
	for _, path := range []string{"/jobs", "/jobs/" + jobID} {
		if got := ask(broken, http.MethodGet, path); got.Code != http.StatusInternalServerError || strings.Contains(got.Body.String(), "secret") {
			t.Errorf("%s: got %d %s", path, got.Code, got.Body)
		}
	}
}
