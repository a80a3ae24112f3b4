package conformance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// suite is one run over one server.
type suite struct {
	Server
	client *http.Client
	// slots holds a place for each export that may be under way.
	slots chan struct{}

	mu     sync.Mutex
	shared map[string]*sharedExport

	burstOnce sync.Once
	theBurst  burstResult

	deletedOnce sync.Once
	theDeletion deletion

	deletionsOnce sync.Once

	partialOnce sync.Once
	thePartial  *partialRun

	failures map[string]*export // by Prefer
}

func newSuite(t *testing.T, server Server) *suite {
	s := &suite{
		Server: server, client: newClient(server), slots: make(chan struct{}, max(1, server.Parallel)),
		shared: map[string]*sharedExport{}, failures: map[string]*export{},
	}
	t.Cleanup(func() {
		for _, e := range s.shared {
			if e.export != nil {
				// What cannot be deleted is the server's to keep; rows of their own look at DELETE.
				_, _ = s.send(context.WithoutCancel(t.Context()), request{method: http.MethodDelete, url: e.export.status})
			}
		}
		s.client.CloseIdleConnections()
	})
	return s
}

// kickoff is a kick-off request. The zero one is a GET of $export.
type kickoff struct {
	base  string // of the server, where it is not Base
	path  string // "Patient/$export" for one, empty for "$export"
	query string // encoded
	body  string // of a POST
	// prefer replaces "respond-async".
	prefer string
	header http.Header
	token  string
}

func (k kickoff) request(base string) request {
	if k.path == "" {
		k.path = "$export"
	}
	if k.prefer == "" {
		k.prefer = "respond-async"
	}
	r := request{url: base + "/" + k.path, header: k.header, token: k.token}
	if r.header == nil {
		r.header = http.Header{"Accept": {fhirJSON}, "Prefer": {k.prefer}}
	}
	if k.query != "" {
		r.url += "?" + k.query
	}
	if k.body != "" {
		r.method, r.body = http.MethodPost, []byte(k.body)
		r.header.Set("Content-Type", fhirJSON)
	}
	return r
}

// parameters is the body of a POST. Each part is a name, the kind of its value and the value as JSON.
func parameters(parts ...[3]string) string {
	var list []string
	for _, part := range parts {
		list = append(list, fmt.Sprintf(`{"name":%q,%q:%s}`, part[0], "value"+part[1], part[2]))
	}
	return `{"resourceType":"Parameters","parameter":[` + strings.Join(list, ",") + `]}`
}

// query encodes pairs of names and values in their order.
func query(pairs ...string) string {
	var parts []string
	for i := 0; i < len(pairs); i += 2 {
		parts = append(parts, pairs[i]+"="+url.QueryEscape(pairs[i+1]))
	}
	return strings.Join(parts, "&")
}

// export is one export with everything that was seen of it.
type export struct {
	base     string // at which it was kicked off
	request  request
	accepted answer
	status   string // the address
	polls    []answer
	// manifest is the last answer with its fields; nil where the export failed.
	manifest *manifest
	last     answer
	// files are what the manifest lists, by url.
	files map[string]*file
	// rows are the lines of the output files by Type/id.
	rows map[string]json.RawMessage
	// twice are rows that came more than once.
	twice []string
}

// file is one file that a manifest lists.
type file struct {
	item
	answer
	lines []json.RawMessage
	err   error // of reading it
}

