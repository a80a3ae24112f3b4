package fhirtest_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

const form = "Content-Type: application/x-www-form-urlencoded"

// cohort puts three patients a second apart, then rows and Groups that refer to them.
func (u *upstream) cohort() {
	u.t.Helper()
	u.patients(3) // at 12:00:00.250, 01.250, 02.250
	u.put(`{"resourceType":"Observation","id":"o1","subject":{"reference":"Patient/p1"},"performer":[{"reference":"Patient/p2"}]}`)
	u.put(`{"resourceType":"Observation","id":"o2","subject":{"reference":"Patient/p2/_history/1"}}`)
	u.put(`{"resourceType":"Observation","id":"o3","subject":{"reference":"Group/g1"},"contained":[{"subject":{"reference":"Patient/p3"}}]}`)
	u.put(`{"resourceType":"Observation","id":"o4","subject":{"display":"nobody"}}`)
	u.put(`{"resourceType":"Observation","id":"o5","subject":{"reference":"http://elsewhere/fhir/Patient/p1"}}`)
	u.put(`{"resourceType":"Appointment","id":"a1","participant":[{"actor":{"reference":"Practitioner/d"}},{"actor":{"reference":"Patient\/p\u0033"}}]}`)
	u.put(`{"resourceType":"Group","id":"g1","member":[{"entity":{"reference":"Patient/p1"}},{"entity":{"reference":"Patient/p3"},"inactive":true}]}`)
}

func TestSearchFilters(t *testing.T) {
	for _, test := range []struct{ path, want string }{
		{"/Patient", "p1 p2 p3"},
		{"/Patient?_id=p3,p1,nope", "p1 p3"},
		{"/Patient?_id=nope", ""},
		{"/Patient?_lastUpdated=ge2024-05-01T12:00:01Z", "p2 p3"},
		{"/Patient?_lastUpdated=ge2024-05-01T12:00:00Z&_lastUpdated=lt2024-05-01T12:00:02Z", "p1 p2"},
		{"/Patient?_lastUpdated=lt2024-05-01T12:00:02Z&_lastUpdated=ge2024-05-01T12:00:01Z", "p2"},
		{"/Patient?_lastUpdated=2024-05-01T12:00:01Z", "p2"},
		{"/Patient?_lastUpdated=2024-05-01", "p1 p2 p3"},
		{"/Patient?_lastUpdated=lt2024-05", ""},
		{"/Patient?_lastUpdated=gt2024-04", "p1 p2 p3"},
		{"/Patient?_lastUpdated=gt2024-05", ""},
		{"/Patient?_lastUpdated=le2024-05-01T14:00:01%2B02:00", "p1 p2"},
		{"/Patient?_lastUpdated=gt2024-05-01T12:00:01Z", "p3"},
		{"/Patient?_lastUpdated=ge2199-01-01T00:00:00Z", ""},
		{"/Patient?_sort=_lastUpdated", "p1 p2 p3"},
		{"/Patient?_sort=-_lastUpdated", "p3 p2 p1"},
		{"/Patient?_sort=-_id", "p3 p2 p1"},
		{"/Patient?_has:Group:member:_id=g1", "p1 p3"},
		{"/Patient?_has:Group:member:id=g1", "p1 p3"},
		{"/Patient?_has:Group:member:_id=nope", ""},
		{"/Group?member=Patient/p3", "g1"},
		{"/Observation?subject=Patient/p1,Patient/p2&_sort=_id", "o1 o2"},
		{"/Observation?subject=p1", "o1"},
		{"/Observation?patient=p1,p2&_sort=_id", "o1 o2"},
		{"/Observation?patient=nope", ""},
		{"/Observation?subject:Patient=p2", "o2"},
		{"/Observation?performer=Patient/p2", "o1"},
		{"/Observation?performer=p2&patient=p2", ""},
		{"/Observation?performer:missing=false", "o1"},
		{"/Appointment?actor=Patient/p3", "a1"},
		{"/Observation?_id=o1,o2&_sort=-_lastUpdated&patient=p1", "o1"},
	} {
		t.Run(test.path, func(t *testing.T) {
			each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
				u.cohort()
				if got := u.get(test.path, "Prefer: handling=strict").ids(t); got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
				path, query, _ := strings.Cut(test.path, "?")
				if got := u.bundle(u.do("POST", path+"/_search", query, form)).ids(t); got != test.want {
					t.Errorf("POST: got %q, want %q", got, test.want)
				}
				sep := "?"
				if query != "" {
					sep = "&"
				}
				for _, count := range []string{"_summary=count", "_count=0"} {
					b := u.get(test.path + sep + count)
					if b.Total == nil || *b.Total != len(strings.Fields(test.want)) || len(b.Entry) != 0 {
						t.Errorf("%s: got %v", count, b.Total)
					}
				}
				if b := u.get(test.path + sep + "_total=accurate"); b.Total == nil || *b.Total != len(strings.Fields(test.want)) {
					t.Errorf("_total: got %v", b.Total)
				}
			})
		})
	}
}

