package proxy_test

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/state"
)

func TestKickoffIsAcceptedAndUnderstood(t *testing.T) {
	since := time.Date(2021, 12, 8, 8, 28, 7, 0, time.UTC)
	for _, test := range []struct {
		target string
		want   state.Kickoff
	}{
		{"/$export", state.Kickoff{Level: state.System}},
		{"/$export/", state.Kickoff{Level: state.System}},
		{"/%24export?", state.Kickoff{Level: state.System}},
		{"/Patient/$export", state.Kickoff{Level: state.Patient}},
		{"/Patient/%24export/", state.Kickoff{Level: state.Patient}},
		{"/Group/demo-group/$export", state.Kickoff{Level: state.Group, Group: "demo-group"}},
		{"/Group/demo%2Dgroup/$export", state.Kickoff{Level: state.Group, Group: "demo-group"}},
		{"/$export?_outputFormat=application/fhir%2Bndjson", state.Kickoff{Level: state.System}},
		{"/$export?_outputFormat=application/fhir+ndjson", state.Kickoff{Level: state.System}},
		{"/$export?_outputFormat=application%2Fndjson", state.Kickoff{Level: state.System}},
		{"/$export?_outputFormat=ndjson", state.Kickoff{Level: state.System}},
		{"/$export?_type=Patient", state.Kickoff{Level: state.System, Types: []string{"Patient"}}},
		{"/$export?_type=Patient,Observation&_type=Condition,Patient", state.Kickoff{Level: state.System, Types: []string{"Condition", "Observation", "Patient"}}},
		{"/$export?_type=Patient%2CObservation", state.Kickoff{Level: state.System, Types: []string{"Observation", "Patient"}}},
		{"/$export?_elements=id,Patient.name&_elements=Observation.value[x],id", state.Kickoff{Level: state.System, Elements: []string{"id", "Patient.name", "Observation.value[x]"}}},
		{"/$export?_since=2021-12-08", state.Kickoff{Level: state.System, Since: since.Truncate(24 * time.Hour)}},
		{"/$export?_since=2021-12", state.Kickoff{Level: state.System, Since: time.Date(2021, 12, 1, 0, 0, 0, 0, time.UTC)}},
		{"/$export?_since=2021", state.Kickoff{Level: state.System, Since: time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)}},
		{"/$export?_since=2021-12-08T08:28:07Z", state.Kickoff{Level: state.System, Since: since}},
		{"/$export?_since=2021-12-08T10:28:07.000%2B02:00", state.Kickoff{Level: state.System, Since: since}},
		{"/$export?_since=2021-12-08T10:28:07+02:00", state.Kickoff{Level: state.System, Since: since}},
		{"/$export?_since=2021-12-08T06:28:07.5-02:00", state.Kickoff{Level: state.System, Since: since.Add(time.Second / 2)}},
	} {
		t.Run(test.target, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			got := h.ask(http.MethodGet, h.base+test.target, "Prefer", "respond-async", "Accept", "application/fhir+json")
			if got.status != http.StatusAccepted {
				t.Fatalf("status: got %d, want 202: %s", got.status, got.body)
			}
			if location := got.header.Get("Content-Location"); location != h.base+"/$export-status/job-1" {
				t.Errorf("Content-Location: got %q", location)
			}
			asked := h.exports.asked[0]
			want := test.want
			want.Base, want.Request = h.base, h.base+strings.TrimSuffix(test.target, "?")
			if fmt.Sprintf("%+v", asked) != fmt.Sprintf("%+v", want) {
				t.Errorf("kick-off:\n got %+v\nwant %+v", asked, want)
			}
			if poll := h.ask(http.MethodGet, got.header.Get("Content-Location")); poll.status != http.StatusAccepted {
				t.Errorf("status request at once: got %d", poll.status)
			}
		})
	}
}

// Ensure that the operation's name chooses the form of the manifest, at each level.
func TestKickoffByTheNameOfVersion4(t *testing.T) {
	for _, test := range []struct {
		target string
		want   state.Shape
	}{
		{"/$export-v4", state.Shape4},
		{"/Patient/%24export-v4/", state.Shape4},
		{"/Group/demo-group/$export-v4?_type=Patient", state.Shape4},
		{"/Group/demo-group/$export?_type=Patient", ""}, // what is configured
	} {
		h, _ := newFHIRHouse(t, nil)
		if got := h.ask(http.MethodPost, h.base+test.target); got.status != http.StatusAccepted {
			t.Fatalf("%s: got %d: %s", test.target, got.status, got.body)
		}
		if asked := h.exports.asked[0]; asked.Shape != test.want {
			t.Errorf("%s: shape %q, want %q", test.target, asked.Shape, test.want)
		}
	}
}

