package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/proxy"
	"sidecar/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// completed is a job that has ended well, a minute ago.
func completed() state.Job {
	return state.Job{
		ID: "0b6a", Folder: "20211208T082800Z_0b6a", Status: state.Completed,
		Kickoff: state.Kickoff{
			Level: state.Patient, Base: "https://fhir.example.org/api/fhir",
			Request: "https://fhir.example.org/api/fhir/Patient/$export?_type=Patient,Observation&_since=2020-01-01T00:00:00Z",
		},
		TransactionTime: time.Date(2021, 12, 8, 8, 28, 7, 0, time.UTC),
		Finished:        time.Now().Add(-time.Minute),
	}
}

var twoFiles = map[string]string{"Patient": "{\"id\":\"1\"}\n{\"id\":\"2\"}\n", "Observation": "{}\n"}

func TestStatusOfARunningJob(t *testing.T) {
	for name, test := range map[string]struct {
		slices   []state.Slice
		job      state.Job
		progress string
	}{
		"accepted": {nil, state.Job{Status: state.Accepted, Accepted: time.Now()}, "0 %"},
		"settling": {nil, state.Job{Status: state.InProgress, Accepted: time.Now(), TransactionTime: time.Now()}, "0 %, waiting"},
		"half": {
			[]state.Slice{{Seq: 1, Counted: 100, Shown: 100}, {Seq: 2, Counted: 100, Shown: 7}, {Seq: 3, Counted: -1, Shown: 50}},
			state.Job{Status: state.InProgress, Accepted: time.Now()},
			"53 %, 107 of 200",
		},
		"nearly": {[]state.Slice{{Seq: 1, Counted: 10, Shown: 12}}, state.Job{Status: state.InProgress, Accepted: time.Now()}, "99 %"},
		"uncounted": {
			[]state.Slice{{Seq: 1, Counted: -1, Shown: 12}}, state.Job{Status: state.InProgress, Accepted: time.Now().Add(-time.Hour)}, "1 %",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			job := test.job
			job.ID = "j"
			if err := h.store.Create(t.Context(), &job, 1); err != nil {
				t.Fatal(err)
			}
			if test.slices != nil {
				if err := h.store.PutPlan(t.Context(), "j", test.slices, func(*state.Job) {}); err != nil {
					t.Fatal(err)
				}
			}
			got := h.ask(http.MethodGet, h.base+"/$export-status/j")
			if got.status != http.StatusAccepted || got.body != "" {
				t.Errorf("answer: got %d %q", got.status, got.body)
			}
			progress := got.header.Get("X-Progress")
			if !strings.HasPrefix(progress, test.progress) || len(progress) >= 100 {
				t.Errorf("X-Progress: got %q, want %q", progress, test.progress)
			}
			wait, err := strconv.Atoi(got.header.Get("Retry-After"))
			if want := time.Since(job.Accepted) > time.Minute; err != nil || wait < 1 || (wait == 60) != want {
				t.Errorf("Retry-After: got %q", got.header.Get("Retry-After"))
			}
		})
	}
}

// Ensure small jobs are polled each second, long ones each minute, and each by its own pace in between.
func TestRetryAfterFollowsThePace(t *testing.T) {
	for _, test := range []struct {
		elapsed time.Duration
		percent int64
		want    int
	}{
		{0, 0, 1},
		{5 * time.Second, 0, 1},
		{2 * time.Minute, 0, 12},
		{time.Hour, 0, 60},
		{time.Second, 1, 1},
		{4 * time.Second, 1, 2},
		{time.Minute, 50, 6},
		{time.Minute, 90, 1},
		{10 * time.Minute, 50, 60},
		{10 * time.Minute, 90, 6},
		{24 * time.Hour, 99, 60},
		{100 * 24 * time.Hour, 1, 60},
		{-time.Hour, 0, 1},
		{-time.Hour, 50, 1},
	} {
		if got := proxy.RetryAfter(test.elapsed, test.percent); got != test.want {
			t.Errorf("%s at %d %%: got %d, want %d", test.elapsed, test.percent, got, test.want)
		}
	}
}

