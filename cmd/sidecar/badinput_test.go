package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// The value sets of FHIR that an OperationOutcome's issue is bound to.
var (
	issueSeverities = []string{"fatal", "error", "warning", "information"}
	issueTypes      = strings.Fields("invalid structure required value invariant security login unknown expired forbidden suppressed " +
		"processing not-supported duplicate multiple-matches not-found deleted too-long code-invalid extension too-costly " +
		"business-rule conflict transient lock-error no-store exception timeout incomplete throttled informational")
)

// checkOutcome fails the test unless the answer is a valid OperationOutcome with the status and issue code.
func checkOutcome(t *testing.T, got reply, status int, code string) {
	t.Helper()
	if got.status != status {
		t.Errorf("status: got %d, want %d: %s", got.status, status, got.body)
	}
	if media := got.header.Get("Content-Type"); media != "application/fhir+json" {
		t.Errorf("Content-Type: got %q", media)
	}
	var outcome struct {
		ResourceType string `json:"resourceType"`
		Issue        []struct{ Severity, Code, Diagnostics string }
	}
	if err := json.Unmarshal([]byte(got.body), &outcome); err != nil {
		t.Fatalf("body is not JSON: %v: %q", err, got.body)
	}
	if outcome.ResourceType != "OperationOutcome" || len(outcome.Issue) == 0 {
		t.Fatalf("no OperationOutcome with an issue: %s", got.body)
	}
	if strings.Contains(got.body, `""`) {
		t.Errorf("an empty string is not valid in FHIR: %s", got.body)
	}
	for _, issue := range outcome.Issue {
		if !slices.Contains(issueSeverities, issue.Severity) || !slices.Contains(issueTypes, issue.Code) {
			t.Errorf("issue: got severity %q, code %q", issue.Severity, issue.Code)
		}
	}
	if outcome.Issue[0].Code != code || outcome.Issue[0].Diagnostics == "" {
		t.Errorf("issue: got code %q, want %q: %s", outcome.Issue[0].Code, code, got.body)
	}
	if wait := got.header.Get("Retry-After"); (status == 429 || status == 503) != (wait != "") {
		t.Errorf("Retry-After: got %q with status %d", wait, status)
	}
}

// badRequest is one row of the table of bad input.
type badRequest struct {
	name, method, path string
	status             int
	code               string
	allow              string
}

