package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/mux"
	"go.opentelemetry.io/otel/trace"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy/auth"
	"sidecar/proxy/upstream"
	"sidecar/state"
)

// DefaultLinkLifetime is how long a signed link lives.
const DefaultLinkLifetime = time.Hour

// MinLinkKey is the least length of Config.LinkKey in bytes, that of the MAC (RFC 2104, section 3).
const MinLinkKey = 32

// exports begins and ends jobs.
type exports interface {
	KickOff(ctx context.Context, kickoff state.Kickoff) (*state.Job, error)
	Cancel(ctx context.Context, id string) error
	Ready(ctx context.Context) error
	ExpiresAt(job *state.Job) time.Time
}

// jobs reads what is stored of them.
type jobs interface {
	Get(ctx context.Context, id string) (*state.Job, error)
	Slices(ctx context.Context, id string) ([]state.Slice, error)
	Files(ctx context.Context, id string) ([]state.File, error)
	File(ctx context.Context, id, name string) (state.File, error)
}

// stages tells what a job does now.
type stages interface {
	Stage(id string) string
}

// TypesOf returns the types that an export of a level may name, and those that it may name beside one of them. It fails
// where the server's FHIR release has no exports of that level.
type TypesOf func(state.Level, *fhir.CapabilityStatement) (types, beside []string, err error)

// Config is what the proxy needs.
type Config struct {
	// Upstream is the FHIR base of the server, as fhir.ParseBase returns it.
	Upstream *url.URL
	// UpstreamHost overrides the Host header of forwarded requests; empty passes the client's own.
	UpstreamHost string
	// PublicBase is the FHIR base as clients see it; nil means to take it from each request.
	PublicBase *url.URL
	// TrustedProxies are the hops whose Forwarded and X-Forwarded-* headers are believed.
	TrustedProxies []netip.Prefix
	// ForwardHeaders names the headers, beside Authorization, with which a kick-off is checked against the upstream.
	ForwardHeaders []string
	// AuthMode says who judges the clients of our routes; empty means auth.Upstream.
	AuthMode auth.Mode
	// Auth judges them in the modes auth.JWT and auth.Introspection, and is nil in the others.
	Auth auth.Authorizer
	// GroupRules say of which Groups a client may have exports, by the client's name; AnyClient has the rule for the others.
	GroupRules map[string]GroupRule
	// RequestsPerSecond is how many requests a second one client may send to our routes, in the long run; 0 bounds nothing.
	RequestsPerSecond int
	// Intercept false forwards everything, for a server that has $export itself.
	Intercept bool

	Client  *fhir.Client
	Exports exports
	Jobs    jobs
	// Stages says in a few words what a running job does, empty for nothing more than its numbers; nil means that nobody
	// knows.
	Stages stages
	Bucket blob.Bucket
	// Links says where the manifest's links lead; empty means Signed.
	Links Links
	// LinkLifetime is how long a signed link lives, to the store or to the sidecar.
	LinkLifetime time.Duration
	// LinkKey signs the links to the sidecar's own files. It has to be the same after a restart, and secret.
	LinkKey []byte
	// MaxFileBytes is the size at which exports close a file: a larger _minimumFileSize is refused. 0 means that none is.
	MaxFileBytes int64
	TypesOf      TypesOf
	// Writes notes the writes among forwarded requests; nil means that nobody asks for them.
	Writes *Writes
	// Live measures how long users wait for forwarded requests; nil means that nobody asks for it.
	Live *Live
	// UpstreamTLS are the certificates for the proxy's own transport, nil for the system's and none.
	UpstreamTLS *fhir.TLS
	// UpstreamProtocol is the version of HTTP that it speaks, empty for HTTP1.
	UpstreamProtocol fhir.Protocol
	// Transport forwards everything; nil means the proxy's own means, which are faster.
	Transport http.RoundTripper
	Log       *slog.Logger
	// AccessLog writes a line into Log for each request.
	AccessLog bool
	// RequestIDHeader is the header by which requests have an id, to the server and back; empty means that forwarded ones need none.
	RequestIDHeader string
	// Tracer begins a span for each request; nil means that nobody traces, and traceparent passes untouched.
	Tracer  trace.Tracer
	Metrics *Metrics
	// Audit keeps the audit trail of our routes; nil means that there is none.
	Audit auditor
}

// Proxy answers clients.
type Proxy struct {
	Config
	basePath string // of the upstream, decoded and without a slash at its end
	verdicts verdicts
	turns    chan struct{} // a place for each question beside users, see giveWay
	// requests are those of clients on our routes, addresses those of whom they come by, polls the status requests of jobs.
	requests, addresses, polls throttle
	forward                    http.Handler
	short                      *shortWay // nil where everything goes the long way
}

