package fhirtest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

func TestAidboxComparesAndDeletesInItsOwnWay(t *testing.T) {
	u := start(t, fhirtest.Aidbox())
	u.clock.add(123 * time.Microsecond)
	u.patients(3) // at 12:00:00.250123, 01.250123, 02.250123
	for path, want := range map[string]string{
		"/Patient?_lastUpdated=lt2024-05-01T12:00:01Z":        "p1 p2",
		"/Patient?_lastUpdated=lt2024-05-01T12:00:01.250Z":    "p1 p2",
		"/Patient?_lastUpdated=lt2024-05-01T12:00:01.249Z":    "p1",
		"/Patient?_lastUpdated=lt2024-05-01":                  "p1 p2 p3",
		"/Patient?_lastUpdated=ge2024-05-01T12:00:01.250123Z": "p2 p3",
		"/Patient?_lastUpdated=ge2024-05-01T12:00:01.250124Z": "p3",
	} {
		if got := u.get(path).ids(t); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	b := u.get("/Patient?_count=1")
	if b.Total == nil || *b.Total != 3 || headOf(t, b.Entry[0].Resource).Meta.LastUpdated != "2024-05-01T12:00:00.250123Z" {
		t.Errorf("got total %v, row %s", b.Total, b.Entry[0].Resource)
	}
	if got := u.get("/Patient?_total=none").Total; got != nil {
		t.Errorf("_total=none: got %d", *got)
	}
	u.put(`{"resourceType":"Patient","id":"p1","meta":{"tag":[{"code":"mine"}]},"active":true}`)
	if err := u.Delete("Patient", "p1"); err != nil {
		t.Fatal(err)
	}
	e := u.get("/Patient/_history").Entry[0]
	if e.Request.Method != "DELETE" || e.Request.URL != "Patient" || headOf(t, e.Resource).Meta.VersionID != "3" {
		t.Errorf("got %s %s with %s", e.Request.Method, e.Request.URL, e.Resource)
	}
	for _, part := range []string{`"deleted"`, `"mine"`, `"active":true`} {
		if !strings.Contains(string(e.Resource), part) {
			t.Errorf("the deletion's body %s lacks %s", e.Resource, part)
		}
	}
	if got := u.do("GET", "/_history", "").status; got != http.StatusMethodNotAllowed {
		t.Errorf("history of the system: got %d", got)
	}
}

func TestMedplumEstimatesBigTotals(t *testing.T) {
	for n, exact := range map[int]bool{10: true, 11: false} {
		u := start(t, with(fhirtest.Medplum(), func(p *fhirtest.Personality) { p.EstimateAbove = 10 }))
		u.patients(n)
		for _, path := range []string{"/Patient?_total=accurate", "/Patient?_summary=count"} {
			if got := *u.get(path).Total; (got == n) != exact {
				t.Errorf("%s of %d rows: got %d", path, n, got)
			}
		}
	}
}

func TestFirelySortsNewestFirstAndSendsNoDate(t *testing.T) {
	u := start(t, fhirtest.Firely())
	u.patients(60)
	b := u.get("/Patient?_count=100")
	if got := strings.Fields(b.ids(t)); len(got) != 50 || got[0] != "p60" || got[49] != "p11" {
		t.Errorf("got %v", got)
	}
	u.put(`{"resourceType":"Patient","id":"new"}`)
	if got := u.follow(b.link("next")).ids(t); !strings.HasPrefix(got, "p11 p10") {
		t.Errorf("got %q: a new row must shift the pages", got)
	}
	for path, want := range map[string]int{"/Patient": 200, "/Patient/nope": 404} {
		if a := u.do("GET", path, ""); a.status != want || a.header.Get("Date") != "" {
			t.Errorf("%s: got status %d, Date %q", path, a.status, a.header.Get("Date"))
		}
	}
}

func TestCompartmentSearch(t *testing.T) {
	for _, test := range []struct {
		p fhirtest.Personality
		// foreign is the answer for a type outside of the compartment: its rows or a status.
		foreign string
	}{
		{fhirtest.Firely(), "d1 d2"},
		{fhirtest.Microsoft(), "400"},
		{fhirtest.Blaze(), "400"},
		{fhirtest.IBM(), "400"},
	} {
		u := start(t, test.p)
		u.cohort()
		u.put(`{"resourceType":"Practitioner","id":"d1"}`)
		u.put(`{"resourceType":"Practitioner","id":"d2"}`)
		u.CatchUp()
		for path, want := range map[string]string{
			"/Patient/p1/Observation?_sort=_id":              "o1",
			"/Patient/p2/Observation?_sort=_id":              "o1 o2", // as subject of one, performer of the other
			"/Patient/p2/Observation?_id=o2":                 "o2",
			"/Patient/p2/Observation?_lastUpdated=ge2199":    "",
			"/Patient/p3/Appointment":                        "a1",
			"/Patient/nope/Observation":                      "",
			"/Patient/p2/Observation?_summary=count":         "",
			"/Patient/p2/Observation?_sort=_id&subject=p2":   "o2",
			"/Patient/p1/Patient":                            "p1",
			"/Patient/p2/Observation?performer:missing=true": "o2",
		} {
			if got := u.get(path).ids(t); got != want {
				t.Errorf("%s: %s: got %q, want %q", test.p.Name, path, got, want)
			}
		}
		if got := u.get("/Patient/p2/Observation?_count=1"); test.p.Paging != fhirtest.SnapshotPages && !strings.Contains(got.link("next"), "/Patient/p2/Observation?") {
			t.Errorf("%s: got next %s", test.p.Name, got.link("next"))
		}
		got := ""
		if a := u.do("GET", "/Patient/p1/Practitioner?_sort=_id", ""); a.status == http.StatusOK {
			got = u.bundle(a).ids(t)
		} else {
			got = fmt.Sprint(a.status)
		}
		if got != test.foreign {
			t.Errorf("%s: foreign type: got %q, want %q", test.p.Name, got, test.foreign)
		}
	}
	if got := start(t, fhirtest.Plain()).do("GET", "/Patient/p1/Observation", "").status; got != http.StatusMethodNotAllowed {
		t.Errorf("plain: got %d", got)
	}
}

func TestOracleFailsAPageForOneRow(t *testing.T) {
	u := start(t, fhirtest.Oracle())
	u.patients(5)
	u.Poison("Patient", "p3")
	for path, want := range map[string]int{
		"/Patient": 500, "/Patient?_count=2": 200, "/Patient/p3": 500, "/Patient/p2": 200, "/Patient?_id=p3": 500, "/Patient?_id=p2": 200,
		"/Observation": 400, "/Observation?patient=p1": 200, "/Observation?_id=x": 200, "/Patient/_history": 405, "/Patient?_summary=count": 400,
	} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	if got := u.do("GET", u.get("/Patient?_count=2").link("next"), "").status; got != http.StatusInternalServerError {
		t.Errorf("second page: got %d", got)
	}
	u.Heal("Patient", "p3")
	if got := u.get("/Patient").ids(t); got != "p1 p2 p3 p4 p5" {
		t.Errorf("healed: got %q", got)
	}
	u = start(t, with(fhirtest.Oracle(), func(p *fhirtest.Personality) { p.PoisonOutcome = "error" }))
	u.patients(5)
	u.Poison("Patient", "p3")
	b := u.get("/Patient")
	if b.ids(t) != "p1 p2 p4 p5" || b.Entry[0].Search.Mode != "outcome" || !strings.Contains(string(b.Entry[0].Resource), `"severity":"error"`) {
		t.Errorf("left out: got %q", b.ids(t))
	}
}

func TestEpicWantsAPatientAndKnowsNoTimes(t *testing.T) {
	u := start(t, fhirtest.Epic())
	u.cohort()
	for path, want := range map[string]int{
		"/Observation": 400, "/Observation?code=x": 400, "/Observation?patient=p1": 200, "/Observation?subject=Patient/p1": 200,
		"/Group?_id=g1": 200, "/Group": 400, "/Patient": 200, "/Patient?_lastUpdated=ge2024": 200, "/Patient?_summary=count": 400,
		"/Patient/p1/_history": 405,
	} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
	for _, query := range []string{"_lastUpdated=ge2024", "_sort=_lastUpdated", "_has:Group:member:_id=g1"} {
		if got := u.do("GET", "/Patient?"+query, "", "Prefer: handling=strict").status; got != http.StatusBadRequest {
			t.Errorf("strict %s: got %d", query, got)
		}
		if got := u.get("/Patient?" + query).ids(t); got != "p1 p2 p3" {
			t.Errorf("%s: got %q", query, got)
		}
	}
	if strings.Contains(string(u.do("GET", "/metadata", "").body), "_lastUpdated") {
		t.Error("the CapabilityStatement declares _lastUpdated")
	}
	u.patients(101)
	got, pages := u.pagesOf("/Patient?_count=60")
	first := pages[0].Entry[0]
	if len(got) != 100 || first.Search.Mode != "outcome" || !strings.Contains(string(first.Resource), `"4127"`) {
		t.Errorf("got %d patients, first entry %s", len(got), first.Resource)
	}
}

func TestSupersetObeysNothing(t *testing.T) {
	u := start(t, fhirtest.Superset())
	u.cohort()
	for _, query := range []string{"", "_id=p1", "_lastUpdated=ge2199", "_has:Group:member:_id=g1", "no-such=1"} {
		if got := u.get("/Patient?"+query, "Prefer: handling=strict").ids(t); got != "p1 p2 p3" {
			t.Errorf("%s: got %q", query, got)
		}
	}
	if got := len(u.get("/Observation?patient=nope").Entry); got != 5 {
		t.Errorf("got %d observations", got)
	}
}

func TestMicrosoftThrottles(t *testing.T) {
	u := start(t, with(fhirtest.Microsoft(), func(p *fhirtest.Personality) { p.MaxConcurrent = 1 }))
	u.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.Method == http.MethodGet }, Do: func(*http.Request) {
		a := u.do("POST", "/Patient/_search", "", form)
		if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" || a.header.Get("X-Ms-Retry-After-Ms") == "" {
			t.Errorf("got %d, %v beside another request", a.status, a.header)
		}
	}})
	for range 2 {
		if got := u.do("GET", "/Patient", "").status; got != http.StatusOK {
			t.Errorf("got %d alone", got)
		}
	}
}