var badRequests = []badRequest{
	{"unknown parameter", "GET", "/$export?_element=id", 400, "not-supported", ""},
	{"_typeFilter", "GET", "/$export?_typeFilter=Patient%3Factive%3Dtrue%26_sort%3Dname", 400, "invalid", ""},
	{"parameter of another case", "GET", "/$export?_Since=2021-01-01T00:00:00Z", 400, "not-supported", ""},
	{"parameter without a name", "GET", "/$export?=1", 400, "not-supported", ""},
	{"repeated _since", "GET", "/$export?_since=2021-01-01T00:00:00Z&_since=2022-01-01T00:00:00Z", 400, "invalid", ""},
	{"repeated _outputFormat", "GET", "/Patient/$export?_outputFormat=ndjson&_outputFormat=ndjson", 400, "invalid", ""},
	{"_outputFormat CSV", "GET", "/$export?_outputFormat=text%2Fcsv", 400, "not-supported", ""},
	{"_outputFormat empty", "GET", "/$export?_outputFormat=", 400, "not-supported", ""},
	{"_since empty", "GET", "/$export?_since=", 400, "invalid", ""},
	{"_since in the future", "GET", "/$export?_since=9021-12-08", 400, "invalid", ""},
	{"_elements below the root", "GET", "/$export?_elements=Patient.name.family", 400, "invalid", ""},
	{"_since without zone", "GET", "/Patient/$export?_since=2021-12-08T08:28:07", 400, "invalid", ""},
	{"_since on a day that is not", "GET", "/$export?_since=2021-02-30T00:00:00Z", 400, "invalid", ""},
	{"_since in words", "GET", "/$export?_since=yesterday", 400, "invalid", ""},
	{"_since with a prefix", "GET", "/$export?_since=ge2021-12-08T08:28:07Z", 400, "invalid", ""},
	{"types in lower case", "GET", "/$export?_type=x,y", 400, "not-supported", ""},
	{"_type empty", "GET", "/$export?_type=", 400, "invalid", ""},
	{"_type ends with a comma", "GET", "/$export?_type=Patient,", 400, "invalid", ""},
	{"unknown type", "GET", "/$export?_type=Unicorn", 400, "not-supported", ""},
	{"type outside the compartment", "GET", "/Patient/$export?_type=Organization", 400, "not-supported", ""},
	{"one of the types outside", "GET", "/Group/demo-group/$export?_type=Patient&_type=ValueSet", 400, "not-supported", ""},
	{"percent garbage", "GET", "/$export?_type=%zz", 400, "invalid", ""},
	{"semicolons", "GET", "/$export?_type=Patient;_since=2021-01-01T00:00:00Z", 400, "invalid", ""},
	{"unknown Group", "GET", "/Group/nobody/$export", 404, "not-found", ""},
	{"deleted Group", "GET", "/Group/gone/$export", 404, "not-found", ""},
	{"Group of characteristics", "GET", "/Group/by-trait/$export", 400, "not-supported", ""},
	{"Group of devices", "GET", "/Group/of-devices/$export", 400, "not-supported", ""},
	{"Group with a slash", "GET", "/Group/a%2Fb/$export", 400, "invalid", ""},
	{"Group of dots", "GET", "/Group/../$export", 400, "invalid", ""},
	{"Group with a query in its id", "GET", "/Group/demo-group%3F_summary=true/$export", 400, "invalid", ""},
	{"Group with a zero byte", "GET", "/Group/%00/$export", 404, "not-found", ""},
	{"Group with a line break", "GET", "/Group/demo-group%0D%0AX-Evil:1/$export", 404, "not-found", ""},
	{"Group with a letter of another script", "GET", "/Group/%E2%82%AC/$export", 404, "not-found", ""},
	{"a name that is markup", "GET", "/$export?%3Cscript%3E%00%E2%82%AC=1", 400, "not-supported", ""},
	{"a type without end", "GET", "/$export?_type=" + strings.Repeat("A", 5000), 400, "invalid", ""},
	{"POST of an unknown parameter", "POST", "/$export?x=1", 400, "not-supported", ""},
	{"patient by GET", "GET", "/Patient/$export?patient=Patient/1", 400, "not-supported", ""},
	{"PUT at Group", "PUT", "/Group/demo-group/$export", 405, "not-supported", "GET, POST, OPTIONS"},
	{"DELETE of the kick-off", "DELETE", "/%24export/", 405, "not-supported", "GET, POST, OPTIONS"},
	{"POST to the status", "POST", "/$export-status/x", 405, "not-supported", "GET, DELETE, OPTIONS"},
	{"PATCH of a file", "PATCH", "/$export-file/x/Patient.1.ndjson", 405, "not-supported", "GET, HEAD, OPTIONS"},
	{"DELETE of a file", "DELETE", "/$export-file/x/Patient.1.ndjson", 405, "not-supported", "GET, HEAD, OPTIONS"},
	{"unknown job", "GET", "/$export-status/4c6bc1a1-0000-4000-8000-000000000000", 404, "not-found", ""},
	{"job of dots", "GET", "/$export-status/..%2F..", 404, "not-found", ""},
	{"DELETE of an unknown job", "DELETE", "/$export-status/x", 404, "not-found", ""},
	{"file of an unknown job", "GET", "/$export-file/x/Patient.1.ndjson", 404, "not-found", ""},
	{"file of dots", "GET", "/$export-file/x/..%2Fstate.db", 404, "not-found", ""},
}