// wordy is an engine that says much of what it does.
type wordy struct{}

func (wordy) Stage(string) string { return strings.Repeat("waiting ", 30) }

// Ensure X-Progress stays below the guide's 100 characters whatever the numbers and the stage, and never goes back.
func TestProgressIsShortAndNeverGoesBack(t *testing.T) {
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Stages = wordy{} })
	job := state.Job{ID: "j", Status: state.InProgress, Accepted: time.Now()}
	if err := h.store.Create(t.Context(), &job, 1); err != nil {
		t.Fatal(err)
	}
	last := -1
	poll := func() {
		t.Helper()
		progress := h.ask(http.MethodGet, h.base+"/$export-status/j").header.Get("X-Progress")
		number, _, _ := strings.Cut(progress, " %")
		percent, err := strconv.Atoi(number)
		if err != nil || percent < last || percent > 99 || len(progress) >= 100 {
			t.Errorf("X-Progress: got %q (%d characters) after %d %%", progress, len(progress), last)
		}
		last = percent
	}
	poll()
	slices := []state.Slice{{Seq: 1, Counted: 1 << 50}, {Seq: 2, Counted: 1 << 50}, {Seq: 3, Counted: -1}}
	if err := h.store.PutPlan(t.Context(), "j", slices, func(job *state.Job) { job.Planned = true }); err != nil {
		t.Fatal(err)
	}
	poll()
	for _, slice := range []state.Slice{{Seq: 1, Counted: 1 << 50, Shown: 1 << 49}, {Seq: 2, Counted: 1 << 50, Shown: 1 << 60}, {Seq: 3, Counted: -1, Shown: 7}, {Seq: 4, Counted: -1}} {
		if err := h.store.Checkpoint(t.Context(), "j", &slice); err != nil {
			t.Fatal(err)
		}
		poll()
	}
	if last != 75 {
		t.Errorf("progress at the end: got %d %%", last)
	}
}

// linkSignature is what changes in a link from one reading of a manifest to the next.
var linkSignature = regexp.MustCompile(`\?expires=\d{10}&mac=[\w-]{43}`)

func TestManifestIsTheGoldenOne(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := completed()
	h.addJob(job, map[string]string{"Patient": twoFiles["Patient"], "Observation": "{}\n", "OperationOutcome": "{}\n"})
	got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a")
	if got.status != http.StatusOK || got.header.Get("Content-Type") != "application/json" {
		t.Fatalf("answer: %d %q", got.status, got.header)
	}
	if want := job.Finished.Add(time.Hour).UTC().Format(http.TimeFormat); got.header.Get("Expires") != want {
		t.Errorf("Expires: got %q, want %q", got.header.Get("Expires"), want)
	}
	if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Length") != strconv.Itoa(len(got.body)) {
		t.Errorf("header: got %q", got.header)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(got.body), "", "  "); err != nil {
		t.Fatal(err)
	}
	pretty := linkSignature.ReplaceAllString(indented.String(), "?expires=0&mac=x") + "\n"
	golden := filepath.Join("testdata", "manifest.golden.json")
	if *update {
		if err := os.WriteFile(golden, []byte(pretty), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if pretty != string(want) {
		t.Errorf("manifest:\n got %s\nwant %s", pretty, want)
	}
}

func TestManifestOfNothingHasAllArrays(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), nil)
	got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a/")
	for _, part := range []string{`"output":[]`, `"deleted":[]`, `"error":[]`, `"requiresAccessToken":false`} {
		if !strings.Contains(got.body, part) {
			t.Errorf("manifest lacks %s: %s", part, got.body)
		}
	}
}

// signing is a bucket that gives links.
type signing struct {
	dies time.Time
	err  error
}

func (signing) Put(context.Context, string, blob.Media, io.ReadSeeker) error { return nil }

func (signing) Open(context.Context, string, int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("{}\n")), nil
}

func (s signing) SignURL(_ context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	dies := time.Now().Add(ttl)
	if !s.dies.IsZero() {
		dies = s.dies
	}
	return "https://store.example/" + name + "?sig=1", dies, s.err
}

func (signing) Delete(context.Context, string) error { return nil }

