package fhirtest_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

func TestPagesHoldEveryRowOnce(t *testing.T) {
	for _, query := range []string{"", "&_sort=_lastUpdated", "&_sort=-_lastUpdated", "&_sort=_id", "&_lastUpdated=ge2024-05-01T12:00:05Z"} {
		t.Run(query, func(t *testing.T) {
			each(t, func(t *testing.T, u *upstream, p fhirtest.Personality) {
				u.patients(9)
				if err := u.Transaction([][]byte{
					[]byte(`{"resourceType":"Patient","id":"q1"}`), []byte(`{"resourceType":"Patient","id":"q2"}`),
					[]byte(`{"resourceType":"Patient","id":"q3"}`), []byte(`{"resourceType":"Patient","id":"q4"}`),
				}); err != nil {
					t.Fatal(err)
				}
				want := strings.Fields(u.get("/Patient?_count=100" + query).ids(t))
				if p.Paging == fhirtest.CachedPages {
					u.clock.add(2 * time.Minute)
				}
				got, pages := u.crawl("/Patient?_count=3" + query)
				if !slices.Equal(got, want) || pages != (len(want)+2)/3 {
					t.Errorf("got %v on %d pages, want %v", got, pages, want)
				}
				posted := u.bundle(u.do("POST", "/Patient/_search", "_count=3"+query, form))
				rest, _ := u.crawl(u.rebased(posted.link("next")))
				if got := append(strings.Fields(posted.ids(t)), rest...); !slices.Equal(got, want) {
					t.Errorf("POST: got %v, want %v", got, want)
				}
			})
		})
	}
}

func TestFormOfNextLinks(t *testing.T) {
	for name, parts := range map[string][]string{
		"plain":     {"/fhir/Patient?", "_page=2", "_count=2"},
		"hapi":      {"/fhir?_getpages=", "&_getpagesoffset=2&_count=2&_bundletype=searchset"},
		"blaze":     {"/fhir/Patient/__page/"},
		"microsoft": {"http://internal.example/fhir/Patient?", "ct=", "_count=2"},
	} {
		for _, p := range personalities() {
			if p.Name != name {
				continue
			}
			u := start(t, p)
			u.patients(3)
			b := u.get("/Patient?_count=2")
			for _, part := range parts {
				if !strings.Contains(b.link("next"), part) {
					t.Errorf("%s: next %s lacks %s", name, b.link("next"), part)
				}
			}
			if name != "microsoft" && !strings.HasPrefix(b.link("next"), u.base) || !strings.HasPrefix(u.rebased(b.link("self")), u.base+"/Patient?") {
				t.Errorf("%s: next %s, self %s", name, b.link("next"), b.link("self"))
			}
			if !strings.HasSuffix(b.Entry[0].FullURL, "/fhir/Patient/p1") {
				t.Errorf("%s: fullUrl %s", name, b.Entry[0].FullURL)
			}
		}
	}
}

// Ensure that each product shows its own mixture of old and new rows when data change between two pages.
func TestWritesBetweenPages(t *testing.T) {
	for name, want := range map[string][]string{
		// p1 is gone, so p3 slips to the first page: lost. p4 was updated and p9 created.
		"plain": {"p1/1", "p2/1", "p4/2", "p9/1"},
		// The list is old, the bodies are new.
		"hapi": {"p1/1", "p2/1", "p3/1", "p4/2"},
		// All is old; version ids are transaction numbers.
		"blaze": {"p1/1", "p2/2", "p3/3", "p4/4"},
		// After p2 in time come p3, then the updated and new rows.
		"microsoft": {"p1/1", "p2/1", "p3/1", "p4/2", "p9/1"},
	} {
		for _, p := range personalities() {
			if p.Name != name {
				continue
			}
			u := start(t, p)
			u.patients(4)
			var got []string
			for link := "/Patient?_count=2"; link != ""; {
				b := u.get(link)
				for _, e := range b.Entry {
					h := headOf(t, e.Resource)
					got = append(got, h.ID+"/"+h.Meta.VersionID)
				}
				if link == "/Patient?_count=2" {
					if err := u.Delete("Patient", "p1"); err != nil {
						t.Fatal(err)
					}
					u.put(`{"resourceType":"Patient","id":"p4","active":true}`)
					u.clock.add(time.Second)
					u.put(`{"resourceType":"Patient","id":"p9"}`)
				}
				link = u.rebased(b.link("next"))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
	}
}

func TestPageLinksExpire(t *testing.T) {
	for _, p := range []fhirtest.Personality{fhirtest.HAPI(), fhirtest.Blaze()} {
		u := start(t, p)
		u.patients(3)
		next := u.get("/Patient?_count=2").link("next")
		u.clock.add(59 * time.Minute)
		if got := u.do("GET", next, "").status; got != http.StatusOK {
			t.Errorf("%s: got %d while alive", p.Name, got)
		}
		u.clock.add(61 * time.Minute)
		if got := u.do("GET", next, "").status; got != http.StatusGone {
			t.Errorf("%s: got %d, want 410", p.Name, got)
		}
	}
}

func TestPageLinksOfNobodyAreRefused(t *testing.T) {
	for name, path := range map[string]string{
		"plain": "/Patient?_page=0", "hapi": "?_getpages=nope&_getpagesoffset=0&_count=1", "blaze": "/Patient/__page/x.1.2", "microsoft": "/Patient?ct=!",
	} {
		for _, p := range personalities() {
			if p.Name != name {
				continue
			}
			u := start(t, p)
			if got := u.do("GET", path, "").status; got != http.StatusBadRequest && got != http.StatusGone {
				t.Errorf("%s: got %d", name, got)
			}
		}
	}
}

func TestMicrosoftReportsAClampedCount(t *testing.T) {
	u := start(t, fhirtest.Microsoft())
	u.patients(1)
	b := u.get("/Patient?_count=1001")
	if len(b.Entry) != 2 || b.Entry[0].Search.Mode != "outcome" || !strings.Contains(string(b.Entry[0].Resource), "information") {
		t.Errorf("got %d entries", len(b.Entry))
	}
	if got := len(u.get("/Patient?_count=1000").Entry); got != 1 {
		t.Errorf("got %d entries for the maximum", got)
	}
}

func TestBlazeHonoursForwardedHost(t *testing.T) {
	u := start(t, fhirtest.Blaze())
	u.patients(2)
	if got := u.get("/Patient?_count=1", "X-Forwarded-Host: public.example", "X-Forwarded-Proto: https").link("next"); !strings.HasPrefix(got, "https://public.example/fhir/Patient/") {
		t.Errorf("got %s", got)
	}
}
