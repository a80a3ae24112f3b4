package exporter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// bubble is an engine inside a synctest bubble: pauses cost nothing, and the whole process can be frozen at a moment.
type bubble struct {
	*engine
	link   *wire
	events *events
	// pages are the manifest pages that clients could have read, by job and number.
	pages map[string]string
}

// inBubble runs fn on an engine in a bubble. The sample server is filled by fill, since when the bubble's clock stands
// still. Each request takes latency, so that checkpoints by time happen. The server offers few types where the personality
// names none.
func inBubble(
	t *testing.T, personality fhirtest.Personality, edit func(*exporter.Config), fill func(*fhirtest.Server), fn func(*testing.T, *bubble),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		sample := newSample(personality)
		fill(sample)
		b := &bubble{events: &events{}, pages: map[string]string{}}
		b.link = &wire{handler: sample, events: b.events, takes: latency}
		b.engine = &engine{t: t, sample: sample, upstream: "http://fhir.example/fhir", folder: t.TempDir()}
		b.edit = b.wired(edit)
		b.start()
		defer func() { b.stop() }()
		fn(t, b)
	})
}

// wired puts the exporter on the in-memory wire.
func (b *bubble) wired(edit func(*exporter.Config)) func(*exporter.Config) {
	return func(c *exporter.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: b.upstream, PublicBase: "http://public/fhir", Transport: b.link})
		if err != nil {
			b.t.Fatal(err)
		}
		c.Client, c.Settle, c.Log = client, 2*time.Second, slog.New(slog.DiscardHandler)
		c.Bucket = &slowBucket{Bucket: c.Bucket, events: b.events}
		if edit != nil {
			edit(c)
		}
	}
}

// resume goes on as another process would: after SIGTERM in the same folder, after kill -9 in what lies on the disk at
// this moment, which a copy of the folder is.
func (b *bubble) resume(hard bool) {
	b.t.Helper()
	b.lookAtPages()
	if !hard {
		b.stop()
		b.events.thaw()
		b.start()
		return
	}
	synctest.Wait()
	copied := b.t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(b.folder)); err != nil {
		b.t.Fatal(err)
	}
	b.stop()
	b.events.thaw()
	b.folder = copied
	b.start()
}

// finish waits up to two hours of the bubble's time for a job to end.
func (b *bubble) finish(id string) *state.Job {
	b.t.Helper()
	for deadline := time.Now().Add(2 * time.Hour); time.Now().Before(deadline); <-time.After(time.Second) {
		job, err := b.store.Get(b.t.Context(), id)
		if err != nil {
			b.t.Fatal(err)
		}
		if b.lookAtPages(); !job.Running() {
			return job
		}
	}
	b.t.Fatal("the export does not end")
	return nil
}

// dying makes an export whose process ends at an event, if there are as many.
func (b *bubble) dying(at int64, hard bool) *state.Job {
	b.t.Helper()
	reached := b.events.freeze(at)
	id := b.kickOff(system())
	select {
	case <-reached:
		b.resume(hard)
	case <-time.After(2 * time.Minute): // the run ended before
		b.events.thaw()
	}
	return b.finish(id)
}

// events numbers what a process does to the outside, and freezes it from one of them on.
type events struct {
	n        atomic.Int64
	freezeAt int64
	// freezeOn, when it is set, chooses instead the event to freeze at by its name: a request's method, path and query,
	// or "before put", "after put", "before delete" and "after delete" with the object's name.
	freezeOn func(name string) bool

	mu     sync.Mutex
	frozen chan struct{}
}

func (e *events) freeze(at int64) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n.Store(0)
	e.freezeAt, e.frozen = at, make(chan struct{})
	return e.frozen
}

func (e *events) thaw() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.freezeAt, e.freezeOn = 0, nil
}

