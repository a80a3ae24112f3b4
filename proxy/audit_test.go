package proxy_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// trail collects the events of an audit trail.
type trail chan state.Audit

// Note is the proxy's.
func (t trail) Note(_ context.Context, event *state.Audit) { t <- *event }

// faultyBucket gives files that are cut, and has a fault of the program in it for the others.
type faultyBucket struct{ blob.Bucket }

// Open is the bucket's.
func (b *faultyBucket) Open(_ context.Context, name string, _ int64) (io.ReadCloser, error) {
	if strings.Contains(name, "Observation") {
		panic(http.ErrAbortHandler) // a fault that the server's log keeps quiet about
	}
	return io.NopCloser(strings.NewReader("{")), nil
}

// Ensure each request on our routes leaves one line that says how it really ended: refused, in the middle, or before it had a
// status.
func TestAuditSaysHowRequestsEnd(t *testing.T) {
	events := trail(make(chan state.Audit, 100))
	fault := false
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if fault {
			w.Header().Set("Content-Length", "9")
			_, _ = io.WriteString(w, "cut")
			return
		}
		_, _ = io.WriteString(w, note)
	}))
	t.Cleanup(upstream.Close)
	h := newHouse(t, upstream.URL+"/fhir", func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: upstream.URL + "/fhir"})
		if err != nil {
			t.Fatal(err)
		}
		c.Audit, c.Client, c.AuthMode, c.Bucket, c.Log = events, client, auth.None, &faultyBucket{c.Bucket}, slog.New(slog.DiscardHandler)
	})
	job := completed()
	job.AttachmentKey = state.NewAttachmentKey()
	h.addJob(job, twoFiles)
	attachment := h.attachment(&job, "Binary/note")
	for _, test := range []struct {
		name, method, address string
		fault                 bool
		want                  state.Audit
	}{
		{"attachment", "GET", attachment, false, state.Audit{What: "attachment", Status: 200, Job: "0b6a", Bytes: int64(len(note))}},
		{"its head", "HEAD", attachment, false, state.Audit{What: "attachment", Status: 200, Job: "0b6a"}},
		{"another attachment", "GET", attachment + "x", false, state.Audit{What: "attachment", Status: 404, Job: "0b6a"}},
		{"cut attachment", "GET", attachment, true, state.Audit{What: "attachment", Status: 200, Job: "0b6a", Bytes: 3, Aborted: true}},
		{"cut file", "GET", h.file("0b6a", "Patient.1.ndjson"), false, state.Audit{What: "download", Status: 200, Job: "0b6a", File: "Patient.1.ndjson", Bytes: 1, Aborted: true}},
		{"fault in a download", "GET", h.file("0b6a", "Observation.1.ndjson"), false, state.Audit{What: "download", Job: "0b6a", File: "Observation.1.ndjson", Aborted: true}},
		{"dead link", "GET", h.base + "/$export-file/0b6a/Patient.1.ndjson", false, state.Audit{What: "download", Status: 403, Job: "0b6a"}},
		{"no such job", "DELETE", h.base + "/$export-status/x", false, state.Audit{What: "cancel", Status: 404}},
		{"bad parameter", "GET", h.base + "/Patient/$export?_since=x", false, state.Audit{What: "kick-off", Status: 400}},
		{"deleted", "DELETE", h.base + "/$export-status/0b6a", false, state.Audit{What: "cancel", Status: 202, Job: "0b6a"}},
	} {
		if fault = test.fault; test.want.Job != "" || test.want.What == "kick-off" {
			test.want.Level = state.Patient
		}
		request := h.request(test.method, test.address, "")
		request.Close = true // on a connection that was used, a request without an answer is sent again
		if response, err := http.DefaultTransport.RoundTrip(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body) // some are cut
			_ = response.Body.Close()
		}
		if got := unnamed(t, await(t, test.name, events)); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// unnamed is an event as each request gets it: without the id of its own.
func unnamed(t *testing.T, event state.Audit) state.Audit {
	t.Helper()
	if event.Request == "" {
		t.Errorf("%s: no id of the request", event.What)
	}
	event.Request = ""
	return event
}

// Ensure kick-offs that are refused, and a download with a token, say who came.
func TestAuditSaysWhoCame(t *testing.T) {
	events := trail(make(chan state.Audit, 100))
	h, _ := newFHIRHouse(t, func(c *proxy.Config) {
		judged(c)
		c.Audit, c.Links = events, proxy.Stream
	})
	job := completed()
	job.Kickoff.Guarded, job.Kickoff.Client = true, "client-1"
	h.addJob(job, twoFiles)
	file := h.base + "/$export-file/0b6a/Patient.1.ndjson"
	for _, test := range []struct {
		name, address, token string
		want                 state.Audit
	}{
		{"no token", h.base + "/Patient/$export", "", state.Audit{What: "kick-off", Status: 401}},
		{"narrow token", h.base + "/Patient/$export?_type=Patient,Observation", "narrow", state.Audit{What: "kick-off", Status: 403, Client: "client-1"}},
		{"download", file, "right", state.Audit{What: "download", Status: 200, Job: "0b6a", Client: "client-1", File: "Patient.1.ndjson", Bytes: int64(len(twoFiles["Patient"]))}},
		{"download of another", file, "other", state.Audit{What: "download", Status: 404, Job: "0b6a", Client: "client-2"}},
	} {
		var header []string
		if test.token != "" {
			header = []string{"Authorization", "Bearer " + test.token}
		}
		h.ask(http.MethodGet, test.address, header...)
		test.want.Level = state.Patient
		if got := unnamed(t, await(t, test.name, events)); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}
