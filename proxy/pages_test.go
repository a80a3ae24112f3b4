package proxy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/proxy"
	"sidecar/state"
)

// paged is a job that runs, and whose Patients can be fetched.
func paged(h *house) state.Job {
	job := completed()
	job.Status, job.Finished, job.Kickoff.PartialManifests, job.Kickoff.Base = state.InProgress, time.Time{}, true, h.base
	job.Pages = []state.Page{{Types: []string{"Patient"}, Proof: []state.Proof{{Type: "Patient", Expected: 2, Met: 2, Exported: 2, Verdict: state.Proved}}}}
	return job
}

// Ensure that clients who allow several manifests fetch what is finished while the export runs, that a page which was returned
// changes in its link alone, and that the pages are all of the export.
func TestManifestPages(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := paged(h)
	h.addJob(job, map[string]string{"Patient": twoFiles["Patient"], "Observation": "{}\n", "OperationOutcome": "{}\n"})
	address := h.base + "/$export-status/0b6a"
	poll := func(address string, status int) (answer, state.Manifest) {
		t.Helper()
		got := h.ask(http.MethodGet, address)
		if got.status != status {
			t.Fatalf("%s: got %d %s, want %d", address, got.status, got.body, status)
		}
		var m state.Manifest
		if got.body != "" && status < 300 {
			if err := json.Unmarshal([]byte(got.body), &m); err != nil {
				t.Fatal(err)
			}
		}
		return got, m
	}
	first, m := poll(address, http.StatusAccepted)
	expires, err := time.Parse(http.TimeFormat, first.header.Get("Expires"))
	if err != nil || time.Until(expires) < time.Minute || first.header.Get("Content-Type") != "application/json" || first.header.Get("X-Progress") == "" || first.header.Get("Retry-After") == "" {
		t.Errorf("header: got %q", first.header)
	}
	if len(m.Output) != 1 || m.Output[0].Type != "Patient" || m.Output[0].Extension == nil || len(m.Link)+len(m.Error) > 0 || m.Extension != nil || m.Status != "" {
		t.Fatalf("the first page is %s", first.body)
	}
	if got := h.ask(http.MethodGet, m.Output[0].URL); got.status != http.StatusOK || got.body != twoFiles["Patient"] {
		t.Errorf("the file: got %d %q", got.status, got.body)
	}
	for _, name := range []string{"Observation.1.ndjson", "OperationOutcome.1.ndjson"} {
		if got := h.ask(http.MethodGet, h.file("0b6a", name)); got.status != http.StatusNotFound {
			t.Errorf("%s is not shown yet: got %d", name, got.status)
		}
	}
	if got, _ := poll(address+"?page=2", http.StatusAccepted); got.body != "" {
		t.Errorf("a page that is not there: got %s", got.body)
	}
	for _, wrong := range []string{"0", "3", "-1", "x", "1.0"} {
		checkOutcome(t, h.ask(http.MethodGet, address+"?page="+wrong), http.StatusNotFound, "not-found")
	}

	become := func(change func(*state.Job)) {
		t.Helper()
		if err := h.store.Update(t.Context(), job.ID, func(job *state.Job) error { change(job); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	become(func(job *state.Job) { job.Pages = append(job.Pages, state.Page{Types: []string{"Observation"}}) })
	_, m = poll(address, http.StatusAccepted)
	if len(m.Link) != 1 || m.Link[0].Relation != "next" || m.Link[0].URL != address+"?page=2" {
		t.Errorf("the link is %+v", m.Link)
	}
	become(func(job *state.Job) { job.Status, job.Finished = state.Completed, time.Now() })
	next, listed := address, ""
	for number := 0; next != ""; number++ {
		got, m := poll(next, http.StatusOK)
		if next = ""; len(m.Link) == 1 {
			next = m.Link[0].URL
			m.Link = nil
		}
		if number == 0 {
			if text, err := json.Marshal(m); err != nil || string(text) != strings.TrimSpace(strings.ReplaceAll(first.body, "&", "\\u0026")) {
				t.Errorf("the first page was\n%s\nand is\n%s", first.body, text)
			}
		}
		if m.TransactionTime == "" || m.Request == "" {
			t.Errorf("page %d is %s", number+1, got.body)
		}
		for _, file := range append(m.Output, m.Error...) {
			listed += file.Type + " "
		}
	}
	if listed != "Patient Observation OperationOutcome " {
		t.Errorf("the pages list %s", listed)
	}
}

// Ensure a failure is told on every page, also the one that a client waits for, while what was shown can still be fetched.
func TestFailureAfterPages(t *testing.T) {
	for _, separate := range []bool{false, true} {
		h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Links = proxy.Stream })
		job := paged(h)
		job.Kickoff.SeparateStatus = separate
		h.addJob(job, map[string]string{"Patient": twoFiles["Patient"], "Observation": "{}\n"})
		if got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a"); separate && (got.status != http.StatusOK || got.header.Get("X-Export-Status") != "202 Accepted" || got.body == "") {
			t.Errorf("with separate-export-status: got %d %q %s", got.status, got.header, got.body)
		}
		err := h.store.Update(t.Context(), job.ID, func(job *state.Job) error {
			job.Status, job.Finished, job.Failure = state.Failed, time.Now(), &state.Failure{Status: 500, Code: "incomplete", Text: "x"}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		status := http.StatusInternalServerError
		if separate {
			status = http.StatusOK
		}
		for _, page := range []string{"", "?page=1", "?page=2"} {
			checkOutcome(t, h.ask(http.MethodGet, h.base+"/$export-status/0b6a"+page), status, "incomplete")
		}
		for name, want := range map[string]int{"Patient": http.StatusOK, "Observation": http.StatusNotFound} {
			if got := h.ask(http.MethodGet, h.file("0b6a", name+".1.ndjson")); got.status != want {
				t.Errorf("%s: got %d", name, got.status)
			}
		}
	}
}

// Ensure who did not allow several manifests gets none before the end, and one then.
func TestNoPagesWithoutThem(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a?page=1")
	if got.status != http.StatusOK || strings.Contains(got.body, `"link"`) || !strings.Contains(got.body, `"status":"completed"`) {
		t.Errorf("got %d %s", got.status, got.body)
	}
	checkOutcome(t, h.ask(http.MethodGet, h.base+"/$export-status/0b6a?page=2"), http.StatusNotFound, "not-found")
}
