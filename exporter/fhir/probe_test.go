package fhir_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// fill puts rows of different times, none of them in the first millisecond of a second.
func fill(t *testing.T, server *fhirtest.Server, typ string, rows int) {
	t.Helper()
	for i := range rows {
		resource := fmt.Appendf(nil, `{"resourceType":%q,"id":"%s-%d"}`, typ, strings.ToLower(typ[:1]), i)
		if err := server.PutAt(resource, when.Add(time.Duration(i)*time.Minute+123*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
}

// populate puts a small hospital: Observations and Encounters of two Patients, a Group of one of them, an Organization.
func populate(t *testing.T, server *fhirtest.Server) {
	t.Helper()
	rows := []string{
		`{"resourceType":"Patient","id":"p1"}`, `{"resourceType":"Patient","id":"p2"}`, `{"resourceType":"Patient","id":"p3"}`,
		`{"resourceType":"Organization","id":"o1"}`, `{"resourceType":"Organization","id":"o2"}`,
		`{"resourceType":"Group","id":"g1","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/p1"}}]}`,
	}
	for i := range 12 {
		rows = append(rows,
			fmt.Sprintf(`{"resourceType":"Observation","id":"obs%d","subject":{"reference":"Patient/p%d"}}`, i, 1+i%2),
			fmt.Sprintf(`{"resourceType":"Encounter","id":"enc%d","subject":{"reference":"Patient/p%d"}}`, i, 1+i%3))
	}
	for i, row := range rows {
		if err := server.PutAt([]byte(row), when.Add(time.Duration(i)*time.Minute+123*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
}

// probed probes a populated server, perhaps behind something that changes its requests or answers.
func probed(t *testing.T, p fhirtest.Personality, wrap func(http.Handler) http.Handler) (*fhir.Profile, *fhirtest.Server) {
	t.Helper()
	server := fhirtest.New(p, "/fhir")
	populate(t, server)
	return probeOf(t, server, wrap), server
}

func probeOf(t *testing.T, server *fhirtest.Server, wrap func(http.Handler) http.Handler) *fhir.Profile {
	t.Helper()
	var handler http.Handler = server
	if wrap != nil {
		handler = wrap(server)
	}
	profile, err := served(t, handler).Probe(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return profile
}

// served returns a client of a handler on a port of its own.
func served(t *testing.T, handler http.Handler) *fhir.Client {
	t.Helper()
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: web.URL + "/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// changed sends requests on as edit leaves them.
func changed(edit func(path string, values url.Values) string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			values := r.URL.Query()
			r.URL.Path = edit(r.URL.Path, values)
			r.URL.RawQuery = values.Encode()
			next.ServeHTTP(w, r)
		})
	}
}

func TestProbeTellsWhatAServerCan(t *testing.T) {
	with := func(p fhirtest.Personality, change func(*fhirtest.Personality)) fhirtest.Personality {
		change(&p)
		return p
	}
	type p = fhirtest.Personality
	plain := fhir.Profile{
		FHIRVersion: "4.0.1", Software: "Plain FHIR Server 1.0.0", Types: []string{"Observation", "Encounter", "Organization"},
		CountMethod: fhir.CountSummary, Counts: true, IDLists: true, Filter: true, Bounds: true, Milliseconds: true, Sort: true, Keyset: true,
		PageSize: 1000, StrictHandling: true, TypeHistory: true, InstanceHistory: true, SystemHistory: true, VRead: true,
		PatientLists: true, ListSpelling: fhir.SpelledPatient, MissingModifier: true, HasGroupMember: true, PostSearch: true,
		ClockSource: fhir.ClockDate, Settle: 5 * time.Second,
	}
	want := func(change func(*fhir.Profile)) fhir.Profile {
		w := plain
		change(&w)
		return w
	}
	noLists := func(w *fhir.Profile) {
		w.PatientLists, w.ListSpelling, w.MissingModifier = false, "", false
	}
	for _, test := range []struct {
		name   string
		server fhirtest.Personality
		want   fhir.Profile
	}{
		{"plain", fhirtest.Plain(), plain},
		{"hapi", fhirtest.HAPI(), want(func(w *fhir.Profile) {
			w.Software, w.HAPI, w.Settle = "HAPI FHIR Server 8.8.0", true, 10*time.Second
		})},
		{"blaze", fhirtest.Blaze(), want(func(w *fhir.Profile) {
			w.Software, w.Milliseconds, w.CompartmentSearch = "Blaze 1.2.0", false, true
		})},
		{"microsoft", fhirtest.Microsoft(), want(func(w *fhir.Profile) {
			w.Software, w.CompartmentSearch = "Microsoft FHIR Server 4.0.0", true
		})},
		{"pages of 7", with(fhirtest.Plain(), func(p *p) { p.MaxCount = 7 }), want(func(w *fhir.Profile) { w.PageSize = 7 })},
		{"no bounds", with(fhirtest.Plain(), func(p *p) { p.IgnoreLastUpdated = true }), want(func(w *fhir.Profile) {
			w.CountMethod, w.Counts, w.IDLists = fhir.CountNone, false, false
			w.Filter, w.Bounds, w.Milliseconds, w.Keyset = false, false, false, false
			noLists(w)
		})},
		{"empty pages first", with(fhirtest.Plain(), func(p *p) { p.Paging, p.EmptyFirst, p.MaxCount = fhirtest.KeysetPages, true, 7 }), want(func(w *fhir.Profile) { w.PageSize = 7 })},
		{"no sort", with(fhirtest.Plain(), func(p *p) { p.IgnoreSort = true }), want(func(w *fhir.Profile) { w.Sort, w.Keyset = false, false })},
		{"no summary", with(fhirtest.Plain(), func(p *p) { p.NoSummaryCount = true }), want(func(w *fhir.Profile) {
			w.CountMethod = fhir.CountTotal
		})},
		{"no history", with(fhirtest.Plain(), func(p *p) { p.NoHistory = true }), want(func(w *fhir.Profile) {
			w.TypeHistory, w.InstanceHistory, w.SystemHistory, w.VRead = false, false, false, false
		})},
		{"no patient lists", with(fhirtest.Plain(), func(p *p) { p.NoPatientLists = true }), want(func(w *fhir.Profile) {
			noLists(w)
			w.HasGroupMember = false
		})},
		{"query beats form", with(fhirtest.Plain(), func(p *p) { p.QueryBeatsForm = true }), plain}, // there must be no query
		{"superset", with(fhirtest.Plain(), func(p *p) { p.IgnoreEverything = true }), fhir.Profile{
			FHIRVersion: "4.0.1", Software: "Plain FHIR Server 1.0.0", CountMethod: fhir.CountNone, PageSize: 1000,
			TypeHistory: true, InstanceHistory: true, SystemHistory: true, VRead: true, ClockSource: fhir.ClockDate, Settle: 5 * time.Second,
			Types: []string{"Encounter", "Observation", "Organization"},
		}},
		{"seconds", with(fhirtest.Plain(), func(p *p) { p.Granule = time.Second }), want(func(w *fhir.Profile) { w.Milliseconds = false })},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, server := probed(t, test.server, nil)
			slices.Sort(got.Types)
			slices.Sort(test.want.Types)
			if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", test.want) {
				t.Errorf("got  %+v\nwant %+v", *got, test.want)
			}
			if n := len(server.Requests()); n > 90 && !test.server.EmptyFirst || n > 120 {
				t.Errorf("%d requests, want about seventy", n)
			}
		})
	}
}

func TestProbeAsksForThePageSizeThatIsWanted(t *testing.T) {
	for _, test := range []struct{ wanted, limit, want int }{{50, 0, 50}, {50, 7, 7}, {5, 100, 5}, {2000, 0, 2000}} {
		personality := fhirtest.Plain()
		personality.MaxCount = test.limit
		server, client := start(t, personality)
		fill(t, server, "Observation", 30)
		if got, err := client.Probe(t.Context(), test.wanted); err != nil || got.PageSize != test.want {
			t.Errorf("wanted %d of a server with the limit %d: %+v, %v; want %d", test.wanted, test.limit, got, err, test.want)
		}
	}
}

func TestProbeOfAnEmptyServerClaimsNothing(t *testing.T) {
	_, client := start(t, fhirtest.Plain())
	got, err := client.Probe(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got.Keyset || got.Counts || got.IDLists || got.TypeHistory || len(got.Remarks) != 1 {
		t.Errorf("got %+v", got)
	}
}

// Ensure a refusal is an answer to one question only, and that a type which is refused is passed over.
func TestProbePassesOverARefusedType(t *testing.T) {
	server, client := start(t, fhirtest.Plain())
	fill(t, server, "Observation", 3)
	fill(t, server, "Patient", 3)
	server.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Observation") }, Times: -1, Status: http.StatusForbidden,
	})
	got, err := client.Probe(t.Context(), 0)
	if err != nil || !got.Keyset || !got.Counts || !got.TypeHistory {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestProbeFailsWhenTheServerIsAwayOrRefusesToBeAsked(t *testing.T) {
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusUnauthorized} {
		server, client := start(t, fhirtest.Plain())
		fill(t, server, "Observation", 3)
		server.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool { return r.URL.Query().Get("_summary") == "count" }, Status: status,
		})
		if got, err := client.Probe(t.Context(), 0); fhir.StatusOf(err) != status || got != nil {
			t.Errorf("got %+v, %v; want the refusal %d", got, err, status)
		}
	}
	if _, err := answering(t, http.StatusOK, "<html>").Probe(t.Context(), 0); err == nil {
		t.Error("a login page was probed")
	}
}

