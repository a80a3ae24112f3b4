package proxy

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// Ensure what is noted of a forwarded request costs one small allocation while nobody wants a log or a trace.
func TestExchangeIsNearlyFree(t *testing.T) {
	p := &Proxy{Config: Config{Metrics: NewMetrics(), Live: NewLive()}, basePath: "/fhir"}
	r := httptest.NewRequest(http.MethodGet, "/fhir/Patient/1", nil)
	if got := testing.AllocsPerRun(100, func() { exchanged(p, r) }); got > 1 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkExchange(b *testing.B) {
	p := &Proxy{Config: Config{Metrics: NewMetrics(), Live: NewLive()}, basePath: "/fhir"}
	r := httptest.NewRequest(http.MethodGet, "/fhir/Patient/1", nil)
	b.ReportAllocs()
	for b.Loop() {
		exchanged(p, r)
	}
}

func exchanged(p *Proxy, r *http.Request) {
	x := p.begin(r)
	x.watch(nil)
	x.answered(http.StatusOK, true)
	x.end(r.Context(), true)
}
