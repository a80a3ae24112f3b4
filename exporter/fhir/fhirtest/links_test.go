package fhirtest_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// with is a personality with some switches changed.
func with(p fhirtest.Personality, set func(*fhirtest.Personality)) fhirtest.Personality {
	set(&p)
	return p
}

// follow reads the next page of a link of any form.
func (u *upstream) follow(link string) *bundle {
	u.t.Helper()
	host := strings.TrimSuffix(u.base, "/fhir")
	bare := strings.TrimPrefix(host, "http://")
	_, port, _ := strings.Cut(bare, ":")
	link = strings.Replace(u.rebased(link), ":"+port+":"+port, ":"+port, 1)
	switch {
	case strings.HasPrefix(link, host+"/") && !strings.HasPrefix(link, u.base):
		link = u.base + strings.TrimPrefix(link, host)
	case strings.Contains(link, "://"):
	case strings.HasPrefix(link, bare):
		link = "http://" + link
	case strings.HasPrefix(link, "/fhir/"):
		link = host + link
	case strings.HasPrefix(link, "?"):
		link = u.base + "/Patient" + link
	default:
		link = u.base + "/" + strings.TrimPrefix(link, "/")
	}
	return u.get(link)
}

// pagesOf reads a search to its end, 50 pages at most.
func (u *upstream) pagesOf(path string) (ids []string, pages []*bundle) {
	u.t.Helper()
	b := u.get(path)
	for len(pages) < 50 {
		pages = append(pages, b)
		ids = append(ids, strings.Fields(b.ids(u.t))...)
		if b.link("next") == "" {
			return ids, pages
		}
		b = u.follow(b.link("next"))
	}
	u.t.Fatal("the pages do not end")
	return nil, nil
}

// Ensure that at rest no habit loses a row or gives one twice: what goes wrong under writes is the tests' to provoke.
func TestEveryPersonalityGivesEveryRowOnceAtRest(t *testing.T) {
	for _, p := range fhirtest.All() {
		t.Run(p.Name, func(t *testing.T) {
			u := start(t, p)
			u.patients(25)
			u.CatchUp()
			got, pages := u.pagesOf("/Patient?_count=4")
			slices.Sort(got)
			if len(slices.Compact(got)) != 25 || len(pages) != 7 {
				t.Errorf("got %d rows on %d pages: %v", len(got), len(pages), got)
			}
		})
	}
}

func TestAllNamesEachPersonalityOnce(t *testing.T) {
	var names []string
	for _, p := range fhirtest.All() {
		names = append(names, p.Name)
		if p.Software == "" || p.Version == "" {
			t.Errorf("%s has no software", p.Name)
		}
	}
	const want = "plain hapi microsoft blaze aidbox medplum google healthlake firely ibm openmrs oracle superset canvas zus epic"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got %s", got)
	}
}

func TestFormsOfLinks(t *testing.T) {
	for _, test := range []struct {
		p fhirtest.Personality
		// prefix and part are of the next link; HOST stands for host and port.
		prefix, part string
	}{
		{fhirtest.Aidbox(), "Patient?", "page=2"},
		{fhirtest.Canvas(), "/Patient?", "_offset=2"},
		{fhirtest.Zus(), "HOST/fhir/Patient?", "ct="},
		{fhirtest.Medplum(), "http://HOST/fhir/Patient?", "_offset=2"},
		{fhirtest.Google(), "http://HOST/fhir/Patient?", "_page_token="},
		{fhirtest.HealthLake(), "http://HOST/fhir/Patient?_count=2", "=="},
		{fhirtest.Firely(), "http://HOST/fhir/Patient?", "_skip=2"},
		{fhirtest.Oracle(), "http://HOST/fhir/Patient?", "pageContext="},
		{fhirtest.IBM(), "http://HOST/fhir/Patient?", "_page=2"},
		{fhirtest.OpenMRS(), "http://HOST/fhir?_getpages=", ""},
		{with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Links = fhirtest.BasePathLinks }), "/fhir/Patient?", "_page=2"},
		{with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Links = fhirtest.QueryLinks }), "?_count=2&_page=2", ""},
		{with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Links = fhirtest.BaselessLinks }), "http://HOST/Patient?", "_page=2"},
		{with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Links = fhirtest.DoublePortLinks }), "http://HOST:PORT/fhir/Patient?", "_page=2"},
	} {
		u := start(t, test.p)
		u.patients(3)
		u.CatchUp()
		b := u.get("/Patient?_count=2")
		host := strings.TrimSuffix(strings.TrimPrefix(u.base, "http://"), "/fhir")
		_, port, _ := strings.Cut(host, ":")
		prefix := strings.NewReplacer("HOST", host, "PORT", port).Replace(test.prefix)
		next := b.link("next")
		if !strings.HasPrefix(next, prefix) || !strings.Contains(next, test.part) {
			t.Errorf("%s: got next %s, want %s ... %s", test.p.Name, next, prefix, test.part)
		}
		if got := len(u.follow(next).Entry); got != 1 {
			t.Errorf("%s: the next page has %d rows", test.p.Name, got)
		}
		if self := b.link("self"); strings.Contains(test.prefix, "Patient?") && !strings.HasPrefix(self, prefix) {
			t.Errorf("%s: self %s has another form", test.p.Name, self)
		}
	}
}

func TestLoopingNextLeadsNowhere(t *testing.T) {
	for _, p := range fhirtest.All() {
		p.LoopingNext = true
		u := start(t, p)
		u.patients(5)
		u.CatchUp()
		first := u.get("/Patient?_count=2")
		again := u.follow(first.link("next"))
		if again.ids(t) != first.ids(t) || again.link("next") != first.link("next") || first.link("next") == "" {
			t.Errorf("%s: got %q after %q", p.Name, again.ids(t), first.ids(t))
		}
	}
}

