package admin_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/proxy/admin"
)

func ask(a http.Handler, method, path string) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	a.ServeHTTP(recorder, httptest.NewRequest(method, path, nil))
	return recorder
}

func TestReadyzFollowsReadiness(t *testing.T) {
	a := admin.New(prometheus.NewRegistry())
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
	got := ask(admin.New(registry), http.MethodGet, "/metrics")
	if got.Code != http.StatusOK || !strings.Contains(got.Body.String(), "sidecar_test_total 3") {
		t.Errorf("metrics: got %d %s", got.Code, got.Body)
	}
}

func TestOtherRequestsAreRefused(t *testing.T) {
	a := admin.New(prometheus.NewRegistry())
	for target, want := range map[string]int{
		"GET /": http.StatusNotFound, "GET /fhir/$export": http.StatusNotFound, "POST /livez": http.StatusMethodNotAllowed, "HEAD /livez": http.StatusOK,
	} {
		method, path, _ := strings.Cut(target, " ")
		if got := ask(a, method, path).Code; got != want {
			t.Errorf("%s: got %d, want %d", target, got, want)
		}
	}
}