// New returns the handler for all requests of clients. It fails when a part of cfg is missing.
func New(cfg Config) (http.Handler, error) {
	if cfg.Upstream == nil || cfg.Client == nil || cfg.Exports == nil || cfg.Jobs == nil || cfg.Bucket == nil || cfg.TypesOf == nil {
		return nil, errors.New("proxy: configuration is incomplete")
	}
	if cfg.AuthMode == "" {
		cfg.AuthMode = auth.Upstream
	}
	if (cfg.Auth != nil) != (cfg.AuthMode == auth.JWT || cfg.AuthMode == auth.Introspection) {
		return nil, errors.New("proxy: who judges the clients does not fit the mode")
	}
	if len(cfg.LinkKey) < MinLinkKey {
		return nil, errors.New("proxy: the key of the links is too short")
	}
	if cfg.LinkLifetime == 0 {
		cfg.LinkLifetime = DefaultLinkLifetime
	}
	if cfg.Links == "" {
		cfg.Links = Signed
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	if cfg.Live == nil {
		cfg.Live = NewLive()
	}
	cfg.RequestIDHeader = http.CanonicalHeaderKey(cfg.RequestIDHeader)
	p := &Proxy{Config: cfg, basePath: strings.TrimRight(cfg.Upstream.EscapedPath(), "/"), turns: make(chan struct{}, turns)}
	if p.Transport == nil {
		transport := newTransport(p.UpstreamTLS)
		p.UpstreamProtocol.Apply(transport)
		p.Transport = transport
		if p.speaksHTTP1() {
			// What is left for the long way is mostly what may be sent only once.
			transport.IdleConnTimeout = upstream.FreshFor
			p.short = p.newShortWay(transport)
		}
	}
	p.forward = p.newForwarder()
	if !cfg.Intercept {
		return p.forward, nil
	}
	return &front{routes: p.routes(), forward: p.forward}, nil
}

// front answers what the routes decide, and forwards the rest.
type front struct {
	routes  *mux.Router
	forward http.Handler
}

// ServeHTTP asks the router only about paths that may be ours: to ask costs more than the test.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if mayBeOurs(r.URL.Path) {
		f.routes.ServeHTTP(w, r)
		return
	}
	f.forward.ServeHTTP(w, r)
}

// mayBeOurs tells whether a path can be one of routes: all of them have one of these marks.
func mayBeOurs(path string) bool {
	return strings.Contains(path, "$") || strings.HasSuffix(path, "/metadata")
}

// exportV4Name is the operation whose manifest has the form of the guide's version 4.
const exportV4Name = "export-v4"

// export matches the operation's name as clients write it, with or without a slash behind it.
const (
	export       = `{_:(?:\$|%24)export/?}`
	exportV4     = `{_:(?:\$|%24)` + exportV4Name + `/?}`
	exportStatus = `{_:(?:\$|%24)export-status}`
	exportFile   = `{_:(?:\$|%24)export-file}`
	exportAttach = `{_:(?:\$|%24)export-attachment}`
)

// routes decides what is ours. Paths are matched in their raw form, so that a "%2F" never becomes a separator.
func (p *Proxy) routes() *mux.Router {
	router := mux.NewRouter().SkipClean(true).UseEncodedPath()
	ours := func(path string, route route, methods map[string]http.HandlerFunc) {
		router.Path(p.basePath + path).Handler(p.methods(route, methods))
	}
	kickOff := func(level state.Level, below string) {
		as := func(shape state.Shape) http.HandlerFunc {
			return p.audited("kick-off", func(w http.ResponseWriter, r *http.Request) {
				eventOf(r).Level = level
				p.asKicker(func(w http.ResponseWriter, r *http.Request, who *asker) { p.kickOff(w, r, level, shape, who) })(w, r)
			})
		}
		ours(below+export, routeKickOff, map[string]http.HandlerFunc{http.MethodGet: as(""), http.MethodPost: as("")})
		ours(below+exportV4, routeKickOff, map[string]http.HandlerFunc{http.MethodPost: as(state.Shape4)}) // that version forbids GET
	}
	kickOff(state.System, "/")
	kickOff(state.Patient, "/Patient/")
	kickOff(state.Group, "/Group/{group:[^/]+}/")
	ours("/"+exportStatus+"/{job:[^/]+}{slash:/?}", routeStatus, map[string]http.HandlerFunc{
		http.MethodGet:    p.asOwner(p.status),
		http.MethodDelete: p.audited("cancel", p.asOwner(p.cancel)),
	})
	ours("/"+exportFile+"/{job:[^/]+}/{name:[^/]+}", routeFile, map[string]http.HandlerFunc{
		http.MethodGet:  p.audited("download", p.byLink(p.file)),
		http.MethodHead: p.audited("download", p.byLink(p.file)),
	})
	ours("/"+exportAttach+"/{job:[^/]+}/{mac:[^/]+}/{path:.+}", routeAttachment, map[string]http.HandlerFunc{
		http.MethodGet:  p.audited("attachment", p.byLink(p.attachment)),
		http.MethodHead: p.audited("attachment", p.byLink(p.attachment)),
	})
	router.Path(p.basePath+"/metadata").Methods(http.MethodGet, http.MethodHead).Handler(p.newStatementForwarder())
	router.NotFoundHandler, router.MethodNotAllowedHandler = p.forward, p.forward
	return router
}

// methods answers the methods of a path that is ours. OPTIONS belongs to the upstream, whose CORS rules hold for us too;
// the others are refused, because the server behind would not know the path.
func (p *Proxy) methods(route route, handlers map[string]http.HandlerFunc) http.Handler {
	var allow []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete} {
		if handlers[method] != nil {
			allow = append(allow, method)
		}
	}
	answer := p.own(route, func(w http.ResponseWriter, r *http.Request) {
		p.allowOrigin(w, r)
		if handler := handlers[r.Method]; handler != nil {
			handler(w, r)
			return
		}
		w.Header().Set("Allow", strings.Join(append(allow, http.MethodOptions), ", "))
		p.refuse(w, r, &refusal{http.StatusMethodNotAllowed, "not-supported", "this path takes " + strings.Join(allow, ", ") + " only"})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			p.forward.ServeHTTP(w, r)
			return
		}
		answer(w, r)
	})
}
