package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

const (
	// auditQueue is how many AuditEvents may wait for the FHIR server.
	auditQueue = 1000
	// auditTries is how often an AuditEvent is sent to a server that says that it is busy, auditPause how long is waited in between.
	auditTries, auditPause = 3, 2 * time.Second
	// auditGrace is how long the sidecar goes on to send at its end.
	auditGrace = 5 * time.Second
)

// auditSender posts events to the FHIR server as AuditEvents, one after another. Nobody waits for it: what the server does not take
// is counted, and so is what does not fit into the queue.
type auditSender struct {
	client   *fhir.Client
	writes   *proxy.Writes // nil where nobody asks for writes
	log      *slog.Logger
	failures prometheus.Counter
	queue    chan state.Audit
}

func newAuditSender(client *fhir.Client, writes *proxy.Writes, failures prometheus.Counter, log *slog.Logger) *auditSender {
	return &auditSender{client: client, writes: writes, log: log, failures: failures, queue: make(chan state.Audit, auditQueue)}
}

func newAuditEventFailures() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "sidecar", Name: "audit_event_failures_total", Help: "AuditEvents that the FHIR server did not get.",
	})
}

// add takes an event, or counts it where there is no room.
func (s *auditSender) add(event *state.Audit) {
	select {
	case s.queue <- *event:
	default:
		s.failures.Inc()
	}
}

// run sends until ctx is cancelled, and then what is there, for a little longer.
func (s *auditSender) run(ctx context.Context) {
	sending, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(auditGrace, end) })()
	for {
		select {
		case event := <-s.queue:
			s.send(sending, &event)
			continue
		case <-ctx.Done():
		}
		break
	}
	for {
		select {
		case event := <-s.queue:
			s.send(sending, &event)
		default:
			return
		}
	}
}

// send sends an event. Only where the server says that it did not take it now it is sent again, so that none is stored twice.
func (s *auditSender) send(ctx context.Context, event *state.Audit) {
	var err error
	for range auditTries {
		if err = s.try(ctx, event); !busy(err) {
			break
		}
		select {
		case <-time.After(auditPause):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		s.failures.Inc()
		s.log.WarnContext(ctx, "AuditEvent not stored", "what", event.What, "job", event.Job, "error", err)
	}
}

func busy(err error) bool {
	status := fhir.StatusOf(err)
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

func (s *auditSender) try(ctx context.Context, event *state.Audit) error {
	statement, err := s.client.Capabilities(ctx)
	if err != nil {
		return err
	}
	resource, err := newAuditEvent(statement.FHIRVersion, event)
	if err != nil {
		return err
	}
	if s.writes == nil {
		return s.client.Create(ctx, "AuditEvent", resource)
	}
	s.writes.Own(func() bool {
		err = s.client.Create(ctx, "AuditEvent", resource)
		status := fhir.StatusOf(err)
		return err == nil || status != 0 && status != http.StatusAccepted && status != http.StatusGatewayTimeout
	})
	return err
}