// Ensure each product answers in its own way what no other test asks it: the statuses of requests.
func TestProductsAnswerInTheirOwnWay(t *testing.T) {
	const revinclude, has = "/Patient?_id=p1&_revinclude=Provenance:target", "/Patient?_has:Group:member:_id=g1"
	for name, want := range map[string]map[string]int{
		"plain":      {revinclude: 400, has: 200, "/Observation?patient:missing=true": 200, "/Provenance?target=Patient/p1": 200, "/Observation/_history": 200},
		"medplum":    {"/Patient?no-such=1": 400},
		"openmrs":    {"/Patient?no-such=1": 400},
		"healthlake": {"/_history": 405, "/Patient/_history": 405, "/Patient/p1/_history": 200},
		"oracle":     {revinclude: 200, has: 400, "/Observation?patient=p1&subject:missing=true": 400, "/Provenance?target=Patient/p1": 200, "/Provenance": 400},
		"epic":       {revinclude: 200, has: 400, "/Observation?patient=p1&subject:missing=true": 400, "/Provenance?target=Patient/p1": 400},
	} {
		for _, p := range fhirtest.All() {
			if p.Name != name {
				continue
			}
			u := start(t, p)
			u.cohort()
			u.CatchUp()
			for path, status := range want {
				prefer := "Prefer: handling=strict"
				if strings.Contains(path, "no-such") { // refused without being asked to
					prefer = "Prefer: x"
				}
				if got := u.do("GET", path, "", prefer).status; got != status {
					t.Errorf("%s: %s: got %d, want %d", name, path, got, status)
				}
			}
		}
	}
	if got := start(t, fhirtest.Oracle()).do("POST", "/Patient/_search", "_id=p1", form).status; got != http.StatusMethodNotAllowed {
		t.Errorf("oracle: a form: got %d", got)
	}
}