func TestBadInputIsAnsweredWithAnOutcome(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 2)
	for _, resource := range []string{
		`{"resourceType":"Group","id":"by-trait","type":"person","actual":false,"characteristic":[{"exclude":false}]}`,
		`{"resourceType":"Group","id":"of-devices","type":"device","actual":true,"member":[{"entity":{"reference":"Device/x"}}]}`,
		`{"resourceType":"Group","id":"gone"}`,
	} {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Fatal(err)
		}
	}
	if err := sample.Delete("Group", "gone"); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, nil)
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	for _, test := range badRequests {
		t.Run(test.name, func(t *testing.T) {
			got := ask(t, test.method, s.base+test.path)
			checkOutcome(t, got, test.status, test.code)
			if got.header.Get("Allow") != test.allow {
				t.Errorf("Allow: got %q, want %q", got.header.Get("Allow"), test.allow)
			}
		})
	}
	// None of them has begun a job: the slot is free, and a good request works.
	status, manifest := s.export("/$export?_type=Patient")
	checkFiles(t, manifest, expected(t, sample, nil, slices.DeleteFunc(sample.Types(), func(typ string) bool { return typ == "Patient" })...))
	checkOutcome(t, ask(t, http.MethodGet, strings.Replace(manifest.Output[0].URL, "Patient.1", "Patient.2", 1)), http.StatusForbidden, "forbidden")
	checkOutcome(t, ask(t, http.MethodGet, manifest.Output[0].URL, "Range", "bytes=99999999-"), http.StatusRequestedRangeNotSatisfiable, "processing")
	checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
	checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusNotFound, "not-found")
}

// Ensure that each path of ours refuses each method that is not its own and names those that are, in whatever way the
// path is written, and that the server behind never sees one of them.
func TestBadMethodsAreRefusedOnEveryPath(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	for path, allow := range map[string]string{
		"/$export":                  "GET, POST, OPTIONS",
		"/%24export/?_type=Patient": "GET, POST, OPTIONS",
		"/Patient/$export":          "GET, POST, OPTIONS",
		"/Group/demo-group/$export": "GET, POST, OPTIONS",
		"/$export-status/x":         "GET, DELETE, OPTIONS",
		"/%24export-status/x/":      "GET, DELETE, OPTIONS",
		"/$export-file/x/y":         "GET, HEAD, OPTIONS",
	} {
		for _, method := range []string{"HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECTED", "get"} {
			if slices.Contains(strings.Split(allow, ", "), method) {
				continue
			}
			got := ask(t, method, s.base+path)
			if method == http.MethodHead {
				if got.status != http.StatusMethodNotAllowed || got.body != "" {
					t.Errorf("HEAD %s: got %d %q", path, got.status, got.body)
				}
			} else {
				checkOutcome(t, got, http.StatusMethodNotAllowed, "not-supported")
			}
			if got.header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow: got %q, want %q", method, path, got.header.Get("Allow"), allow)
			}
		}
	}
	for _, request := range sample.Requests() {
		if strings.Contains(request.Path, "export") {
			t.Errorf("the upstream was asked %s for a path of ours", request.Method)
		}
	}
}

