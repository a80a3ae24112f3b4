package fhir

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-resty/resty/v2"
	"go.opentelemetry.io/otel/trace"
)

const (
	// headerTimeout is how long the upstream may think about one answer.
	headerTimeout = 120 * time.Second
	// stallTimeout is how long a read of a body may stand still.
	stallTimeout = 60 * time.Second
	// smallBody bounds in bytes what is read as a whole: outcomes, statements, Groups.
	smallBody = 64 << 20
	// maxPage and maxResource are the limits of Config. A page is read whole before anything of it counts, so it has to fit
	// onto the disk; what is longer has no end, or comes of a server that ignores _count, and is asked for in smaller parts.
	// No resource of a known server gets to 1 GiB: it is what PostgreSQL takes as one value, and MongoDB takes 16 MiB.
	maxPage, maxResource = 4 << 30, 1 << 30
	// hapiMaxResults is the largest max-results that HAPI takes by default; larger values are 400.
	hapiMaxResults = 1000
	// userAgent is how the sidecar's own requests can be told from those that it forwards.
	userAgent = "fhir-bulk-sidecar"
)

// Config says where the upstream is and how the sidecar speaks to it.
type Config struct {
	// BaseURL is the FHIR base of the upstream, http or https.
	BaseURL string
	// PublicBase is the FHIR base as clients see it, empty where it is not known. The upstream is told by X-Forwarded-*
	// headers, so that its links look the same on both paths.
	PublicBase string
	// Host overrides the Host header; empty means the one of BaseURL.
	Host string
	// Credentials are the sidecar's own, nil for none. They are shown to the upstream only.
	Credentials Credentials
	// TLS are the certificates for the client's own transport, nil for the system's and none.
	TLS *TLS
	// Protocol is the version of HTTP that the client's own transport speaks, empty for HTTP1.
	Protocol Protocol
	// Transport sends the requests; nil means one of the client's own.
	Transport http.RoundTripper
	// Observe is told of each request what was asked ("search", "next", "history", "count", "read" or "clock"), the status, 0 where
	// no answer came, and how long the answer's first byte took. May be nil.
	Observe func(asked string, status int, took time.Duration)
	// Tracer begins a span for each request; nil means that nobody traces.
	Tracer trace.Tracer
	// Spill is the folder of temporary files for resources above 1 MiB, empty for the system's. A file there has no name
	// and is gone with the page.
	Spill string
	// MaxPage and MaxResource bound in bytes what a page, and a resource on it, may have; 0 means 4 GiB and 1 GiB.
	MaxPage, MaxResource int64
}

// Client searches one upstream. Its methods may be called from any goroutine. It does not repeat a failed request:
// whoever has the budget does (package exporter).
type Client struct {
	base                 *url.URL
	publicBase           string
	host                 string
	own                  Credentials
	observe              func(asked string, status int, took time.Duration)
	tracer               trace.Tracer
	rest                 *resty.Client
	creates              *resty.Client // rest, but over fresh connections alone
	spill                string
	maxPage, maxResource int64

	mu           sync.Mutex
	capabilities *CapabilityStatement
	askedAt      time.Time
	// counting and inclusive are what Adopt learned.
	counting  CountMethod
	inclusive bool
}

// NewClient returns a client for cfg, or an error when BaseURL is not an http(s) address without query.
func NewClient(cfg Config) (*Client, error) {
	base, err := ParseBase(cfg.BaseURL)
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	transport, fresh := cfg.Transport, cfg.Transport
	if transport == nil {
		transport = newTransport(base, cfg.TLS, cfg.Protocol)
		fresh = newFreshTransport(base, cfg.TLS, cfg.Protocol)
	}
	observe := cfg.Observe
	if observe == nil {
		observe = func(string, int, time.Duration) {}
	}
	own := cfg.Credentials
	if own == nil {
		own = Static{}
	}
	return &Client{
		base: base, publicBase: cfg.PublicBase, host: cfg.Host, own: own, observe: observe, tracer: cfg.Tracer, rest: newREST(transport), creates: newREST(fresh),
		spill: cfg.Spill, maxPage: cmp.Or(cfg.MaxPage, maxPage), maxResource: cmp.Or(cfg.MaxResource, maxResource),
	}, nil
}

