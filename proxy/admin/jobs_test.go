package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/proxy/admin"
	"sidecar/state"
)

const jobID = "6d0a3c1e-2222-4333-8444-955555555555"

// stored are an export that runs, an older one that has failed, one before it that is complete, and one that ends meanwhile.
type stored struct{ broken error }

func (s stored) List(context.Context) ([]*state.Job, error) {
	began := time.Now().Add(-10 * time.Second)
	return []*state.Job{
		{ID: "ended", Accepted: began},
		complete(),
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
	switch id {
	case "ended":
		return nil, state.ErrNotFound
	case "complete":
		at := complete().TransactionTime
		return []state.Slice{{
			Seq: 3, Type: "Patient", Strategy: state.Keyset, From: at.Add(-3 * time.Hour), To: at, Cursor: at.Add(-time.Hour),
			Counted: 30, Met: 20, Written: 10, Done: true, Verdict: state.Proved, Holes: []state.Hole{{Type: "Patient", Rows: 1, Reason: "exception"}},
		}}, nil
	case jobID:
	default:
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

// complete is an export with all that can be known of one.
func complete() *state.Job {
	at := time.Date(2021, 12, 8, 8, 0, 0, 0, time.UTC)
	return &state.Job{
		ID: "complete", Status: state.Completed, Accepted: at, TransactionTime: at.Add(time.Second), Finished: at.Add(10 * time.Second),
		Folder: "folder", Types: []string{"Patient"},
		Issues: []state.Issue{{Severity: "warning", Code: "incomplete", Text: "a remark"}},
		Proof:  []state.Proof{{Type: "Patient", Expected: 30, Met: 20, Exported: 10, Verdict: state.Proved}},
		Kickoff: state.Kickoff{
			Level: state.Group, Group: "group-of-somebody", Since: at, Until: at, Types: []string{"Patient"}, Elements: []string{"id"},
			Filters: []state.TypeFilter{{Type: "Patient", Query: "name=somebody"}}, Patients: []string{"somebody"},
			Associated: []string{"LatestProvenanceResources"}, OrganizeBy: "Patient", PartialManifests: true, MinFileBytes: 1, MaxFileBytes: 2,
		},
	}
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
	if err := json.Unmarshal(got.Body.Bytes(), &shown); err != nil || len(shown.Jobs) != 3 {
		t.Fatalf("%v: got %d %s", err, got.Code, got.Body)
	}
	running, failed := shown.Jobs[0], shown.Jobs[1]
	if shown.Jobs[2].ID != "complete" {
		t.Errorf("the last is %+v", shown.Jobs[2])
	}
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

// Ensure all that is known of an export is shown, and nothing else.
func TestOneJobIsShownInDetail(t *testing.T) {
	const want = `{
  "id": "complete",
  "status": "completed",
  "level": "group",
  "types": ["Patient"],
  "parameters": ["_since", "_until", "_type", "_typeFilter", "_elements", "patient", "includeAssociatedData", "organizeOutputBy",
    "allowPartialManifests", "_minimumFileSize", "_maximumFileSize"],
  "folder": "folder",
  "accepted": "2021-12-08T08:00:00Z",
  "transactionTime": "2021-12-08T08:00:01Z",
  "finished": "2021-12-08T08:00:10Z",
  "stage": "waiting", "seconds": 10, "counted": 30, "met": 20, "written": 10, "perSecond": 2, "retries": 7,
  "issues": [{"severity": "warning", "code": "incomplete", "text": "a remark"}],
  "proof": [{"type": "Patient", "expected": 30, "met": 20, "exported": 10, "repaired": 0, "verdict": "proved"}],
  "slices": [{"seq": 3, "type": "Patient", "strategy": "keyset", "from": "2021-12-08T05:00:01Z", "to": "2021-12-08T08:00:01Z",
    "cursor": "2021-12-08T07:00:01Z", "counted": 30, "met": 20, "written": 10, "done": true, "verdict": "proved",
    "holes": [{"type": "Patient", "rows": 1, "reason": "exception"}]}],
  "files": [{"name": "Patient.1.ndjson", "kind": "output", "count": 9, "bytes": 99, "stored": true}]
}`
	got := ask(openJobs(stored{}), http.MethodGet, "/jobs/complete")
	var shown, wanted any
	if err := errors.Join(json.Unmarshal([]byte(want), &wanted), json.Unmarshal(got.Body.Bytes(), &shown)); err != nil {
		t.Fatalf("%v: got %d %s", err, got.Code, got.Body)
	}
	if !reflect.DeepEqual(shown, wanted) {
		t.Errorf("got %s", got.Body)
	}
}

// Ensure no value that a client gave and no id of a resource is shown.
func TestJobsShowNobody(t *testing.T) {
	for _, path := range []string{"/jobs", "/jobs/" + jobID, "/jobs/complete"} {
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