func TestKickoffRefusesWhatItCannotHonour(t *testing.T) {
	h, sample := newFHIRHouse(t, nil)
	characteristic := `{"resourceType":"Group","id":"by-trait","type":"person","actual":false,"characteristic":[{"exclude":false}]}`
	broken := `{"resourceType":"Group","id":"broken","member":[{"entity":{"reference":"Patient/1"},"period":{"end":"soon"}}]}`
	devices := `{"resourceType":"Group","id":"devices","type":"device","actual":true,"member":[{"entity":{"reference":"Device/1"}}]}`
	for _, resource := range []string{characteristic, broken, devices} {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		target string
		status int
		code   string
	}{
		{"/$export?_typeFilter=Patient%3Factive%3Dtrue%26_sort%3Dname", 400, "invalid"},
		{"/$export?_elements=nose", 400, "not-supported"},
		{"/$export?_elements=Patient.nose", 400, "not-supported"},
		{"/$export?_elements=Patient.value", 400, "not-supported"},
		{"/$export?patient=Patient/1", 400, "not-supported"},
		{"/$export?_Type=Patient", 400, "not-supported"},
		{"/$export?=", 400, "not-supported"},
		{"/$export?x=1;_type=Patient", 400, "invalid"},
		{"/$export?_type=%zz", 400, "invalid"},
		{"/$export?_since=2021-01-01T00:00:00Z&_since=2021-01-01T00:00:00Z", 400, "invalid"},
		{"/$export?_outputFormat=ndjson&_outputFormat=ndjson", 400, "invalid"},
		{"/$export?_outputFormat=", 400, "not-supported"},
		{"/$export?_outputFormat=text/csv", 400, "not-supported"},
		{"/$export?_type=", 400, "invalid"},
		{"/$export?_type=Patient,", 400, "invalid"},
		{"/$export?_type=x1", 400, "invalid"},
		{"/$export?_type=patient", 400, "not-supported"},
		{"/$export?_typeFilter=patient%3Factive%3Dtrue", 400, "not-supported"},
		{"/$export?_type=Patient,%20Observation", 400, "invalid"},
		{"/$export?_type=Patient|Observation", 400, "invalid"},
		{"/$export?_type=" + strings.Repeat("A", 65), 400, "invalid"},
		{"/$export?_type=Unicorn", 400, "not-supported"},
		{"/Patient/$export?_type=Practitioner", 400, "not-supported"},
		{"/Group/demo-group/$export?_type=Patient,Organization", 400, "not-supported"},
		{"/Group/nobody/$export", 404, "not-found"},
		{"/Group/by-trait/$export", 400, "not-supported"},
		{"/Group/devices/$export", 400, "not-supported"},
		{"/Group/broken/$export", 400, "invalid"},
		{"/Group/a%2Fb/$export", 400, "invalid"},
		{"/Group/../$export", 400, "invalid"},
		{"/Group/%2E%2e/$export", 400, "invalid"},
		{"/Group/./$export", 400, "invalid"},
	} {
		t.Run(test.target, func(t *testing.T) {
			checkOutcome(t, h.ask(http.MethodGet, h.base+test.target), test.status, test.code)
		})
	}
	if len(h.exports.asked) > 0 {
		t.Errorf("a job was begun: %+v", h.exports.asked)
	}
}

// Ensure a client learns of all its wrong parameters at once, and what there is.
func TestKickoffNamesAllWrongParameters(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	got := h.ask(http.MethodGet, h.base+"/$export?_foo=1&_bar=2&_type=Patient,x1,y1&_since=soon")
	checkOutcome(t, got, 400, "not-supported", "not-supported", "invalid", "invalid", "invalid")
	for _, want := range []string{`_foo\"`, `_bar\" is not supported`, "_elements, _maximumFileSize, _minimumFileSize, _outputFormat, _since, _type"} {
		if !strings.Contains(got.body, want) {
			t.Errorf("no %s in %s", want, got.body)
		}
	}
}

func TestKickoffRefusesBadInstants(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	for _, since := range []string{
		"", "yesterday", "0000", "20211", "2021-13", "2021-12-08Z", "2021-1", "2021-12-08T08:28:07", "2021-12-08T08:28Z", "2021-02-30T00:00:00Z", "2021-12-08T24:00:00Z",
		"0000-01-01T00:00:00Z", "12021-01-01T00:00:00Z", "2021-12-08 08:28:07Z", "2021-12-08t08:28:07z", "gt2021-12-08T08:28:07Z",
		"2021-12-08T08:28:07+0200", "2021-12-08T08:28:07.Z", "2021-12-08T08:28:07Z,2021-12-09T08:28:07Z", "2021-12-08T08:28:60Z",
	} {
		t.Run(since, func(t *testing.T) {
			checkOutcome(t, h.ask(http.MethodGet, h.base+"/$export?_since="+url.QueryEscape(since)), http.StatusBadRequest, "invalid")
		})
	}
}

func TestKickoffRefusesWhatTheEngineRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		edit   func(*exports)
		status int
		code   string
	}{
		"busy": {
			func(e *exports) {
				e.kickOff = func(state.Kickoff) (*state.Job, error) { return nil, fmt.Errorf("create: %w", state.ErrBusy) }
			},
			http.StatusTooManyRequests, "throttled",
		},
		"bucket": {func(e *exports) { e.ready = fmt.Errorf("bucket is read-only") }, http.StatusServiceUnavailable, "transient"},
		"disk": {
			func(e *exports) {
				full := &fs.PathError{Op: "write", Path: "/secret/state.db", Err: syscall.ENOSPC}
				e.kickOff = func(state.Kickoff) (*state.Job, error) { return nil, full }
			},
			http.StatusServiceUnavailable, "no-store",
		},
		"own fault": {
			func(e *exports) {
				e.kickOff = func(state.Kickoff) (*state.Job, error) { return nil, fmt.Errorf("secret thing") }
			},
			http.StatusInternalServerError, "exception",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			test.edit(h.exports)
			got := h.ask(http.MethodGet, h.base+"/$export")
			checkOutcome(t, got, test.status, test.code)
			if want := test.status != http.StatusInternalServerError; (got.header.Get("Retry-After") != "") != want {
				t.Errorf("Retry-After: got %q", got.header.Get("Retry-After"))
			}
			if strings.Contains(got.body, "secret") {
				t.Errorf("the outcome holds text from inside: %s", got.body)
			}
		})
	}
}