func TestCapabilitiesAreReadOnceAndOnlyFromAStatement(t *testing.T) {
	server, client := start(t, fhirtest.HAPI())
	for range 3 {
		statement, err := client.Capabilities(t.Context())
		if err != nil || !statement.IsHAPI() || !statement.Offers("Patient") || statement.Offers("Nothing") {
			t.Fatalf("%+v, %v", statement, err)
		}
		if !statement.HasParam("Observation", "patient") || statement.HasParam("Observation", "nothing") {
			t.Errorf("parameters of Observation: %v", statement.SearchParams["Observation"])
		}
	}
	if got := len(server.Requests()); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	for _, body := range []string{"", "<html>", `{"resourceType":"OperationOutcome"}`, `{"resourceType":"CapabilityStatement"`} {
		if _, err := answering(t, http.StatusOK, body).Capabilities(t.Context()); err == nil {
			t.Errorf("%q was taken for a statement", body)
		}
	}
}

// Ensure a server keeps its samples when rows change all the time and cannot be read anew.
func TestProbeKeepsItsRowsWhenOthersCannotBeRead(t *testing.T) {
	server, client := start(t, fhirtest.Plain())
	fill(t, server, "Observation", 3)
	version, answered := 0, false
	server.Fail(fhirtest.Fault{Times: -1, Status: http.StatusInternalServerError, Match: func(r *http.Request) bool {
		if id := r.URL.Query().Get("_id"); id != "" && !strings.Contains(id, ",") {
			version++
			at := when.Add(time.Hour + time.Duration(version)*time.Second)
			if err := server.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":%q}`, id), at); err != nil {
				t.Error(err)
			}
			answered = true
		}
		return answered && r.URL.Query().Get("_count") == "10" && !r.URL.Query().Has("_lastUpdated")
	}})
	got, err := client.Probe(t.Context(), 0)
	if err != nil || !got.Uncertain {
		t.Errorf("got %+v, %v; want a profile that is uncertain", got, err)
	}
	if version == 0 {
		t.Error("no row was changed")
	}
}