func TestSearchRefusesBadValues(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		for _, query := range []string{
			"_lastUpdated=yesterday", "_lastUpdated=ge", "_lastUpdated=ap2024", "_count=-1", "_count=x", "_sort=birthdate",
			"link:above=p1", "link:missing=perhaps", "_has:Group:member:name=x", "a=%zz",
		} {
			if got := u.do("GET", "/Patient?"+query, "").status; got != http.StatusBadRequest {
				t.Errorf("%s: got %d", query, got)
			}
		}
		if got := u.do("POST", "/Patient/_search", `{}`, "Content-Type: application/json").status; got != http.StatusUnsupportedMediaType {
			t.Errorf("JSON form: got %d", got)
		}
	})
}

// Ensure the precision of lastUpdated is the product's own.
func TestMillisecondBounds(t *testing.T) {
	for _, test := range []struct {
		p     fhirtest.Personality
		query string
		want  string
	}{
		{fhirtest.Plain(), "_lastUpdated=ge2024-05-01T12:00:00.251Z", "p2"},
		{fhirtest.Plain(), "_lastUpdated=ge2024-05-01T12:00:00.250Z&_lastUpdated=lt2024-05-01T12:00:00.251Z", "p1"},
		{fhirtest.HAPI(), "_lastUpdated=le2024-05-01T12:00:01.249Z", "p1"},
		{fhirtest.Microsoft(), "_lastUpdated=2024-05-01T12:00:01.250Z", "p2"},
		{fhirtest.Blaze(), "_lastUpdated=ge2024-05-01T12:00:00.999Z", "p1 p2"},
		{fhirtest.Blaze(), "_lastUpdated=lt2024-05-01T12:00:01.999Z", "p1"},
	} {
		u := start(t, test.p)
		u.patients(2)
		if got := u.get("/Patient?" + test.query).ids(t); got != test.want {
			t.Errorf("%s %s: got %q, want %q", test.p.Name, test.query, got, test.want)
		}
	}
}

func TestUnknownParameters(t *testing.T) {
	for _, test := range []struct {
		p      fhirtest.Personality
		prefer string
		status int
		notes  int
	}{
		{fhirtest.Plain(), "", 200, 0},
		{fhirtest.Plain(), "handling=strict", 400, 0},
		{fhirtest.HAPI(), "", 400, 0},
		{fhirtest.HAPI(), "handling=lenient", 400, 0},
		{fhirtest.Blaze(), "handling=lenient", 200, 0},
		{fhirtest.Blaze(), "respond-async, handling=strict", 400, 0},
		{fhirtest.Microsoft(), "", 200, 1},
		{fhirtest.Microsoft(), "handling=strict", 400, 0},
	} {
		u := start(t, test.p)
		u.patients(1)
		a := u.do("GET", "/Patient?no-such-param-x=1", "", "Prefer: "+test.prefer)
		if a.status != test.status {
			t.Errorf("%s %q: got %d, want %d", test.p.Name, test.prefer, a.status, test.status)
			continue
		}
		if a.status != http.StatusOK {
			continue
		}
		b := u.bundle(a)
		if got := len(b.Entry) - 1; got != test.notes || b.ids(t) != "p1" {
			t.Errorf("%s: got %d notes", test.p.Name, got)
		}
		if test.notes > 0 && (b.Entry[0].Search.Mode != "outcome" || strings.Contains(b.link("self"), "no-such")) {
			t.Errorf("%s: first entry %q, self %s", test.p.Name, b.Entry[0].Search.Mode, b.link("self"))
		}
	}
}

// Ensure HAPI's habit: a reference to a Patient that was not there yet is never found.
func TestHAPIForgetsReferencesToLaterPatients(t *testing.T) {
	for _, test := range []struct {
		p                  fhirtest.Personality
		early, missing, tx string
	}{
		{fhirtest.HAPI(), "", "o1", "o2"},
		{fhirtest.Plain(), "o1", "", "o2"},
	} {
		u := start(t, test.p)
		u.put(`{"resourceType":"Observation","id":"o1","subject":{"reference":"Patient/p1"}}`)
		u.put(`{"resourceType":"Patient","id":"p1"}`)
		if err := u.Transaction([][]byte{
			[]byte(`{"resourceType":"Observation","id":"o2","subject":{"reference":"Patient/p2"}}`),
			[]byte(`{"resourceType":"Patient","id":"p2"}`),
		}); err != nil {
			t.Fatal(err)
		}
		for query, want := range map[string]string{
			"patient=p1": test.early, "subject=Patient/p1": test.early, "subject:missing=true": test.missing,
			"patient:missing=true": test.missing, "patient=p2": test.tx,
		} {
			if got := u.get("/Observation?" + query).ids(t); got != want {
				t.Errorf("%s %s: got %q, want %q", test.p.Name, query, got, want)
			}
		}
	}
}

