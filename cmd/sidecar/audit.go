package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/state"
)

// auditConfig says where the audit trail goes.
type auditConfig struct {
	To   string `yaml:"to"`
	Path string `yaml:"path"`
	FHIR bool   `yaml:"fhir"`
}

func (a *auditConfig) validate(found *faultList) {
	switch {
	case a.To != "off" && a.To != "stdout" && a.To != "file":
		found.add("audit.to", " must be off, stdout or file")
	case a.To == "file" && a.Path == "":
		found.add("audit.path", " is empty")
	}
}

// auditTrail writes one line of JSON for each thing that was done.
type auditTrail struct {
	log                     *slog.Logger
	failures, eventFailures prometheus.Counter
	events                  *auditSender // nil for no AuditEvents

	mu   sync.Mutex
	out  io.Writer // nil for no lines
	file *os.File  // nil where it is none of ours
	torn bool      // the last line may not be whole
}

// open begins the trail. A file is appended to, so that what rotates it may truncate it.
func (a *auditConfig) open(log *slog.Logger) (*auditTrail, error) {
	trail := &auditTrail{log: log, failures: newAuditFailures(), eventFailures: newAuditEventFailures()}
	switch a.To {
	case "stdout":
		trail.out = os.Stdout
	case "file":
		file, err := os.OpenFile(a.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("audit: %w", err)
		}
		trail.out, trail.file = file, file
		if info, err := file.Stat(); err == nil && info.Mode().IsRegular() && info.Mode()&othersMay != 0 { // it may be so for who collects it
			log.Warn("the audit trail can be read or written by others than its owner", "mode", info.Mode().String())
		}
	}
	return trail, nil
}

func newAuditFailures() prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "sidecar", Name: "audit_failures_total", Help: "Lines of the audit trail that could not be written.",
	})
}

// kept tells whether anybody wants to know of events.
func (t *auditTrail) kept() bool { return t.out != nil || t.events != nil }

// Note writes a line. What was done is done: a line that cannot be written is logged and counted.
func (t *auditTrail) Note(ctx context.Context, event *state.Audit) {
	event.Time = time.Now().UTC()
	if t.events != nil {
		t.events.add(event)
	}
	if t.out == nil {
		return
	}
	line, err := json.Marshal(event)
	if err == nil {
		err = t.write(append(line, '\n'))
	}
	if err != nil {
		t.failures.Inc()
		t.log.ErrorContext(ctx, "audit line not written", "what", event.What, "job", event.Job, "error", err)
	}
}

func (t *auditTrail) write(line []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := t.out.Write(line)
	t.torn = err != nil && (n > 0 || t.torn)
	return err
}

// send sends AuditEvents until the function is called that it returns, which sends the last ones.
func (t *auditTrail) send(ctx context.Context) (end func()) {
	if t.events == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.events.run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (t *auditTrail) close() error {
	if t == nil || t.file == nil {
		return nil
	}
	return t.file.Close()
}