// begin sends a kick-off and gives the answer. One that is refused because others are under way is sent again.
func (s *suite) begin(ctx context.Context, k kickoff) (*export, error) {
	e := &export{base: cmp.Or(k.base, s.Base)}
	e.request = k.request(e.base)
	for range 30 {
		a, err := s.send(ctx, e.request)
		if err != nil {
			return nil, fmt.Errorf("kick-off: %w", err)
		}
		e.accepted, e.status = a, a.header.Get("Content-Location")
		if a.status != http.StatusTooManyRequests {
			return e, nil
		}
		if err := pause(ctx, retryAfter(a)); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// runExport makes an export and reads its files.
func (s *suite) runExport(ctx context.Context, k kickoff) (*export, error) {
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	e, err := s.begin(ctx, k)
	if err != nil {
		return nil, err
	}
	if e.accepted.status != http.StatusAccepted || e.status == "" {
		return nil, &refusal{e.accepted}
	}
	if err := s.await(ctx, e, k.token); err != nil {
		return nil, err
	}
	if e.manifest == nil {
		return e, nil
	}
	return e, s.download(ctx, e, k.token)
}

// await polls until the export has ended, as often as the server says.
func (s *suite) await(ctx context.Context, e *export, token string) error {
	deadline := time.Now().Add(10 * time.Minute)
	for time.Now().Before(deadline) {
		a, err := s.send(ctx, request{url: e.status, header: http.Header{"Accept": {"application/json"}}, token: token})
		if err != nil {
			return fmt.Errorf("status request: %w", err)
		}
		running := a.status == http.StatusAccepted || strings.HasPrefix(a.header.Get("X-Export-Status"), "202")
		if !running {
			e.last = a
			failed := a.header.Get("X-Export-Status") != "" && !strings.HasPrefix(a.header.Get("X-Export-Status"), "200")
			if a.status == http.StatusOK && !failed {
				if e.manifest, err = parseManifest(a.body); err == nil {
					err = s.follow(ctx, e.manifest, token)
				}
			}
			return err
		}
		e.polls = append(e.polls, a)
		if err := pause(ctx, retryAfter(a)); err != nil {
			return err
		}
	}
	return errors.New("the export was not complete after 10 minutes")
}

// follow adds the files of the manifests that come after the first one.
func (s *suite) follow(ctx context.Context, m *manifest, token string) error {
	for next := m.next(); next != ""; {
		a, err := s.send(ctx, request{url: next, token: token})
		if err != nil {
			return fmt.Errorf("next manifest: %w", err)
		}
		if a.status != http.StatusOK {
			return fmt.Errorf("next manifest of a complete export: status %d", a.status)
		}
		page, err := parseManifest(a.body)
		if err != nil {
			return err
		}
		m.Output, m.Deleted = append(m.Output, page.Output...), append(m.Deleted, page.Deleted...)
		next = page.next()
	}
	return nil
}

// retryAfter is how long an answer asks to wait: whole seconds or a date.
func retryAfter(a answer) time.Duration {
	value := a.header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return min(time.Minute, time.Duration(seconds)*time.Second)
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Second, min(time.Minute, time.Until(at)))
	}
	return time.Second
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// download reads every file that the manifest lists.
func (s *suite) download(ctx context.Context, e *export, token string) error {
	e.files, e.rows = map[string]*file{}, map[string]json.RawMessage{}
	for _, item := range e.manifest.all() {
		f, err := s.fetch(ctx, item, e.manifest.RequiresAccessToken, token)
		if err != nil {
			return err
		}
		e.files[item.URL] = f
	}
	for _, item := range e.manifest.Output {
		for _, line := range e.files[item.URL].lines {
			key := keyOf(line)
			if e.rows[key] != nil {
				e.twice = append(e.twice, key)
			}
			e.rows[key] = line
		}
	}
	return nil
}

// fetch reads one file. Only what has no answer is an error of its own; what is wrong with the answer is the file's.
func (s *suite) fetch(ctx context.Context, item item, needsToken bool, token string) (*file, error) {
	r := request{url: item.URL, header: http.Header{"Accept": {ndjson}}, token: token}
	if !needsToken {
		r.token = noToken
	}
	a, err := s.send(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("file: %w", err)
	}
	f := &file{item: item, answer: a}
	if a.status != http.StatusOK {
		f.err = fmt.Errorf("status %d, want 200", a.status)
		return f, nil
	}
	body, err := a.decoded()
	if err != nil {
		f.err = err
		return f, nil
	}
	f.lines, f.err = splitLines(body)
	return f, nil
}

// splitLines reads NDJSON: one JSON object a line.
func splitLines(body []byte) ([]json.RawMessage, error) {
	var lines []json.RawMessage
	for line := range bytes.Lines(body) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if !json.Valid(line) || len(line) == 0 || line[0] != '{' {
			return lines, fmt.Errorf("line %d is not a JSON object", len(lines)+1)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// hold is Server.Hold, which does nothing where the suite cannot do that.
func (c *check) hold(typ string) (release func()) {
	if c.Hold == nil {
		return func() {}
	}
	return c.Hold(typ)
}

// drop deletes an export.
func (c *check) drop(e *export) answer {
	return c.send(request{method: http.MethodDelete, url: e.status})
}

// export makes an export of the row's own, which has to succeed, and deletes it.
func (c *check) export(k kickoff) *export {
	e, err := c.runExport(c.ctx, k)
	c.must(err)
	c.drop(e)
	return c.complete(e)
}

// try sends a kick-off whose answer is what matters; an export that it began is deleted.
func (c *check) try(k kickoff) answer {
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	e, err := c.begin(c.ctx, k)
	c.must(err)
	if e.accepted.status == http.StatusAccepted && e.status != "" {
		c.drop(e)
	}
	return e.accepted
}

// sharedExport is made by the first row that asks for it.
type sharedExport struct {
	once   sync.Once
	export *export
	err    error
}

// share gives an export that several rows look at.
func (c *check) share(name string, k kickoff) *export {
	e, err := c.once(name, k)
	c.must(err)
	return c.complete(e)
}

// shareOptional gives one that a server may refuse.
func (c *check) shareOptional(name, why string, k kickoff) *export {
	e, err := c.once(name, k)
	c.orNotOffered(err, why)
	return c.complete(e)
}

func (c *check) once(name string, k kickoff) (*export, error) {
	c.mu.Lock()
	shared := c.shared[name]
	if shared == nil {
		shared = &sharedExport{}
		c.shared[name] = shared
	}
	c.mu.Unlock()
	// The row that is first may end before the others.
	ctx := context.WithoutCancel(c.ctx)
	shared.once.Do(func() { shared.export, shared.err = c.runExport(ctx, k) })
	return shared.export, shared.err
}

// ahead makes shared exports at once instead of one after another; what is wrong with them is found by who looks at them.
func (c *check) ahead(exports ...func(*check) *export) {
	var all sync.WaitGroup
	for _, of := range exports {
		own := &check{suite: c.suite, ctx: c.ctx}
		all.Go(func() { own.protect(func() { of(own) }) })
	}
	all.Wait()
}

// refusal is a kick-off that was not accepted.
type refusal struct{ answer }

func (r *refusal) Error() string {
	return fmt.Sprintf("kick-off: status %d and Content-Location %q, want 202 and an address: %s", r.status, r.header.Get("Content-Location"), r.short())
}

func asRefusal(err error) (*refusal, bool) {
	var r *refusal
	return r, errors.As(err, &r)
}

// orNotOffered ends the row where a kick-off was refused properly because of something that is optional.
func (c *check) orNotOffered(err error, why string) {
	if r, ok := asRefusal(err); ok && r.status >= 400 && r.status < 500 {
		c.refused(why, r.answer)
		c.notOffered(why)
	}
	c.must(err)
}

// optional makes an export with a parameter that a server need not have.
func (c *check) optional(parameter string, k kickoff) *export {
	e, err := c.runExport(c.ctx, k)
	c.orNotOffered(err, parameter+" is refused")
	c.drop(e)
	return c.complete(e)
}

// complete ends the row where the export has failed.
func (c *check) complete(e *export) *export {
	if e.manifest == nil {
		c.fatalf("the export failed: status %d: %s", e.last.status, e.last.short())
	}
	return e
}
