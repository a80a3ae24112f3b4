package proxy

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// latency is a histogram of how long requests take, by route and class of status.
type latency struct {
	*prometheus.HistogramVec
	// known are the parts of it that have been used, so that a request looks no label up.
	known [routeCount][len(classNames)]atomic.Pointer[prometheus.Observer]
}

// classNames are the classes of statuses; none is for a request that was cut off before it had one.
var classNames = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

func newLatency(name, help string) *latency {
	return &latency{HistogramVec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "sidecar", Name: name, Help: help,
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"route", "status"})}
}

func (l *latency) observe(route route, status int, took time.Duration) {
	class := status / 100
	if class >= len(classNames) {
		class = 0
	}
	known := l.known[route][class].Load()
	if known == nil {
		made := l.WithLabelValues(route.String(), classNames[class])
		known = &made
		l.known[route][class].Store(known)
	}
	(*known).Observe(took.Seconds())
}
