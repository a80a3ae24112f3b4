package admin_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/exporter/fhir"
	"sidecar/proxy/admin"
)

// ask is a request of a caller on the same machine.
func ask(a http.Handler, method, path string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, "http://127.0.0.1:8001"+path, nil)
	request.RemoteAddr = "127.0.0.1:50000"
	recorder := httptest.NewRecorder()
	a.ServeHTTP(recorder, request)
	return recorder
}

// open returns the admin port of a server.
func open(server interface {
	Profile(ctx context.Context) (*fhir.Profile, time.Time)
},
) *admin.Admin {
	return admin.New(admin.Config{Metrics: prometheus.NewRegistry(), Server: server})
}

// unasked is a server that nobody has asked.
type unasked struct{}

func (unasked) Profile(context.Context) (*fhir.Profile, time.Time) { return nil, time.Time{} }

// asked is a server without history.
type asked struct{}

func (asked) Profile(context.Context) (*fhir.Profile, time.Time) {
	return &fhir.Profile{
		Software: "Server 1", FHIRVersion: "4.0.1", Types: []string{"Patient"}, CountMethod: fhir.CountSummary, Counts: true,
		Remarks: []string{"a remark"},
	}, time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
}

func TestProfileShowsWhatFollows(t *testing.T) {
	if got := ask(open(unasked{}), http.MethodGet, "/profile"); got.Code != http.StatusNotFound {
		t.Errorf("before the first export: got %d", got.Code)
	}
	a := open(asked{})
	text := ask(a, http.MethodGet, "/profile")
	for _, want := range []string{"Server 1, FHIR 4.0.1, asked 2024-05-01T12:00:00Z", "by _summary=count", "deletions cannot be reported", "a remark\n"} {
		if !strings.Contains(text.Body.String(), want) || text.Code != http.StatusOK {
			t.Errorf("got %d, no %q in\n%s", text.Code, want, text.Body)
		}
	}
	request := httptest.NewRequest(http.MethodGet, "http://localhost/profile", nil)
	request.RemoteAddr = "[::1]:50000"
	request.Header.Set("Accept", "application/json")
	recorder := httptest.NewRecorder()
	a.ServeHTTP(recorder, request)
	var shown struct {
		Asked    time.Time
		Profile  fhir.Profile
		Findings []fhir.Finding
	}
	if err := json.Unmarshal(recorder.Body.Bytes(), &shown); err != nil || !shown.Profile.Counts || len(shown.Findings) < 12 || shown.Asked.Year() != 2024 {
		t.Errorf("%v: got %s", err, recorder.Body)
	}
}

func TestReadyzFollowsReadiness(t *testing.T) {
	a := open(unasked{})
	for _, ready := range []bool{false, true, false} {
		a.SetReady(ready)
		want := http.StatusServiceUnavailable
		if ready {
			want = http.StatusOK
		}
		if got := ask(a, http.MethodGet, "/readyz").Code; got != want {
			t.Errorf("ready %t: got %d, want %d", ready, got, want)
		}
		if got := ask(a, http.MethodGet, "/livez").Code; got != http.StatusOK {
			t.Errorf("ready %t: /livez: got %d", ready, got)
		}
	}
}

func TestMetricsShowsWhatIsRegistered(t *testing.T) {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "sidecar_test_total", Help: "A test."})
	registry.MustRegister(counter)
	counter.Add(3)
	got := ask(admin.New(admin.Config{Metrics: registry, Server: unasked{}}), http.MethodGet, "/metrics")
	if got.Code != http.StatusOK || !strings.Contains(got.Body.String(), "sidecar_test_total 3") {
		t.Errorf("metrics: got %d %s", got.Code, got.Body)
	}
}

func TestOtherRequestsAreRefused(t *testing.T) {
	a := open(unasked{})
	for target, want := range map[string]int{
		"GET /": http.StatusNotFound, "GET /fhir/$export": http.StatusNotFound, "POST /livez": http.StatusMethodNotAllowed, "HEAD /livez": http.StatusOK,
	} {
		method, path, _ := strings.Cut(target, " ")
		if got := ask(a, method, path).Code; got != want {
			t.Errorf("%s: got %d, want %d", target, got, want)
		}
	}
}