// Ensure the clocks and the index of products are as documented: a new row of HealthLake is found after 20 s, OpenMRS tells whole
// seconds apart and counts always, a page of Epic dies with its session, one write of 20 of IBM is late.
func TestProductsAreLateInTheirOwnWay(t *testing.T) {
	u := start(t, fhirtest.HealthLake())
	u.patients(1) // a second ago
	u.clock.add(19*time.Second - time.Millisecond)
	if got := u.get("/Patient").ids(t); got != "" {
		t.Errorf("healthlake: got %q too early", got)
	}
	u.clock.add(time.Millisecond)
	if got := u.get("/Patient").ids(t); got != "p1" {
		t.Errorf("healthlake: got %q after 20 s", got)
	}

	u = start(t, fhirtest.OpenMRS())
	u.patients(2)
	b := u.get("/Patient?_lastUpdated=ge2024-05-01T12:00:01.900Z&_count=1")
	if got := headOf(t, u.get("/Patient?_id=p1").Entry[0].Resource).Meta.LastUpdated; b.ids(t) != "p2" || b.Total == nil || got != "2024-05-01T12:00:00+00:00" {
		t.Errorf("openmrs: got %q, total %v, time %s", b.ids(t), b.Total, got)
	}

	u = start(t, fhirtest.Epic())
	u.patients(3)
	next := u.get("/Patient?_count=2").link("next")
	u.clock.add(11 * time.Minute)
	if got := u.do("GET", next, "").status; got != http.StatusGone {
		t.Errorf("epic: a page of an ended session: got %d", got)
	}

	u = start(t, fhirtest.IBM())
	for i := range 200 {
		u.put(`{"resourceType":"Patient","id":"p%03d"}`, i)
	}
	if got := len(u.get("/Patient?_count=1000").Entry); got < 170 || got == 200 {
		t.Errorf("ibm: %d of 200 writes are seen at once", got)
	}
}
