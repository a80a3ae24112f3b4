package proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"sidecar/state"
)

// Metrics are the counters of the front door. No label holds a path.
type Metrics struct {
	requests *prometheus.CounterVec
	kickOffs *prometheus.CounterVec
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "proxy_requests_total",
			Help: "Requests forwarded to the FHIR server, and reads of attachments, by status; 499 means that the client left.",
		}, []string{"status"}),
		kickOffs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "kick_offs_total", Help: "Kick-off requests, by level and result.",
		}, []string{"level", "result"}),
	}
	for _, level := range []state.Level{state.System, state.Patient, state.Group} {
		for _, result := range []string{"accepted", "refused"} {
			m.kickOffs.WithLabelValues(string(level), result) // at 0, so that the first one is an increase
		}
	}
	return m
}

// Collectors returns what has to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.kickOffs}
}