func TestKnobsIgnoreParameters(t *testing.T) {
	knobs := func(set func(*fhirtest.Personality)) fhirtest.Personality {
		p := fhirtest.Plain()
		set(&p)
		return p
	}
	for _, test := range []struct {
		name  string
		p     fhirtest.Personality
		path  string
		want  string
		codes []int
	}{
		{"IgnoreLastUpdated", knobs(func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true }), "/Patient?_lastUpdated=ge2199&_sort=-_id", "p3 p2 p1", nil},
		{"IgnoreSort", knobs(func(p *fhirtest.Personality) { p.IgnoreSort = true }), "/Patient?_sort=-_lastUpdated", "p1 p2 p3", nil},
		{"NoPatientLists", knobs(func(p *fhirtest.Personality) { p.NoPatientLists = true }), "/Observation?patient=p1", "o1 o2 o3 o4 o5", nil},
		{"NoPatientLists _has", knobs(func(p *fhirtest.Personality) { p.NoPatientLists = true }), "/Patient?_has:Group:member:_id=g1", "p1 p2 p3", nil},
		{"IgnoreEverything", knobs(func(p *fhirtest.Personality) { p.IgnoreEverything = true }), "/Patient?_id=x&_summary=count&zzz=1&_sort=-_id", "p1 p2 p3", nil},
		{"MaxCount", knobs(func(p *fhirtest.Personality) { p.MaxCount = 2 }), "/Patient?_count=50", "p1 p2", nil},
		{"DefaultCount", knobs(func(p *fhirtest.Personality) { p.DefaultCount = 1 }), "/Patient", "p1", nil},
		{"ResultCap", knobs(func(p *fhirtest.Personality) { p.ResultCap = 2 }), "/Patient", "p1 p2", nil},
	} {
		u := start(t, test.p)
		u.cohort()
		if got := u.get(test.path, "Prefer: handling=strict").ids(t); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
	u := start(t, knobs(func(p *fhirtest.Personality) { p.NoSummaryCount, p.NoHistory = true, true }))
	u.cohort()
	for path, want := range map[string]int{"/Patient?_summary=count": 400, "/Patient/_history": 405, "/Patient/p1/_history/1": 405, "/_history": 405} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
}

func TestHAPIIgnoresAFormBesideAQuery(t *testing.T) {
	u := start(t, fhirtest.HAPI())
	u.patients(2)
	if got := u.bundle(u.do("POST", "/Patient/_search?_sort=_id", "_id=p1", form)).ids(t); got != "p1 p2" {
		t.Errorf("got %q", got)
	}
}

func TestHAPIReusesResultsForAMinute(t *testing.T) {
	u := start(t, fhirtest.HAPI())
	u.patients(1)
	search := func(want string, header ...string) {
		t.Helper()
		if got := u.get("/Patient?_sort=_id", header...).ids(t); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	search("p1")
	u.put(`{"resourceType":"Patient","id":"p2"}`)
	search("p1")
	search("p1 p2", "Cache-Control: no-store, max-results=1000")
	search("p1 p2", "Cache-Control: no-cache")
	u.put(`{"resourceType":"Patient","id":"p3"}`)
	search("p1 p2")
	u.clock.add(2 * time.Minute)
	search("p1 p2 p3")
}

func TestHAPINoStoreHasNoNextLink(t *testing.T) {
	u := start(t, fhirtest.HAPI())
	u.patients(30)
	for _, test := range []struct {
		query, control string
		status, rows   int
	}{
		{"", "no-store, max-results=25", 200, 25},
		{"?_count=10", "no-store, max-results=25", 200, 10},
		{"?_count=25", "no-store,max-results=25", 200, 25},
		{"", "no-store", 200, 30},
		{"", "no-store, max-results=1000", 200, 30},
		{"", "no-store, max-results=1001", 400, 0},
		{"", "no-store, max-results=x", 400, 0},
	} {
		a := u.do("GET", "/Patient"+test.query, "", "Cache-Control: "+test.control)
		if a.status != test.status {
			t.Errorf("%s: got %d", test.control, a.status)
		}
		if a.status != 200 {
			continue
		}
		if b := u.bundle(a); len(b.Entry) != test.rows || b.link("next") != "" {
			t.Errorf("%s: got %d rows, next %q", test.control, len(b.Entry), b.link("next"))
		}
	}
}

func TestBackdatedRowsSortByTheirTime(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		u.patients(2)
		if err := u.PutAt([]byte(`{"resourceType":"Patient","id":"p9"}`), begin.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got := u.get("/Patient?_sort=_lastUpdated", "Cache-Control: no-cache").ids(t); got != "p9 p1 p2" {
			t.Errorf("got %q", got)
		}
		history := strings.Fields(u.get("/Patient/_history").ids(t))
		if !slices.Equal(history, []string{"p2", "p1", "p9"}) {
			t.Errorf("history: got %v", history)
		}
	})
}
