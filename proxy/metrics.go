package proxy

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/state"
)

// Metrics are the counters of the front door. No label holds a path.
type Metrics struct {
	requests *prometheus.CounterVec
	// byStatus are the counters of requests that have been used, so that a request looks no label up.
	byStatus [1000]atomic.Pointer[prometheus.Counter]
	kickOffs *prometheus.CounterVec
	cut      prometheus.Counter
	panics   prometheus.Counter
	// firstByte is of the server's answers, whole of all.
	firstByte, whole *latency
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
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "proxy_cut_answers_total", Help: "Forwarded answers that the FHIR server did not bring to their end.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "proxy_panics_total", Help: "Requests that a fault in the sidecar itself ended.",
		}),
		firstByte: newLatency("proxy_first_byte_seconds", "Time from the end of forwarded requests to the header of the FHIR server's answers, by kind of request and class of status."),
		whole:     newLatency("proxy_request_seconds", "Time to the last byte of the answers to clients, by kind of request and class of status."),
	}
	for _, level := range []state.Level{state.System, state.Patient, state.Group} {
		for _, result := range []string{"accepted", "refused"} {
			m.kickOffs.WithLabelValues(string(level), result) // at 0, so that the first one is an increase
		}
	}
	return m
}

// requested counts a forwarded request.
func (m *Metrics) requested(status int) {
	if status < 0 || status >= len(m.byStatus) {
		m.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		return
	}
	counter := m.byStatus[status].Load()
	if counter == nil {
		made := m.requests.WithLabelValues(strconv.Itoa(status))
		counter = &made
		m.byStatus[status].Store(counter)
	}
	(*counter).Inc()
}

// Collectors returns what has to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.kickOffs, m.cut, m.panics, m.firstByte, m.whole}
}