func TestBadUpstreamAnswersAreToldAtTheKickoff(t *testing.T) {
	t.Parallel()
	onType := func(r *http.Request) bool { return r.URL.Path == "/fhir/Observation" }
	onGroup := func(r *http.Request) bool { return r.URL.Path == "/fhir/Group/demo-group" }
	for name, test := range map[string]struct {
		fault  fhirtest.Fault
		status int
		code   string
	}{
		"HTML":          {fhirtest.Fault{Match: onType, HTML: true, Times: -1}, 503, "transient"},
		"HTML with 502": {fhirtest.Fault{Match: onType, HTML: true, Status: 502, Times: -1}, 503, "transient"},
		"401":           {fhirtest.Fault{Match: onType, Status: 401, Times: -1}, 401, "login"},
		"403":           {fhirtest.Fault{Match: onType, Status: 403, Times: -1}, 403, "forbidden"},
		"overload":      {fhirtest.Fault{Match: onType, Status: 429, Times: -1}, 503, "transient"},
		"cut body":      {fhirtest.Fault{Match: onType, CutBody: true, Times: -1}, 503, "transient"},
		"HTML for all":  {fhirtest.Fault{HTML: true, Times: -1}, 503, "transient"},
		"failure":       {fhirtest.Fault{Match: onType, Status: 500, Times: -1}, 503, "transient"},
		"refused":       {fhirtest.Fault{Match: onType, Status: 422, Times: -1}, 400, "not-supported"},
		"Group HTML":    {fhirtest.Fault{Match: onGroup, HTML: true, Times: -1}, 503, "transient"},
		"Group 401":     {fhirtest.Fault{Match: onGroup, Status: 401, Times: -1}, 401, "login"},
		"Group 403":     {fhirtest.Fault{Match: onGroup, Status: 403, Times: -1}, 403, "forbidden"},
		"Group 410":     {fhirtest.Fault{Match: onGroup, Status: 410, Times: -1}, 404, "not-found"},
		"Group 500":     {fhirtest.Fault{Match: onGroup, Status: 500, Times: -1}, 503, "transient"},
		"Group cut":     {fhirtest.Fault{Match: onGroup, CutBody: true, Times: -1}, 503, "transient"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sample, upstream := newSample(t, fhirtest.Plain(), 1)
			s := startSidecar(t, upstream, nil)
			until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
			sample.Fail(test.fault)
			checkOutcome(t, ask(t, http.MethodGet, s.base+"/Group/demo-group/$export?_type=Patient,Observation"), test.status, test.code)
			sample.ClearFaults()
			s.kickOff("/Group/demo-group/$export?_type=Patient,Observation")
		})
	}
}

// Ensure that the upstream is asked about a kick-off with the client's credentials, and read with the sidecar's own.
func TestBadCredentialsOfAClientAreRefusedAlthoughTheSidecarHasItsOwn(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	const own = "Basic c2lkZWNhcjpzZWNyZXQ="
	sample.Fail(fhirtest.Fault{Times: -1, Status: http.StatusUnauthorized, Match: func(r *http.Request) bool {
		return r.URL.Path != "/fhir/metadata" && !slices.Contains([]string{own, "Bearer good"}, r.Header.Get("Authorization"))
	}})
	s := startSidecar(t, upstream, func(c *config) { c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password = "sidecar", "secret" })
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/$export"), http.StatusUnauthorized, "login")
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/$export", "Authorization", "Bearer bad"), http.StatusUnauthorized, "login")
	got := ask(t, http.MethodGet, s.base+"/$export", "Authorization", "Bearer good")
	if got.status != http.StatusAccepted {
		t.Fatalf("kick-off: got %d %s", got.status, got.body)
	}
	checkFiles(t, s.manifest(got.header.Get("Content-Location"), "Authorization", "Bearer good"), expected(t, sample, nil))
	sample.ResetRequests()
	if got := ask(t, http.MethodGet, s.base+"/Patient"); got.status != http.StatusUnauthorized {
		t.Errorf("a forwarded request got %d", got.status)
	}
	for _, request := range sample.Requests() {
		if got := request.Header.Get("Authorization"); got != "" {
			t.Errorf("a forwarded request carries credentials that are not the client's: %q", got)
		}
	}
}

