package fhirtest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// clock is a clock that only tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// upstream is a running server and its base address.
type upstream struct {
	*fhirtest.Server
	t     *testing.T
	base  string
	clock *clock
}

var begin = time.Date(2024, 5, 1, 12, 0, 0, 250_000_000, time.UTC)

func start(t *testing.T, p fhirtest.Personality) *upstream {
	t.Helper()
	u := &upstream{Server: fhirtest.New(p, "/fhir"), t: t, clock: &clock{t: begin}}
	u.Now = u.clock.now
	web := httptest.NewServer(u)
	t.Cleanup(web.Close)
	u.base = web.URL + "/fhir"
	return u
}

func (u *upstream) put(format string, args ...any) {
	u.t.Helper()
	if err := u.Put(fmt.Appendf(nil, format, args...)); err != nil {
		u.t.Fatal(err)
	}
}

// patients puts p1..pn, one second apart.
func (u *upstream) patients(n int) {
	u.t.Helper()
	for i := 1; i <= n; i++ {
		u.put(`{"resourceType":"Patient","id":"p%d"}`, i)
		u.clock.add(time.Second)
	}
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request; header is "Name: value" lines. A path without scheme is below the base.
func (u *upstream) do(method, path, body string, header ...string) answer {
	u.t.Helper()
	link := path
	if !strings.Contains(path, "://") {
		link = u.base + path
	}
	r, err := http.NewRequestWithContext(u.t.Context(), method, link, strings.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		u.t.Fatal(err)
	}
	defer func() {
		if err := resp.Body.Close(); err != nil {
			u.t.Error(err)
		}
	}()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b}
}

type bundle struct {
	ResourceType string
	Type         string
	Total        *int
	Link         []struct{ Relation, URL string }
	Entry        []struct {
		FullURL  string
		Resource json.RawMessage
		Search   struct{ Mode string }
		Request  struct{ Method, URL string }
		Response struct{ Status, Etag, LastModified string }
	}
}

func (b *bundle) link(relation string) string {
	for _, l := range b.Link {
		if l.Relation == relation {
			return l.URL
		}
	}
	return ""
}

type head struct {
	ResourceType string
	ID           string
	Meta         struct{ VersionID, LastUpdated string }
}

func headOf(t *testing.T, resource []byte) head {
	t.Helper()
	var h head
	if err := json.Unmarshal(resource, &h); err != nil {
		t.Fatalf("resource: %v", err)
	}
	return h
}

// ids lists the matches of a Bundle.
func (b *bundle) ids(t *testing.T) string {
	t.Helper()
	var ids []string
	for _, e := range b.Entry {
		if e.Search.Mode != "outcome" && e.Resource != nil {
			ids = append(ids, headOf(t, e.Resource).ID)
		}
	}
	return strings.Join(ids, " ")
}

func (u *upstream) get(path string, header ...string) *bundle {
	u.t.Helper()
	return u.bundle(u.do(http.MethodGet, path, "", header...))
}

func (u *upstream) bundle(a answer) *bundle {
	u.t.Helper()
	if a.status != http.StatusOK {
		u.t.Fatalf("got status %d: %s", a.status, a.body)
	}
	var b bundle
	if err := json.Unmarshal(a.body, &b); err != nil {
		u.t.Fatalf("bundle: %v", err)
	}
	return &b
}

// rebased brings a link to an internal host back to the server.
func (u *upstream) rebased(link string) string {
	return strings.Replace(link, "http://internal.example/fhir", u.base, 1)
}

// crawl follows next links and lists all ids.
func (u *upstream) crawl(path string, header ...string) (ids []string, pages int) {
	u.t.Helper()
	for link := path; link != ""; pages++ {
		b := u.get(link, header...)
		ids = append(ids, strings.Fields(b.ids(u.t))...)
		link = u.rebased(b.link("next"))
	}
	return ids, pages
}

func personalities() []fhirtest.Personality {
	return []fhirtest.Personality{fhirtest.Plain(), fhirtest.HAPI(), fhirtest.Blaze(), fhirtest.Microsoft()}
}

func each(t *testing.T, test func(t *testing.T, u *upstream, p fhirtest.Personality)) {
	t.Helper()
	for _, p := range personalities() {
		t.Run(p.Name, func(t *testing.T) { test(t, start(t, p), p) })
	}
}

