package fhirtest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// past makes: p1 v1, p1 v2, o1 v1, p2 v1, p1 deleted; a second apart.
func (u *upstream) past() {
	u.t.Helper()
	for _, resource := range []string{
		`{"resourceType":"Patient","id":"p1"}`, `{"resourceType":"Patient","id":"p1","active":true}`,
		`{"resourceType":"Observation","id":"o1"}`, `{"resourceType":"Patient","id":"p2"}`,
	} {
		u.put("%s", resource)
		u.clock.add(time.Second)
	}
	if err := u.Delete("Patient", "p1"); err != nil {
		u.t.Fatal(err)
	}
}

// events lists a history as METHOD fullUrl-tail, following its pages.
func (u *upstream) events(path string) []string {
	u.t.Helper()
	var events []string
	for link := path; link != ""; {
		b := u.get(link)
		if b.Type != "history" {
			u.t.Fatalf("got type %s", b.Type)
		}
		for _, e := range b.Entry {
			method := e.Request.Method
			if method == "POST" {
				method = "PUT"
			}
			events = append(events, method+e.FullURL[strings.Index(e.FullURL, "/fhir/")+5:])
		}
		link = u.rebased(b.link("next"))
	}
	return events
}

func TestHistoryIsNewestFirstOnEveryLevel(t *testing.T) {
	for path, want := range map[string][]string{
		"/_history":            {"DELETE/Patient/p1", "PUT/Patient/p2", "PUT/Observation/o1", "PUT/Patient/p1", "PUT/Patient/p1"},
		"/Patient/_history":    {"DELETE/Patient/p1", "PUT/Patient/p2", "PUT/Patient/p1", "PUT/Patient/p1"},
		"/Patient/p1/_history": {"DELETE/Patient/p1", "PUT/Patient/p1", "PUT/Patient/p1"},
		"/Encounter/_history":  nil,
		"/Patient/_history?_since=2024-05-01T12:00:01Z":           {"DELETE/Patient/p1", "PUT/Patient/p2", "PUT/Patient/p1"},
		"/Patient/_history?_since=2024-05-01T12:00:04Z":           {"DELETE/Patient/p1"},
		"/_history?_since=2199-01-01T00:00:00Z":                   nil,
		"/Patient/_history?_since=2024-05-01T14:00:03.25%2B02:00": {"DELETE/Patient/p1", "PUT/Patient/p2"},
	} {
		t.Run(path, func(t *testing.T) {
			each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
				u.past()
				if got := u.events(path); !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
				sep := "?"
				if strings.Contains(path, "?") {
					sep = "&"
				}
				if got := u.events(path + sep + "_count=2"); !slices.Equal(got, want) {
					t.Errorf("paged: got %v, want %v", got, want)
				}
			})
		})
	}
}

func TestDeletionInHistory(t *testing.T) {
	for _, test := range []struct {
		name, url, modified string
		resource            bool
	}{
		{"plain", "Patient/p1", "2024-05-01T12:00:04.250Z", false},
		{"hapi", "Patient/p1/_history/3", "", false},
		{"blaze", "Patient/p1", "2024-05-01T12:00:04Z", false},
		{"microsoft", "Patient/p1", "2024-05-01T12:00:04.250+00:00", true},
	} {
		for _, p := range personalities() {
			if p.Name != test.name {
				continue
			}
			u := start(t, p)
			u.past()
			e := u.get("/Patient/_history").Entry[0]
			got := fmt.Sprint(e.Request.Method, " ", e.Request.URL, " ", e.Response.LastModified, " ", e.Resource != nil)
			if want := fmt.Sprint("DELETE ", test.url, " ", test.modified, " ", test.resource); got != want {
				t.Errorf("%s: got %s, want %s", test.name, got, want)
			}
			if test.resource && headOf(t, e.Resource).ID != "p1" {
				t.Errorf("%s: stub %s", test.name, e.Resource)
			}
		}
	}
}

func TestVersionsCanBeRead(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, p fhirtest.Personality) {
		u.past()
		versions, gone := []string{"1", "2"}, "3"
		if p.TransactionVersions {
			gone = "5"
		}
		for _, v := range versions {
			a := u.do("GET", "/Patient/p1/_history/"+v, "")
			if a.status != 200 || headOf(t, a.body).Meta.VersionID != v {
				t.Errorf("version %s: got %d", v, a.status)
			}
		}
		if got := u.do("GET", "/Patient/p1/_history/"+gone, "").status; got != 410 {
			t.Errorf("deletion: got %d", got)
		}
		if got := u.do("GET", "/Patient/nobody/_history", "").status; got != 404 {
			t.Errorf("unknown: got %d", got)
		}
		if got := u.get("/Patient?_sort=_id").ids(t); got != "p2" {
			t.Errorf("search after deletion: got %q", got)
		}
	})
}

func TestHAPIMakesNoVersionOfNoChange(t *testing.T) {
	for p, want := range map[string]string{"hapi": "1", "plain": "2"} {
		u := start(t, personalities()[map[string]int{"plain": 0, "hapi": 1}[p]])
		u.put(`{"resourceType":"Basic","id":"a","x":1}`)
		u.clock.add(time.Second)
		u.put(`{"resourceType":"Basic","id":"a","x":1}`)
		if got := headOf(t, u.Resources("Basic")[0]).Meta.VersionID; got != want {
			t.Errorf("%s: got version %s, want %s", p, got, want)
		}
	}
	u := start(t, fhirtest.HAPI())
	u.put(`{"resourceType":"Basic","id":"a"}`)
	if got := u.get("/Basic/_history").Entry[0].Request.Method; got != "POST" {
		t.Errorf("first version: got %s", got)
	}
}