// Ensure that Expires is the end of the link that dies first: its lifetime, the signer's credential, or retention.
func TestManifestExpiresWithItsFirstLink(t *testing.T) {
	job := completed()
	retained, credential := job.Finished.Add(time.Hour), time.Now().Add(5*time.Minute)
	for name, test := range map[string]struct {
		lifetime     time.Duration
		dies, latest time.Time
	}{
		"lifetime":   {10 * time.Minute, time.Time{}, retained},
		"retention":  {10 * time.Hour, time.Time{}, retained},
		"credential": {10 * time.Hour, credential, credential},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Bucket, c.LinkLifetime = signing{dies: test.dies}, test.lifetime })
			h.addJob(job, twoFiles)
			asked := time.Now()
			got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a")
			checkExpires(t, got, asked, test.lifetime, test.latest)
			if !strings.Contains(got.body, `"https://store.example/20211208T082800Z_0b6a/Patient.1.ndjson?sig=1"`) {
				t.Errorf("manifest has no signed link: %s", got.body)
			}
		})
	}
}

func TestManifestWaitsWhileLinksCannotBeSigned(t *testing.T) {
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Bucket = signing{err: errors.New("secret key is wrong")} })
	h.addJob(completed(), twoFiles)
	got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a")
	checkOutcome(t, got, http.StatusServiceUnavailable, "transient")
	if strings.Contains(got.body, "secret") || got.header.Get("Retry-After") == "" {
		t.Errorf("answer: %q %s", got.header, got.body)
	}
}

func TestStatusOfAFailedJob(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := completed()
	job.Status, job.Failure = state.Failed, &state.Failure{Status: 500, Code: "incomplete", Text: "rows are missing"}
	h.addJob(job, twoFiles)
	checkOutcome(t, h.ask(http.MethodGet, h.base+"/$export-status/0b6a"), http.StatusInternalServerError, "incomplete")
	checkOutcome(t, h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson")), http.StatusNotFound, "not-found")
}

func TestUnknownJobsAreNotFound(t *testing.T) {
	h, sample := newFHIRHouse(t, nil)
	job := completed()
	h.addJob(job, twoFiles)
	old := completed()
	old.ID, old.Finished = "old", time.Now().Add(-2*time.Hour)
	h.addJob(old, twoFiles)
	for _, test := range []struct{ method, path string }{
		{"GET", "/$export-status/x"},
		{"DELETE", "/$export-status/x"},
		{"GET", "/$export-status/%2e%2e"},
		{"GET", "/$export-status/0b6a%2F1"},
		{"GET", "/$export-status/old"},
		{"DELETE", "/$export-status/old"},
		{"GET", strings.TrimPrefix(h.file("old", "Patient.1.ndjson"), h.base)},
		{"GET", strings.TrimPrefix(h.file("x", "Patient.1.ndjson"), h.base)},
		{"GET", strings.TrimPrefix(h.file("0b6a", "Patient.2.ndjson"), h.base)},
		{"GET", strings.TrimPrefix(h.file("0b6a", "manifest.json"), h.base)},
		{"GET", strings.TrimPrefix(h.file("0b6a", "..%2FPatient.1.ndjson"), h.base)},
		{"GET", strings.TrimPrefix(h.file("0b6a", "%2e%2e"), h.base)},
	} {
		t.Run(test.method+test.path, func(t *testing.T) {
			checkOutcome(t, h.ask(test.method, h.base+test.path), http.StatusNotFound, "not-found")
		})
	}
	if got := sample.Requests(); len(got) > 0 {
		t.Errorf("the upstream was asked: %+v", got)
	}
}

func TestDeleteEndsAJobAtOnce(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	address := h.base + "/$export-status/0b6a"
	checkOutcome(t, h.ask(http.MethodDelete, address), http.StatusAccepted, "informational")
	checkOutcome(t, h.ask(http.MethodDelete, address), http.StatusNotFound, "not-found")
	checkOutcome(t, h.ask(http.MethodGet, address), http.StatusNotFound, "not-found")
	checkOutcome(t, h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson")), http.StatusNotFound, "not-found")
}