// Ensure that a server that does not answer costs the client ten seconds and no more.
func TestBadUpstreamThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, nil)
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	sample.Fail(fhirtest.Fault{Hang: true, Times: -1, Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Patient" }})
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/Patient/$export?_type=Patient,Observation"), http.StatusServiceUnavailable, "timeout")
	if got := ask(t, http.MethodGet, s.base+"/Observation"); got.status != http.StatusOK {
		t.Errorf("a forwarded request got %d", got.status)
	}
}

// askAll sends the same request several times at once and counts the answers by status.
func askAll(t *testing.T, times int, method, address string) map[int]int {
	t.Helper()
	replies := make(chan int)
	for range times {
		go func() {
			request, err := http.NewRequestWithContext(t.Context(), method, address, nil)
			if err != nil {
				t.Error(err)
				replies <- 0
				return
			}
			response, err := http.DefaultTransport.RoundTrip(request)
			if err != nil {
				t.Error(err)
				replies <- 0
				return
			}
			if err := response.Body.Close(); err != nil {
				t.Error(err)
			}
			replies <- response.StatusCode
		}()
	}
	counts := map[int]int{}
	for range times {
		counts[<-replies]++
	}
	return counts
}

// Ensure that of requests that arrive together no more succeed than of such that come one by one.
func TestBadTimingGivesOneExportAndOneDelete(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Settle = time.Hour })
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	if got := askAll(t, 12, http.MethodGet, s.base+"/$export"); got[http.StatusAccepted] != 1 || got[http.StatusTooManyRequests] != 11 {
		t.Errorf("kick-offs at once: got %v", got)
	}
	jobs, err := s.server.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(jobs) != 1 {
		t.Fatalf("jobs: got %d, want 1", len(jobs))
	}
	if got := askAll(t, 12, http.MethodDelete, s.base+"/$export-status/"+jobs[0].ID); got[http.StatusAccepted] != 1 || got[http.StatusNotFound] != 11 {
		t.Errorf("DELETEs at once: got %v", got)
	}
}

// Ensure that an export of which nothing is left behaves as if it had never been, before and after a restart.
func TestExpiredExportsAreGone(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"running on": false, "restarted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, upstream := newSample(t, fhirtest.Plain(), 1)
			s := startSidecar(t, upstream, func(c *config) {
				if !restart {
					c.Retention = 5 * time.Second // the manifest has to be read before
				}
			})
			status, manifest := s.export("/$export?_type=Patient")
			link, err := url.Parse(manifest.Output[0].URL)
			if err != nil {
				t.Fatal(err)
			}
			if restart {
				s.stop()
				s.config.Retention = time.Second
			}
			expired := time.Now().Add(s.config.Retention)
			until(t, "expiry", func() bool { return time.Now().After(expired) })
			if restart {
				s.start()
			}
			checkOutcome(t, ask(t, http.MethodGet, status), http.StatusNotFound, "not-found")
			checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusNotFound, "not-found")
			checkOutcome(t, ask(t, http.MethodGet, link.String()), http.StatusNotFound, "not-found")
			if !restart {
				s.kickOff("/$export?_type=Patient") // looks for expired exports without waiting for the minute to pass
			}
			until(t, "files removed", func() bool {
				return !slices.ContainsFunc(filesBelow(t, s.config.filesFolder()), func(path string) bool {
					return strings.Contains(path, strings.TrimPrefix(status, s.base+"/$export-status/"))
				})
			})
		})
	}
}

func TestRunRefusesFaultyCommands(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("upstream: http://a/fhir\nworkerz: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	faulty := filepath.Join(t.TempDir(), "faulty.yaml")
	text := "upstream: ftp://a\nworkers: 0\nbucket: {kind: tape}\nupstream_auth: {basic: {password: hunter2}}\n"
	if err := os.WriteFile(faulty, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"nothing":         {nil, []string{"usage"}},
		"unknown command": {[]string{"fly"}, []string{"usage"}},
		"unknown flag":    {[]string{"serve", "-wings"}, []string{"usage"}},
		"argument":        {[]string{"serve", "http://a/fhir"}, []string{"unexpected argument"}},
		"no upstream":     {[]string{"serve"}, []string{"upstream is missing"}},
		"no such file":    {[]string{"serve", "-config", file + "x"}, []string{"read configuration"}},
		"unknown key":     {[]string{"serve", "-config", file}, []string{"workerz"}},
		"all at once":     {[]string{"serve", "-config", faulty}, []string{"upstream: address must begin", "workers must be from 1 to 64", "bucket.kind must be", "basic has a password"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), test.args, io.Discard, io.Discard)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error: got %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error holds a secret: %q", err)
			}
		})
	}
}