// Ensure that the upstream decides by the client's own headers, not by the sidecar's, and about every type that is named.
func TestKickoffAsksTheUpstreamAsTheClient(t *testing.T) {
	h, sample := newFHIRHouse(t, func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{
			BaseURL: c.Upstream.String(), Credentials: fhir.Static{"Authorization": {"Basic sidecar"}, "X-Sidecar": {"1"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Client, c.ForwardHeaders = client, []string{"x-tenant"}
	})
	got := h.ask(http.MethodGet, h.base+"/Group/demo-group/$export?_type=Patient,Observation", "Authorization", "Bearer client", "X-Tenant", "a", "X-Other", "b")
	if got.status != http.StatusAccepted {
		t.Fatalf("status: got %d: %s", got.status, got.body)
	}
	var checked []string
	for _, request := range sample.Requests() {
		if request.Path == "/fhir/metadata" || strings.Contains(request.RawQuery, "_summary=count") { // counts are compared
			continue
		}
		checked = append(checked, request.Path)
		if request.Header.Get("Authorization") != "Bearer client" || request.Header.Get("X-Tenant") != "a" {
			t.Errorf("%s: credentials of the check: got %q", request.Path, request.Header)
		}
		if request.Header.Get("X-Other") != "" || request.Header.Get("X-Sidecar") != "" {
			t.Errorf("%s: headers that are not the client's to give: got %q", request.Path, request.Header)
		}
	}
	slices.Sort(checked)
	if want := []string{"/fhir/Binary", "/fhir/Group/demo-group", "/fhir/Observation", "/fhir/Patient"}; !slices.Equal(checked, want) {
		t.Errorf("checks: got %q, want %q", checked, want)
	}
}

func TestKickoffTreatsAnEmptyBearerAsNone(t *testing.T) {
	h, sample := newFHIRHouse(t, nil)
	h.ask(http.MethodGet, h.base+"/$export", "Authorization", "Bearer ")
	for _, request := range sample.Requests() {
		if values, ok := request.Header["Authorization"]; ok {
			t.Errorf("%s: Authorization: got %q", request.Path, values)
		}
	}
}

func TestKickoffRefusesWhatTheUpstreamRefuses(t *testing.T) {
	onSearch := func(r *http.Request) bool { return r.URL.Path == "/fhir/Observation" }
	onGroup := func(r *http.Request) bool { return r.URL.Path == "/fhir/Group/demo-group" }
	onMetadata := func(r *http.Request) bool { return r.URL.Path == "/fhir/metadata" }
	for name, test := range map[string]struct {
		fault  fhirtest.Fault
		status int
		code   string
	}{
		"401 for a type":      {fhirtest.Fault{Match: onSearch, Status: 401, Header: http.Header{"Www-Authenticate": {`Bearer realm="x"`}}}, 401, "login"},
		"401 without a word":  {fhirtest.Fault{Match: onSearch, Status: 401}, 401, "login"},
		"403 for a type":      {fhirtest.Fault{Match: onSearch, Status: 403}, 403, "forbidden"},
		"403 for the Group":   {fhirtest.Fault{Match: onGroup, Status: 403}, 403, "forbidden"},
		"410 for the Group":   {fhirtest.Fault{Match: onGroup, Status: 410}, 404, "not-found"},
		"400 for a type":      {fhirtest.Fault{Match: onSearch, Status: 400}, 400, "not-supported"},
		"429 for a type":      {fhirtest.Fault{Match: onSearch, Status: 429}, 503, "transient"},
		"500 for a type":      {fhirtest.Fault{Match: onSearch, Status: 500}, 503, "transient"},
		"HTML for a type":     {fhirtest.Fault{Match: onSearch, HTML: true}, 503, "transient"},
		"HTML for the Group":  {fhirtest.Fault{Match: onGroup, HTML: true}, 503, "transient"},
		"redirect for a type": {fhirtest.Fault{Match: onSearch, Status: 302, Header: http.Header{"Location": {"/login"}}, Body: []byte("x")}, 503, "transient"},
		"cut answer":          {fhirtest.Fault{Match: onSearch, CutBody: true}, 503, "transient"},
		"500 for metadata":    {fhirtest.Fault{Match: onMetadata, Status: 500}, 503, "transient"},
		"HTML for metadata":   {fhirtest.Fault{Match: onMetadata, HTML: true}, 503, "transient"},
	} {
		t.Run(name, func(t *testing.T) {
			h, sample := newFHIRHouse(t, nil)
			sample.Fail(test.fault)
			got := h.ask(http.MethodGet, h.base+"/Group/demo-group/$export?_type=Patient,Observation")
			checkOutcome(t, got, test.status, test.code)
			if wait := got.header.Get("Retry-After"); (wait != "") != (test.status == 503) {
				t.Errorf("Retry-After: got %q", wait)
			}
			want := cmp.Or(test.fault.Header.Get("WWW-Authenticate"), map[int]string{http.StatusUnauthorized: "Bearer"}[test.status])
			if got := got.header.Get("WWW-Authenticate"); got != want {
				t.Errorf("WWW-Authenticate: got %q, want %q, the server's where it has one", got, want)
			}
			if len(h.exports.asked) > 0 {
				t.Error("a job was begun")
			}
		})
	}
}

func TestOtherMethodsAreRefusedOnOurPaths(t *testing.T) {
	h, sample := newFHIRHouse(t, nil)
	for path, allow := range map[string]string{
		"/$export":                         "GET, POST, OPTIONS",
		"/%24export/":                      "GET, POST, OPTIONS",
		"/Patient/$export":                 "GET, POST, OPTIONS",
		"/Group/demo-group/$export":        "GET, POST, OPTIONS",
		"/$export-v4":                      "POST, OPTIONS",
		"/Patient/%24export-v4/":           "POST, OPTIONS",
		"/Group/demo-group/$export-v4":     "POST, OPTIONS",
		"/$export-status/x":                "GET, DELETE, OPTIONS",
		"/$export-status/x/":               "GET, DELETE, OPTIONS",
		"/$export-file/x/a.1.ndjson":       "GET, HEAD, OPTIONS",
		"/%24export-file/x/a.1.ndjso":      "GET, HEAD, OPTIONS",
		"/$export-attachment/x/y/Binary/1": "GET, HEAD, OPTIONS",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"} {
			if slices.Contains(strings.Split(allow, ", "), method) {
				continue
			}
			t.Run(method+path, func(t *testing.T) {
				got := h.ask(method, h.base+path)
				if got.header.Get("Allow") != allow {
					t.Errorf("Allow: got %q, want %q", got.header.Get("Allow"), allow)
				}
				if method == http.MethodHead {
					if got.status != http.StatusMethodNotAllowed {
						t.Errorf("status: got %d", got.status)
					}
					return
				}
				checkOutcome(t, got, http.StatusMethodNotAllowed, "not-supported")
			})
		}
	}
	if got := sample.Requests(); len(got) > 0 {
		t.Errorf("the upstream was asked %d times", len(got))
	}
	h.ask(http.MethodOptions, h.base+"/$export")
	if got := sample.Requests(); len(got) != 1 || got[0].Method != http.MethodOptions || got[0].Path != "/fhir/$export" {
		t.Errorf("OPTIONS was not forwarded: %+v", got)
	}
}

// stub is an upstream without a network.
type stub struct{}

func (stub) RoundTrip(r *http.Request) (*http.Response, error) {
	body := `{"resourceType":"Bundle","type":"searchset"}`
	if strings.HasSuffix(r.URL.Path, "/metadata") {
		body = `{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1","rest":[{"mode":"server","resource":[` +
			`{"type":"Patient","interaction":[{"code":"search-type"}]},{"type":"Observation","interaction":[{"code":"search-type"}]}]}]}`
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// fuzzed is a proxy before the stub, with an engine that begins any export.
func fuzzed(f *testing.F) (http.Handler, *exports) {
	f.Helper()
	client, err := fhir.NewClient(fhir.Config{BaseURL: "http://upstream.invalid/fhir", Transport: stub{}})
	if err != nil {
		f.Fatal(err)
	}
	engine := &exports{}
	engine.kickOff = func(state.Kickoff) (*state.Job, error) { return &state.Job{ID: "job"}, nil }
	upstream, err := fhir.ParseBase("http://upstream.invalid/fhir")
	if err != nil {
		f.Fatal(err)
	}
	handler, err := proxy.New(proxy.Config{
		Upstream: upstream, Intercept: true, Client: client, Exports: engine, Jobs: &state.Store{}, Bucket: signing{}, LinkKey: linkKey, Transport: stub{},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		TypesOf:        func(_ state.Level, s *fhir.CapabilityStatement) ([]string, []string, error) { return s.Types, nil, nil },
		Log:            slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	return handler, engine
}

// kickOffWith sends one kick-off to the handler of fuzzed.
func kickOffWith(t *testing.T, handler http.Handler, engine *exports, method, path, query, body string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	engine.asked = nil
	if header == nil {
		header = http.Header{}
	}
	request := (&http.Request{
		Method: method, URL: &url.URL{Path: path, RawQuery: query}, Host: "h", Header: header, RemoteAddr: "127.0.0.1:1",
		Body: io.NopCloser(strings.NewReader(body)),
	}).WithContext(t.Context())
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}

var typeName = regexp.MustCompile(`^[A-Z][A-Za-z]{0,63}$`)

// accepted are the parameters that a GET may have; patient needs a POST.
var accepted = []string{
	"_outputFormat", "_since", "_until", "_type", "_typeFilter", "_elements", "includeAssociatedData", "organizeOutputBy", "allowPartialManifests",
	"_minimumFileSize", "_maximumFileSize",
}

// Ensure that no query makes the parser panic, pass an unknown parameter, or take for a type what is none.
func FuzzKickoff(f *testing.F) {
	for _, query := range []string{
		"", "_type=Patient", "_type=Patient,Observation&_type=Patient", "_since=2021-12-08T08:28:07.000Z", "_since=2021-12-08T08:28:07+02:00",
		"_outputFormat=application/fhir+ndjson", "a=1;b=2&c=%zz", "_type=x,y", "_type=&_since=", "%5Ftype=Patient", "_TYPE=Patient", "&&=&", "_type=Patient%00",
		"_until=2010", "_elements=id", "_typeFilter=Patient%3F_id%3D1", "includeAssociatedData=RelevantProvenanceResources", "organizeOutputBy=Patient",
		"allowPartialManifests=true", "_minimumFileSize=1&_maximumFileSize=100000", strings.Repeat("_type=Patient&", 1000),
		"_typeFilter=" + strings.Repeat("Patient%3F_id%3D1,", 101),
	} {
		f.Add(query)
	}
	handler, engine := fuzzed(f)
	f.Fuzz(func(t *testing.T, query string) {
		recorder := kickOffWith(t, handler, engine, http.MethodGet, "/fhir/$export", query, "", nil)
		if recorder.Code != http.StatusAccepted {
			coded := slices.ContainsFunc([]string{"invalid", "not-supported", "too-costly"}, func(code string) bool {
				return strings.Contains(recorder.Body.String(), `"code":"`+code+`"`)
			})
			if recorder.Code != http.StatusBadRequest || !coded || len(engine.asked) > 0 {
				t.Errorf("refusal: %d %s", recorder.Code, recorder.Body)
			}
			return
		}
		for part := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' }) {
			raw, _, _ := strings.Cut(part, "=")
			name, err := url.QueryUnescape(raw)
			if err != nil || !slices.Contains(accepted, name) {
				t.Errorf("accepted with the parameter %q", raw)
			}
		}
		for _, typ := range engine.asked[0].Types {
			if !typeName.MatchString(typ) {
				t.Errorf("accepted with the type %q", typ)
			}
		}
	})
}
