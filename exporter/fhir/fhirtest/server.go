package fhirtest

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Server is one FHIR server in memory and an http.Handler. It is safe for concurrent use.
type Server struct {
	// Now is the clock that stamps lastUpdated, the Date header and the life of page links. Set it before the first use.
	Now func() time.Time
	// BeforeBodies runs, where the personality has BodiesLater, after the rows of a page were found and before their
	// bodies are loaded: a test may write here. Set it before the first use; nil does nothing.
	BeforeBodies func(*http.Request)
	// Gate says what the client of a request may read, nil where it is not let in. Set it before the first use; nil lets
	// everybody read everything.
	Gate func(*http.Request) *Access

	p      Personality
	base   string
	params *paramTable

	mu     sync.Mutex
	tables map[string]*table
	log    []*row
	// commits are all versions in the order of seq.
	commits      []*row
	keys         map[string]string
	writes       int64
	transactions int64
	late         []lateCommit
	caughtUp     int64
	random       *rand.Rand
	poisoned     map[string]bool
	inFlight     atomic.Int64
	named        int64
	listings     map[string]*listing
	listingAges  []*listing
	faults       []*Fault
	requests     []Request
}

// Request is what the server remembers of one request that reached it.
type Request struct {
	Method, Path, RawQuery string
	Header                 http.Header
	// Form is the body of a POST _search, else empty.
	Form string
}

// maxRequests bounds the memory of the request log: the oldest half goes when it is full.
const maxRequests = 50_000

// New returns an empty server below basePath ("/fhir", or "" for none). It panics when the compartment table of
// package fhir cannot be read, which is a fault of the build.
func New(p Personality, basePath string) *Server {
	params, err := loadParams()
	if err != nil {
		panic(err)
	}
	return &Server{
		Now: time.Now, p: p, base: strings.TrimSuffix(basePath, "/"), params: params,
		tables: map[string]*table{}, keys: map[string]string{}, listings: map[string]*listing{},
		random: rand.New(rand.NewPCG(p.Seed, 0x6c617465)), poisoned: map[string]bool{},
	}
}

// Resources returns the current versions of a type by id, as a read with `_pretty=false` returns them. The bytes are
// shared: callers must not change them.
func (s *Server) Resources(typ string) [][]byte {
	rows := s.living(typ, false)
	bodies := make([][]byte, len(rows))
	for i, r := range rows {
		bodies[i] = r.body
	}
	return bodies
}

// Types lists the types that have rows, sorted.
func (s *Server) Types() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var types []string
	for typ, t := range s.tables {
		for _, r := range t.current {
			if !r.deleted() {
				types = append(types, typ)
				break
			}
		}
	}
	slices.Sort(types)
	return types
}

// Requests returns the requests seen since the start or the last ResetRequests, oldest first; very old ones may be gone.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// ResetRequests forgets the requests seen so far.
func (s *Server) ResetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// call is one request with what every handler needs of it.
type call struct {
	r      *http.Request
	path   []string
	values url.Values
	base   string
	now    time.Time
	pretty bool
	// strict and lenient are what the client asks for by Prefer.
	strict, lenient bool
	// sees is Access.Sees of the client.
	sees func(typ, id string) bool
}

// ServeHTTP answers one request. A fault that cuts the body aborts the connection with http.ErrAbortHandler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(r)
	s.remember(r, form)
	w.Header().Set("Date", s.Now().UTC().Format(http.TimeFormat))
	if s.p.NoDate {
		w.Header()["Date"] = nil
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer s.leave()
	if !s.enter() {
		s.throttle(w, r)
		return
	}
	if f := s.takeFault(r); f != nil && s.breakAnswer(f, w, r, form) {
		return
	}
	s.serve(w, r, form)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, form string) {
	if err := s.route(w, r, form); err != nil {
		s.fail(w, r, err)
	}
}

// readForm reads the body of a POST _search, so that log and faults can see it too.
func readForm(r *http.Request) (string, error) {
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/_search") {
		return "", nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<22))
	if err != nil {
		return "", refuse(http.StatusBadRequest, "the form cannot be read")
	}
	if len(body) > 0 && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return "", refuse(http.StatusUnsupportedMediaType, "_search takes a form")
	}
	return string(body), nil
}

func (s *Server) remember(r *http.Request, form string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.requests) >= maxRequests {
		s.requests = slices.Clone(s.requests[maxRequests/2:])
	}
	s.requests = append(s.requests, Request{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), form})
}