func TestPutKeepsAllOtherBytes(t *testing.T) {
	const stamp = `"versionId":"1","lastUpdated":"2024-05-01T12:00:00.250Z"`
	for _, test := range []struct{ name, in, want string }{
		{
			"without meta", `{"resourceType":"Basic", "id":"a","x":1.10}`,
			`{"resourceType":"Basic", "id":"a","meta":{` + stamp + `},"x":1.10}`,
		},
		{
			"id before type", `{"id":"a","resourceType":"Basic"}`,
			`{"id":"a","meta":{` + stamp + `},"resourceType":"Basic"}`,
		},
		{
			"empty meta", `{"meta":{ },"resourceType":"Basic","id":"a"}`,
			`{"meta":{` + stamp + ` },"resourceType":"Basic","id":"a"}`,
		},
		{
			"meta with a profile", `{"resourceType":"Basic","meta":{"profile":["\u00e9\/"]},"id":"a"}`,
			`{"resourceType":"Basic","meta":{` + stamp + `,"profile":["\u00e9\/"]},"id":"a"}`,
		},
		{
			"meta with old stamps", `{"resourceType":"Basic","id":"a","meta":{"lastUpdated":"1999","source":"s","versionId":"77"}}`,
			`{"resourceType":"Basic","id":"a","meta":{"lastUpdated":"2024-05-01T12:00:00.250Z","source":"s","versionId":"1"}}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := start(t, fhirtest.Plain())
			u.put("%s", test.in)
			if got := string(u.Resources("Basic")[0]); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
			if got := string(u.do(http.MethodGet, "/Basic/a", "").body); got != test.want {
				t.Errorf("read got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestPutRefusesWhatIsNoResource(t *testing.T) {
	u := start(t, fhirtest.Plain())
	for _, in := range []string{
		``, `null`, `[]`, `{"resourceType":"Basic"}`, `{"id":"a"}`, `{"resourceType":"Basic","id":"a"`,
		`{"resourceType":"Basic","id":"a"} {}`, `{"resourceType":"Basic","id":"a/b"}`, `{"resourceType":7,"id":"a"}`,
		`{"resourceType":"Basic","id":"a","meta":7}`,
	} {
		if err := u.Put([]byte(in)); err == nil {
			t.Errorf("Put(%s): no error", in)
		}
	}
	if n, err := u.Load(strings.NewReader("{\"resourceType\":\"Basic\",\"id\":\"a\"}\n\nx\n")); n != 1 || err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("Load: got %d, %v", n, err)
	}
}

func TestLifeOfAResource(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, p fhirtest.Personality) {
		for _, step := range []struct {
			method, path, body string
			want               int
		}{
			{"GET", "/Patient/a", "", 404},
			{"PUT", "/Patient/a", `{"resourceType":"Patient","id":"b"}`, 400},
			{"PUT", "/Patient/a", `{"resourceType":"Group","id":"a"}`, 400},
			{"PUT", "/Patient/a", `{"resourceType":"Patient","id":"a"}`, 201},
			{"PUT", "/Patient/a", `{"resourceType":"Patient","id":"a","active":true}`, 200},
			{"GET", "/Patient/a", "", 200},
			{"HEAD", "/Patient/a", "", 200},
			{"DELETE", "/Patient/a", "", 204},
			{"DELETE", "/Patient/a", "", 204},
			{"GET", "/Patient/a", "", 410},
			{"PUT", "/Patient/a", `{"resourceType":"Patient","id":"a"}`, 201},
			{"POST", "/Patient", `{"resourceType":"Patient"}`, 201},
			{"PATCH", "/Patient/a", `{}`, 405},
			{"GET", "/NoSuchType", "", 404},
			{"GET", "/Patient/a/_history/99", "", 404},
			{"GET", "/$export", "", 400},
			{"GET", "/Patient/$export", "", 400},
			{"GET", "/?_type=Patient", "", 400},
			{"GET", "/Patient?_format=xml", "", 406},
		} {
			a := u.do(step.method, step.path, step.body)
			if a.status != step.want {
				t.Errorf("%s %s: got %d, want %d: %s", step.method, step.path, a.status, step.want, a.body)
			}
			if step.want >= 400 && step.method != "HEAD" && headOf(t, a.body).ResourceType != "OperationOutcome" {
				t.Errorf("%s %s: no OperationOutcome: %s", step.method, step.path, a.body)
			}
		}
		if a := u.do("GET", "/Patient/a", ""); a.header.Get("ETag") == "" || a.header.Get("Last-Modified") != "Wed, 01 May 2024 12:00:00 GMT" ||
			a.header.Get("Date") != "Wed, 01 May 2024 12:00:00 GMT" {
			t.Errorf("headers: %v", a.header)
		}
		want := map[string]string{
			"plain": "2024-05-01T12:00:00.250Z", "hapi": "2024-05-01T12:00:00.250+00:00",
			"blaze": "2024-05-01T12:00:00Z", "microsoft": "2024-05-01T12:00:00.250+00:00",
		}[p.Name]
		if got := headOf(t, u.do("GET", "/Patient/a", "").body).Meta.LastUpdated; got != want {
			t.Errorf("lastUpdated: got %s, want %s", got, want)
		}
	})
}

func TestMetadataNamesSoftwareAndSearchParameters(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, p fhirtest.Personality) {
		var got struct {
			ResourceType, FhirVersion string
			Software                  struct{ Name, Version string }
			Rest                      []struct {
				Mode     string
				Resource []struct {
					Type        string
					Interaction []struct{ Code string }
					SearchParam []struct{ Name, Type string }
				}
			}
		}
		if err := json.Unmarshal(u.do("GET", "/metadata", "").body, &got); err != nil {
			t.Fatal(err)
		}
		if got.ResourceType != "CapabilityStatement" || got.FhirVersion != "4.0.1" || got.Software.Name != p.Software || got.Rest[0].Mode != "server" {
			t.Errorf("got %+v", got.Software)
		}
		for _, r := range got.Rest[0].Resource {
			if r.Type != "Observation" {
				continue
			}
			var names []string
			for _, param := range r.SearchParam {
				names = append(names, param.Name)
			}
			for _, want := range []string{"_id", "_lastUpdated", "subject", "patient", "performer"} {
				if !slices.Contains(names, want) {
					t.Errorf("parameter %s is missing", want)
				}
			}
			return
		}
		t.Error("Observation is missing")
	})
}

func TestTypesLimitWhatIsOffered(t *testing.T) {
	p := fhirtest.Plain()
	p.Types = []string{"Patient"}
	u := start(t, p)
	if got := u.do("GET", "/Observation", "").status; got != http.StatusNotFound {
		t.Errorf("got %d", got)
	}
	if got := strings.Count(string(u.do("GET", "/metadata", "").body), `"searchParam"`); got != 1 {
		t.Errorf("got %d types", got)
	}
}

func TestSearchRowsAreByteEqualToReads(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		for _, resource := range fhirtest.Generate(3, 12) {
			if err := u.Put(resource); err != nil {
				t.Fatal(err)
			}
		}
		for _, typ := range u.Types() {
			b := u.get("/" + typ + "?_pretty=false&_count=500&_sort=_id")
			rows := u.Resources(typ)
			if len(b.Entry) != len(rows) {
				t.Fatalf("%s: got %d rows, want %d", typ, len(b.Entry), len(rows))
			}
			for i, e := range b.Entry {
				read := u.do("GET", "/"+typ+"/"+headOf(t, rows[i]).ID+"?_pretty=false", "").body
				if !bytes.Equal(e.Resource, rows[i]) || !bytes.Equal(read, rows[i]) {
					t.Errorf("%s: row differs from read", typ)
				}
			}
		}
	})
}

func TestHAPIPrettyPrintsUnlessAsked(t *testing.T) {
	u := start(t, fhirtest.HAPI())
	u.put("{ \"resourceType\" : \"Basic\",\n \"id\":\"a\", \"x\":[1.10, \"\\u00e9\"] }")
	for _, path := range []string{"/Basic", "/Basic/a", "/Basic/a/_history", "/metadata"} {
		pretty, compact := u.do("GET", path, "").body, u.do("GET", path+"?_pretty=false", "").body
		if !bytes.Contains(pretty, []byte("\n  \"")) || bytes.ContainsAny(compact, "\n") {
			t.Errorf("%s: got\n%s\n%s", path, pretty, compact)
		}
		var b bytes.Buffer
		if err := json.Compact(&b, pretty); err != nil {
			t.Fatal(err)
		}
		if path != "/metadata" && !bytes.Contains(compact, []byte(`"x":[1.10,"\u00e9"]`)) {
			t.Errorf("%s: got %s", path, compact)
		}
	}
}

func TestRequestsAreRemembered(t *testing.T) {
	u := start(t, fhirtest.Plain())
	u.do("GET", "/Patient?b=1&a=2", "", "X-Key: 7")
	u.do("POST", "/Patient/_search", "_id=x", "Content-Type: application/x-www-form-urlencoded")
	got := u.Requests()
	if len(got) != 2 || got[0].Path != "/fhir/Patient" || got[0].RawQuery != "b=1&a=2" || got[0].Header.Get("X-Key") != "7" || got[1].Form != "_id=x" {
		t.Errorf("got %+v", got)
	}
	u.ResetRequests()
	if got := u.Requests(); len(got) != 0 {
		t.Errorf("after reset got %d", len(got))
	}
}