func TestMicrosoftOnCosmosHasEmptyPages(t *testing.T) {
	for name, test := range map[string]struct {
		set  func(*fhirtest.Personality)
		want string
	}{
		"first":   {func(p *fhirtest.Personality) { p.EmptyFirst = true }, "|p1 p2|p3 p4|p5"},
		"between": {func(p *fhirtest.Personality) { p.EmptyBetween = true }, "p1 p2||p3 p4||p5"},
		"both":    {func(p *fhirtest.Personality) { p.EmptyFirst, p.EmptyBetween = true, true }, "|p1 p2||p3 p4||p5"},
	} {
		u := start(t, with(fhirtest.Microsoft(), test.set))
		u.patients(5)
		_, pages := u.pagesOf("/Patient?_count=2")
		var got []string
		for _, b := range pages {
			got = append(got, b.ids(t))
		}
		if strings.Join(got, "|") != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// moment puts rows with one lastUpdated.
func (u *upstream) moment(names ...string) {
	u.t.Helper()
	var rows [][]byte
	for _, name := range names {
		rows = append(rows, []byte(`{"resourceType":"Patient","id":"`+name+`"}`))
	}
	if err := u.Transaction(rows); err != nil {
		u.t.Fatal(err)
	}
}

// numbered are names that sort as they count.
func numbered(letter string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = letter + string(rune('a'+i/26)) + string(rune('a'+i%26))
	}
	return names
}

func TestMedplumCursors(t *testing.T) {
	const sorted = "/Patient?_sort=_lastUpdated&_count=20"
	u := start(t, fhirtest.Medplum())
	u.patients(5)
	u.moment(numbered("m", 20)...)
	u.clock.add(time.Millisecond)
	u.patients(9) // p1 to p9 anew, after the full moment
	if got, pages := u.pagesOf(sorted); len(got) != 29 || !strings.Contains(pages[0].link("next"), "_cursor=") {
		t.Errorf("got %d rows, next %s", len(got), pages[0].link("next"))
	}
	for _, path := range []string{"/Patient?_sort=_lastUpdated&_count=19", "/Patient?_sort=-_lastUpdated&_count=20", "/Patient?_count=20"} {
		if next := u.get(path).link("next"); strings.Contains(next, "_cursor=") || !strings.Contains(next, "_offset=") {
			t.Errorf("%s: got next %s", path, next)
		}
	}
	u.moment(numbered("n", 45)...)
	link, status := sorted, 0
	for range 5 {
		a := u.do("GET", link, "")
		if status = a.status; status != http.StatusOK {
			break
		}
		link = u.bundle(a).link("next")
	}
	if status != http.StatusInternalServerError {
		t.Errorf("got status %d in a millisecond of more than a page", status)
	}
	u = start(t, with(fhirtest.Medplum(), func(p *fhirtest.Personality) { p.CursorStall = false }))
	u.moment(numbered("n", 45)...)
	if got, _ := u.pagesOf(sorted); len(got) != 45 {
		t.Errorf("got %d rows without the stall", len(got))
	}
}

func TestMedplumOffsetsEnd(t *testing.T) {
	u := start(t, fhirtest.Medplum())
	u.patients(1)
	for path, want := range map[string]int{"/Patient?_offset=10000": 200, "/Patient?_offset=10001": 400, "/Patient?_offset=-1": 400} {
		if got := u.do("GET", path, "").status; got != want {
			t.Errorf("%s: got %d, want %d", path, got, want)
		}
	}
}

func TestIBMWarnsOfShiftedPages(t *testing.T) {
	u := start(t, with(fhirtest.IBM(), func(p *fhirtest.Personality) { p.CommitLag = 0 }))
	u.patients(6)
	next := u.get("/Patient?_count=2").link("next")
	if b := u.follow(next); len(b.Entry) != 2 || b.ids(t) != "p3 p4" {
		t.Errorf("at rest: got %d entries, %s", len(b.Entry), b.ids(t))
	}
	if err := u.Delete("Patient", "p1"); err != nil {
		t.Fatal(err)
	}
	b := u.follow(next)
	if b.ids(t) != "p4 p5" || b.Entry[0].Search.Mode != "outcome" || !strings.Contains(string(b.Entry[0].Resource), `"warning"`) {
		t.Errorf("got %s without a warning", b.ids(t))
	}
}

func TestOpenMRSForgetsOldSearchesAndRunsPagesAgain(t *testing.T) {
	u := start(t, fhirtest.OpenMRS())
	u.patients(6)
	next := u.get("/Patient?_count=2").link("next")
	if got := u.follow(next).ids(t); got != "p3 p4" {
		t.Errorf("got %s", got)
	}
	if err := u.Delete("Patient", "p1"); err != nil {
		t.Fatal(err)
	}
	if got := u.follow(next).ids(t); got != "p4 p5" {
		t.Errorf("got %s after p1 is gone: the page was not run again", got)
	}
	for range 99 {
		u.get("/Patient?_count=2")
	}
	if got := u.do("GET", next, "").status; got != http.StatusOK {
		t.Errorf("got %d as one of 100 searches", got)
	}
	u.get("/Patient?_count=2")
	if got := u.do("GET", next, "").status; got != http.StatusGone {
		t.Errorf("got %d after 100 more searches, want 410", got)
	}
	for _, path := range []string{"/_history", "/Patient/_history", "/Patient/p2/_history"} {
		if got := u.do("GET", path, "").status; got != http.StatusMethodNotAllowed {
			t.Errorf("%s: got %d", path, got)
		}
	}
}