// ParseBase reads the address of a FHIR base and takes a slash off its end.
func ParseBase(s string) (*url.URL, error) {
	base, err := url.Parse(strings.TrimRight(s, "/"))
	switch {
	case err != nil:
		return nil, errors.New("not an address")
	case base.Scheme != "http" && base.Scheme != "https":
		return nil, errors.New("address must begin with http:// or https://")
	case base.Host == "":
		return nil, errors.New("address has no host")
	case base.RawQuery != "" || base.Fragment != "":
		return nil, errors.New("address must not have a query or fragment")
	case base.User != nil:
		return nil, errors.New("address must not hold credentials: use upstream_auth")
	}
	return base, nil
}

// Base returns the upstream's FHIR base without a slash at its end.
func (c *Client) Base() string { return c.base.String() }

// Bases returns the bases on which a reference is local.
func (c *Client) Bases() []string {
	bases := []string{c.base.String()}
	if c.publicBase != "" {
		bases = append(bases, strings.TrimRight(c.publicBase, "/"))
	}
	return bases
}

// Search begins a search and returns its first page, unread. It fails with a ResponseError for any status but 200.
func (c *Client) Search(ctx context.Context, q Query) (*Page, error) {
	return c.search(ctx, c.adapt(q))
}

func (c *Client) search(ctx context.Context, q Query) (*Page, error) {
	extra, header := c.dialect(q)
	page, err := c.ask(ctx, "search", q, extra, header, c.own)
	if err == nil {
		page.filter = q.Filter
	}
	return page, err
}

// ask sends a search by GET, or by POST with nothing in the address: servers that find a query there ignore the form.
func (c *Client) ask(ctx context.Context, verb string, q Query, extra []QueryParam, header http.Header, as Credentials) (*Page, error) {
	op, values := verb+" "+q.Type, q.encode(extra...)
	sent := request{op: op, method: http.MethodGet, address: c.address(q.path(), values), header: header, as: as}
	if q.Post {
		sent.method, sent.address, sent.form = http.MethodPost, c.address(q.path()+"/_search", ""), values
	}
	body, _, err := c.send(ctx, sent)
	if err != nil {
		return nil, err
	}
	return &Page{client: c, op: op, typ: q.Type, kind: "searchset", body: body}, nil
}

// Follow reads the page behind a link that Page.Next returned.
func (c *Client) Follow(ctx context.Context, typ, kind, link string) (*Page, error) {
	header := http.Header{"Cache-Control": {"no-cache"}}
	c.strong(header)
	return c.page(ctx, "next page", typ, kind, link, header)
}

// History begins to read the history of a type, of one resource where id is not empty, or of the whole server where typ is
// empty too, newest first. since is always sent: without it HAPI cuts a history at a cached total.
func (c *Client) History(ctx context.Context, typ, id string, since time.Time, count int) (*Page, error) {
	path := "/_history"
	if typ != "" {
		path = "/" + typ + path
	}
	if id != "" {
		path = "/" + typ + "/" + url.PathEscape(id) + "/_history"
	}
	query := "_since=" + escape(FormatInstant(since)) + "&_count=" + strconv.Itoa(count)
	if c.isHAPI() {
		query += "&_pretty=false"
	}
	return c.page(ctx, "history", typ, "history", c.address(path, query), http.Header{"Cache-Control": {"no-cache"}})
}

// Read returns a resource as one compact line.
func (c *Client) Read(ctx context.Context, typ, id string) ([]byte, error) {
	return c.readAs(ctx, typ, id, "", c.own)
}