// freezeWhen freezes at the first event that on chooses by its name.
func (e *events) freezeWhen(on func(name string) bool) <-chan struct{} {
	reached := e.freeze(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.freezeOn = on
	return reached
}

// pass counts an event. From the chosen one on nothing passes any more until ctx ends.
func (e *events) pass(ctx context.Context, name string) error {
	e.mu.Lock()
	n := e.n.Add(1) // under the lock, so that no number from before a freeze is taken for one behind it
	if e.freezeOn != nil && e.freezeOn(name) {
		e.freezeAt, e.freezeOn = n, nil
	}
	stop := e.freezeAt > 0 && n >= e.freezeAt
	if n == e.freezeAt {
		close(e.frozen)
	}
	e.mu.Unlock()
	if !stop {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// slowBucket makes an event of what lies before and behind each Put and each Delete.
type slowBucket struct {
	blob.Bucket
	events *events
}

func (b *slowBucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	if err := b.events.pass(ctx, "before put "+name); err != nil {
		return err
	}
	if err := b.Bucket.Put(ctx, name, media, body); err != nil {
		return err
	}
	return b.events.pass(ctx, "after put "+name)
}

func (b *slowBucket) Delete(ctx context.Context, name string) error {
	if err := b.events.pass(ctx, "before delete "+name); err != nil {
		return err
	}
	if err := b.Bucket.Delete(ctx, name); err != nil {
		return err
	}
	return b.events.pass(ctx, "after delete "+name)
}

// latency is how long a request takes in the bubble's time, unless a test says otherwise.
const latency = 300 * time.Millisecond

// thinking is how long an answer may take to begin, as with the client's own transport.
const thinking = 2 * time.Minute

// wire carries requests to a handler without a network.
type wire struct {
	handler http.Handler
	events  *events
	takes   time.Duration
	// hook sees each request before it is answered. May be nil.
	hook func(*http.Request)
}

// RoundTrip runs the handler beside the caller.
func (l *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := l.events.pass(r.Context(), r.Method+" "+r.URL.Path+"?"+r.URL.RawQuery); err != nil {
		return nil, err
	}
	select {
	case <-time.After(l.takes):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	asked := r.Clone(r.Context())
	if asked.Host = r.URL.Host; asked.Body == nil {
		asked.Body = http.NoBody
	}
	if l.hook != nil {
		l.hook(asked)
	}
	reader, writer := io.Pipe()
	answer := &wireAnswer{header: http.Header{}, body: writer, begun: make(chan int, 1)}
	go answer.serve(l.handler, asked)
	select {
	case status := <-answer.begun:
		if status == 0 {
			return nil, errors.Join(io.ErrUnexpectedEOF, reader.Close())
		}
		return &http.Response{
			StatusCode: status, Status: fmt.Sprint(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: answer.header, Body: reader, ContentLength: -1, Request: r,
		}, nil
	case <-time.After(thinking):
		return nil, errors.Join(os.ErrDeadlineExceeded, reader.Close())
	case <-r.Context().Done():
		return nil, errors.Join(r.Context().Err(), reader.Close())
	}
}

type wireAnswer struct {
	header http.Header
	body   *io.PipeWriter
	begun  chan int
	sent   bool
}

func (a *wireAnswer) serve(handler http.Handler, r *http.Request) {
	defer func() {
		fault := recover()
		if err, _ := fault.(error); fault != nil && !errors.Is(err, http.ErrAbortHandler) {
			panic(fault)
		}
		if fault == nil {
			a.WriteHeader(http.StatusOK)
			_ = a.body.Close() // a pipe's Close does not fail
			return
		}
		if !a.sent {
			a.begun <- 0
		}
		_ = a.body.CloseWithError(io.ErrUnexpectedEOF)
	}()
	handler.ServeHTTP(a, r)
}

func (a *wireAnswer) Header() http.Header { return a.header }

func (a *wireAnswer) WriteHeader(status int) {
	if !a.sent {
		a.sent = true
		a.header = a.header.Clone()
		a.begun <- status
	}
}

func (a *wireAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *wireAnswer) Flush() {}

// spread puts rows of a type whose times lie step apart and end ago before now.
func spread(t *testing.T, s *fhirtest.Server, typ string, n int, step, ago time.Duration) {
	t.Helper()
	begin := time.Now().Add(-ago - time.Duration(n)*step)
	for i := range n {
		at := begin.Add(time.Duration(i) * step)
		if err := s.PutAt(fmt.Appendf(nil, `{"resourceType":%q,"id":"%s-%d","language":"en"}`, typ, typ[:3], i), at); err != nil {
			t.Fatal(err)
		}
	}
}

// burst puts rows of a type with one lastUpdated, ago before now.
func burst(t *testing.T, s *fhirtest.Server, typ string, n int, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	for i := range n {
		if err := s.PutAt(fmt.Appendf(nil, `{"resourceType":%q,"id":"burst-%d","language":"en"}`, typ, i), at); err != nil {
			t.Fatal(err)
		}
	}
}