// route parses what all interactions share and finds the one that is meant.
func (s *Server) route(w http.ResponseWriter, r *http.Request, form string) error {
	rest, ok := strings.CutPrefix(r.URL.Path, s.base)
	if !ok || rest != "" && rest[0] != '/' {
		return refuse(http.StatusNotFound, "outside of the FHIR base path")
	}
	if s.p.MaxURLBytes > 0 && len(r.URL.RequestURI()) > s.p.MaxURLBytes {
		return refuse(http.StatusRequestURITooLong, "the address is too long")
	}
	c := &call{r: r, base: s.linkBase(r), now: s.Now()}
	if rest = strings.Trim(rest, "/"); rest != "" {
		c.path = strings.Split(rest, "/")
	}
	if err := s.admit(w, c); err != nil {
		return err
	}
	query := r.URL.RawQuery
	if form != "" && (query == "" || !s.p.QueryBeatsForm) {
		query = strings.TrimPrefix(query+"&"+form, "&")
	}
	var err error
	if c.values, err = url.ParseQuery(query); err != nil {
		return refuse(http.StatusBadRequest, "the query cannot be parsed")
	}
	if strings.Contains(c.values.Get("_format"), "xml") {
		return refuse(http.StatusNotAcceptable, "only JSON is offered")
	}
	c.pretty = s.p.Pretty
	if v := c.values.Get("_pretty"); v != "" {
		c.pretty = v == "true"
	}
	for _, v := range r.Header.Values("Prefer") {
		c.strict = c.strict || strings.Contains(v, "handling=strict")
		c.lenient = c.lenient || strings.Contains(v, "handling=lenient")
	}
	return s.dispatch(w, c)
}

func (s *Server) dispatch(w http.ResponseWriter, c *call) error {
	read := c.r.Method == http.MethodGet || c.r.Method == http.MethodHead
	first := ""
	if len(c.path) > 0 {
		first = c.path[0]
	}
	switch {
	case first == "":
		switch {
		case c.r.Method == http.MethodPost:
			return s.bundle(w, c)
		case read && c.values.Has("_getpages") && s.p.Paging == CachedPages:
			return s.cachedPage(w, c, c.values.Get("_getpages"))
		}
		return refuse(http.StatusBadRequest, "this is the base URL of the server: a search needs a type")
	case first == "metadata" && len(c.path) == 1:
		return s.metadata(w, c, read)
	case first == "_history" && len(c.path) == 1:
		return s.history(w, c, "", "")
	case slices.ContainsFunc(c.path, func(segment string) bool { return strings.HasPrefix(segment, "$") }):
		return refuse(http.StatusBadRequest, "unknown operation")
	case !s.offers(first):
		return refuse(http.StatusNotFound, "unknown resource type")
	}
	return s.dispatchType(w, c, first, read)
}

// dispatchType finds the interaction below a type.
func (s *Server) dispatchType(w http.ResponseWriter, c *call, first string, read bool) error {
	form := len(c.path) == 2 && c.path[1] == "_search" && c.r.Method == http.MethodPost
	switch {
	case form && s.p.NoPostSearch:
		return refuse(http.StatusMethodNotAllowed, "a search by POST is not supported")
	case len(c.path) == 3 && first == "Patient" && read && s.p.Compartments != NoCompartments && s.offers(c.path[2]):
		return s.compartmentSearch(w, c, c.path[1], c.path[2])
	case len(c.path) == 1 && read, form, len(c.path) == 2 && c.path[1] == "_search" && read:
		return s.search(w, c, first)
	case len(c.path) == 1 && c.r.Method == http.MethodPost:
		return s.create(w, c)
	case len(c.path) == 2 && c.path[1] == "_history":
		return s.history(w, c, first, "")
	case len(c.path) == 3 && c.path[1] == "__page" && read && s.p.Paging == SnapshotPages:
		return s.snapshotPage(w, c, c.path[2])
	case len(c.path) == 2:
		return s.instance(w, c, read)
	case len(c.path) == 3 && c.path[2] == "_history":
		return s.history(w, c, first, c.path[1])
	case len(c.path) == 4 && c.path[2] == "_history" && read:
		return s.vread(w, c)
	}
	return refuse(http.StatusMethodNotAllowed, "no such interaction")
}

// offers says whether the type can be searched.
func (s *Server) offers(typ string) bool {
	if s.p.Types != nil {
		return slices.Contains(s.p.Types, typ)
	}
	if slices.Contains(resourceTypes, typ) {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tables[typ] != nil
}

// linkBase is the base address that links begin with.
func (s *Server) linkBase(r *http.Request) string {
	if s.p.LinkHost != "" {
		return s.p.LinkHost + s.base
	}
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if s.p.ForwardedHost {
		if v := r.Header.Get("X-Forwarded-Host"); v != "" {
			host = v
		}
		if v := r.Header.Get("X-Forwarded-Proto"); v != "" {
			scheme = v
		}
	}
	return scheme + "://" + host + s.base
}