// VRead returns one version of a resource as one compact line. It fails as Read does; a version that is a deletion is 410.
func (c *Client) VRead(ctx context.Context, typ, id, version string) ([]byte, error) {
	return c.readAs(ctx, typ, id, version, c.own)
}

// readAs reads a resource, or where version is not empty that version of it.
func (c *Client) readAs(ctx context.Context, typ, id, version string, as Credentials) ([]byte, error) {
	op, path := "read "+typ, "/"+typ+"/"+url.PathEscape(id)
	if version != "" {
		path += "/_history/" + url.PathEscape(version)
	}
	body, _, err := c.small(ctx, op, c.address(path, ""), http.Header{"Cache-Control": {"no-cache"}}, as)
	if err != nil {
		return nil, err
	}
	var resource struct{ ResourceType string }
	if json.Unmarshal(body, &resource) != nil || resource.ResourceType != typ {
		return nil, fmt.Errorf("%s: not that resource: %w", op, ErrMalformed)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil {
		return nil, fmt.Errorf("%s: not JSON: %w", op, ErrMalformed)
	}
	return line.Bytes(), nil
}

func (c *Client) address(path, query string) string {
	address := c.base.String() + path
	if query != "" {
		address += "?" + query
	}
	return address
}

func (c *Client) page(ctx context.Context, verb, typ, kind, address string, header http.Header) (*Page, error) {
	op := verb + " " + typ
	body, _, err := c.get(ctx, op, address, header, c.own)
	if err != nil {
		return nil, err
	}
	return &Page{client: c, op: op, typ: typ, kind: kind, body: body}, nil
}

// small reads a whole answer of bounded size.
func (c *Client) small(ctx context.Context, op, address string, header http.Header, as Credentials) ([]byte, http.Header, error) {
	body, answer, err := c.get(ctx, op, address, header, as)
	if err != nil {
		return nil, nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(body, smallBody+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, nil, unreachable(op, err)
	}
	if len(raw) > smallBody {
		return nil, nil, fmt.Errorf("%s: answer exceeds %d bytes: %w", op, smallBody, ErrMalformed)
	}
	return raw, answer, nil
}

// request is one request to the upstream. form is the body of a POST, and as is who asks.
type request struct {
	op, method, address, form string
	media                     string // of form; empty for that of a search
	once                      bool   // sent twice it would do twice what it does
	header                    http.Header
	as                        Credentials
}

// asked is the first word of what a request is for.
func (r *request) asked() string {
	first, _, _ := strings.Cut(r.op, " ")
	return first
}

// get sends one GET and returns the body of a 200. The body's Close ends the request.
func (c *Client) get(ctx context.Context, op, address string, header http.Header, as Credentials) (io.ReadCloser, http.Header, error) {
	return c.send(ctx, request{op: op, method: http.MethodGet, address: address, header: header, as: as})
}

// send sends one request and returns the body of a 200. The body's Close ends the request.
func (c *Client) send(ctx context.Context, r request) (io.ReadCloser, http.Header, error) {
	ctx, cancel := context.WithCancel(ctx)
	r.header.Set("Accept", "application/fhir+json")
	ctx, span := c.beginSpan(ctx, &r)
	end := func() {
		cancel()
		span.End()
	}
	began := time.Now()
	response, err := c.execute(ctx, r)
	if err != nil {
		c.observe(r.asked(), 0, time.Since(began))
		answeredSpan(span, 0)
		end()
		return nil, nil, err
	}
	c.observe(r.asked(), response.StatusCode(), time.Since(began))
	answeredSpan(span, response.StatusCode())
	body := newStallReader(response.RawBody(), end)
	if response.StatusCode() != http.StatusOK {
		err := c.refusal(r.op, response, body)
		return nil, nil, errors.Join(err, body.Close())
	}
	return body, response.Header(), nil
}

// execute sends one request with the credentials of who asks, and again where the upstream does not accept them any
// longer and there are newer ones. The answer may have any status, and its body has to be closed.
func (c *Client) execute(ctx context.Context, r request) (*resty.Response, error) {
	if path, _, _ := strings.Cut(strings.TrimPrefix(r.address, c.base.String()), "?"); climbs(path) { // by an id that no resource can be read by
		return nil, &ResponseError{Op: r.op, StatusCode: http.StatusNotFound}
	}
	for refused := 0; ; refused++ {
		began := time.Now()
		credentials, err := r.as.Header(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.op, err)
		}
		rest := c.rest
		if r.once {
			rest = c.creates
		}
		sent := rest.R().SetContext(ctx).SetDoNotParseResponse(true)
		sent.Header = r.header.Clone()
		maps.Copy(sent.Header, credentials)
		sent.Header.Set("User-Agent", userAgent)
		if r.method == http.MethodPost {
			sent.SetBody(r.form)
			sent.Header.Set("Content-Type", cmp.Or(r.media, "application/x-www-form-urlencoded"))
		}
		c.forwarded(sent.Header)
		if c.host != "" {
			sent.Header.Set("Host", c.host)
		}
		response, err := sent.Execute(r.method, r.address)
		if err != nil {
			return nil, unreachable(r.op, err)
		}
		if response.StatusCode() != http.StatusUnauthorized || !r.as.Refused(ctx, credentials, refused) {
			return response, nil
		}
		c.observe(r.asked(), response.StatusCode(), time.Since(began))
		if err := response.RawBody().Close(); err != nil {
			return nil, unreachable(r.op, err)
		}
	}
}

// forwarded tells the upstream its public address, so that absolute links in resources look as on the proxied path.
func (c *Client) forwarded(header http.Header) {
	public, err := url.Parse(c.publicBase)
	if c.publicBase == "" || err != nil {
		return
	}
	header.Set("X-Forwarded-Proto", public.Scheme)
	header.Set("X-Forwarded-Host", public.Host)
	prefix, below := strings.CutSuffix(strings.TrimRight(public.Path, "/"), c.base.Path)
	if below && prefix != "" { // what the public path has in front of the upstream's own
		header.Set("X-Forwarded-Prefix", prefix)
	}
}

func (c *Client) refusal(op string, response *resty.Response, body io.Reader) error {
	raw, err := io.ReadAll(io.LimitReader(body, 1<<20))
	if err != nil { // the status is all there is to know
		raw = nil
	}
	return &ResponseError{
		Op:         op,
		StatusCode: response.StatusCode(),
		Codes:      outcomeCodes(raw),
		RetryAfter: retryAfter(response.Header(), time.Now()),
		Challenge:  response.Header().Values("WWW-Authenticate"),
	}
}

// stallReader ends a request whose body stands still.
type stallReader struct {
	body    io.ReadCloser
	timer   *time.Timer
	stalled atomic.Bool
	cancel  context.CancelFunc
}

var errStalled = errors.New("answer stands still")

func newStallReader(body io.ReadCloser, cancel context.CancelFunc) *stallReader {
	r := &stallReader{body: body, cancel: cancel}
	r.timer = time.AfterFunc(stallTimeout, func() {
		r.stalled.Store(true)
		cancel()
	})
	r.timer.Stop()
	return r
}

// Read reads and gives the body stallTimeout. Between two reads the clock stands: then it is we who are slow.
func (r *stallReader) Read(p []byte) (int, error) {
	r.timer.Reset(stallTimeout)
	n, err := r.body.Read(p)
	r.timer.Stop()
	if err != nil && r.stalled.Load() {
		err = errStalled // not the caller's cancellation, for which it would be taken
	}
	return n, err
}

// Close ends the request.
func (r *stallReader) Close() error {
	r.timer.Stop()
	err := r.body.Close()
	r.cancel()
	return err
}

// quiet keeps resty from logging: its lines hold URLs.
type quiet struct{}

func (quiet) Errorf(string, ...any) {}
func (quiet) Warnf(string, ...any)  {}
func (quiet) Debugf(string, ...any) {}
