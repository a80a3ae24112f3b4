package exporter

import (
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/state"
)

// Metrics are the counters of the engine. Labels hold statuses and FHIR types, never ids.
type Metrics struct {
	jobs      *prometheus.CounterVec
	slices    *prometheus.CounterVec
	resources *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	upstream  *prometheus.CounterVec
	latency   *prometheus.HistogramVec
	repaired  prometheus.Counter
	late      prometheus.Counter
	proofs    *prometheus.CounterVec
	missing   *prometheus.CounterVec
	departed  *prometheus.CounterVec
	oldest    oldest
	age       prometheus.GaugeFunc
	workers   prometheus.Gauge
	slowdown  prometheus.Gauge
	bucketUp  prometheus.Gauge
	stateUp   prometheus.Gauge
}

// oldest is when the oldest running export was accepted.
type oldest struct{ unix atomic.Int64 }

// set takes the jobs of the store.
func (o *oldest) set(jobs []*state.Job) {
	first := time.Time{}
	for _, job := range jobs {
		if job.Running() && (first.IsZero() || job.Accepted.Before(first)) {
			first = job.Accepted
		}
	}
	if first.IsZero() {
		o.unix.Store(0)
		return
	}
	o.unix.Store(first.Unix())
}

func (o *oldest) seconds() float64 {
	if began := o.unix.Load(); began > 0 {
		return time.Since(time.Unix(began, 0)).Seconds()
	}
	return 0
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "sidecar", Name: name, Help: help}, labels)
	}
	m := &Metrics{
		jobs:      counter("export_jobs_total", "Jobs that reached a status.", "status"),
		slices:    counter("export_slices_total", "Slices read to their end.", "type"),
		resources: counter("export_resources_total", "Resources written to output files.", "type"),
		bytes:     counter("export_bytes_total", "Bytes of output files put into the bucket.", "type"),
		upstream:  counter("upstream_requests_total", "Requests of the exporter to the FHIR server; status 0 means no answer.", "status"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "sidecar", Name: "upstream_request_seconds", Help: "Time to the first byte of the FHIR server's answers to the exporter, by what was asked.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
		}, []string{"request"}),
		proofs:   counter("export_types_total", "Types of completed exports by the verdict of their proof.", "verdict"),
		departed: counter("export_departed_resources_total", "Resources that left a Patient's or Group's increments by an edit.", "type"),
		missing:  counter("export_missing_resources_total", "Resources that the server counted and that could not be read.", "type"),
		repaired: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "export_repaired_resources_total",
			Help: "Resources that changed before they were read and were taken from the history.",
		}),
		late: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "sidecar", Name: "export_late_writes_total",
			Help: "Resources whose write before the transaction time showed only after the settle pause, and that were replaced.",
		}),
		workers: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "sidecar", Name: "export_workers",
			Help: "Requests that exports may have under way at once, less than 1 with pauses between them; it falls when the FHIR server is overloaded or users wait longer.",
		}),
		slowdown: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "sidecar", Name: "live_slowdown",
			Help: "How many times as long users' slow requests wait while exports ask the FHIR server as while they pause; 0 before it was seen.",
		}),
		stateUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "sidecar", Name: "state_up", Help: "1 while the last test write into the state file succeeded.",
		}),
		bucketUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "sidecar", Name: "bucket_up", Help: "1 while the last test of the bucket succeeded.",
		}),
	}
	m.age = prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "sidecar", Name: "export_running_seconds", Help: "How long ago the oldest export that has not ended was accepted; 0 while none runs.",
	}, m.oldest.seconds)
	for _, status := range []state.Status{state.Accepted, state.InProgress, state.Completed, state.Failed, state.Cancelled} {
		m.jobs.WithLabelValues(string(status)) // at 0, so that the first failure is an increase
	}
	return m
}

// Collectors returns what has to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.jobs, m.slices, m.resources, m.bytes, m.upstream, m.latency, m.repaired, m.late, m.proofs, m.missing, m.departed, m.age, m.workers, m.slowdown, m.bucketUp, m.stateUp}
}

// Observe counts one request of the client; it fits fhir.Config. A refusal says nothing of how long the work takes, and is
// counted only.
func (m *Metrics) Observe(asked string, status int, took time.Duration) {
	m.upstream.WithLabelValues(strconv.Itoa(status)).Inc()
	if status == http.StatusOK {
		m.latency.WithLabelValues(asked).Observe(took.Seconds())
	}
}

// proof counts the account of one type.
func (m *Metrics) proof(p state.Proof) {
	m.proofs.WithLabelValues(string(p.Verdict)).Inc()
}
