package exporter_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// search is what was asked of the sample server: the parameters, in the address or in a form.
type search struct {
	url.Values
	form bool
}

// asked are the searches of a type that read rows in the order of time.
func (b *bubble) asked(typ string) []search {
	b.t.Helper()
	var searches []search
	for _, r := range b.sample.Requests() {
		raw := r.RawQuery
		if r.Form != "" {
			raw = r.Form
		}
		query, err := url.ParseQuery(raw)
		if err != nil {
			b.t.Fatal(err)
		}
		if strings.Contains(r.Path+"/", "/"+typ+"/") && !strings.Contains(r.Path, "_history") && query.Get("_sort") == "_lastUpdated" {
			searches = append(searches, search{query, r.Form != ""})
		}
	}
	return searches
}

// Ensure rows are read by time and not by the server's page links, and that ten times as many rows cost ten times as many
// requests: none of them is behind a growing offset.
func TestRowsAreReadWithoutPageLinks(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			cost := func(rows int) (pages int) {
				fill := func(s *fhirtest.Server) { spread(t, s, "Observation", rows, 3*time.Second, time.Hour) }
				inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
					same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
					for _, r := range b.sample.Requests() {
						if strings.Contains(r.RawQuery, "_page=") || strings.Contains(r.RawQuery, "_getpages=") || strings.Contains(r.RawQuery, "ct=") {
							if !strings.Contains(r.Path, "_history") {
								t.Errorf("a page link was followed: %s", r.RawQuery)
							}
						}
					}
					pages = len(b.asked("Observation"))
				})
				return pages
			}
			few, many := cost(200), cost(2000)
			if few < 20 || many > 15*few {
				t.Errorf("%d requests for 200 rows, %d for 2000", few, many)
			}
		})
	}
}

// Ensure the export of a Group of one patient costs what the patient has, not what the server has.
func TestSmallGroupCostsLittle(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			fill := clinic(t, 100, 20, group("g", member("Patient/p3")))
			inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
				want := ofPatients(t, b.snapshot(), "p3")
				b.finish(b.kickOff(groupOf("g", "Patient"))) // the probes are over
				b.sample.ResetRequests()
				same(t, b.rows(b.finish(b.kickOff(groupOf("g")))), want)
				searches := b.asked("Immunization")
				if len(searches) == 0 {
					t.Error("nothing was asked for")
				}
				for _, query := range searches {
					latest := query.Has("_elements") && strings.HasPrefix(query.Get("_lastUpdated"), "ge1999-12-31T23:59:") // the last minute
					if query.Get("patient") != "Patient/p3" && !latest {
						t.Errorf("more than the patient's rows are asked for: %s", query.Encode())
					}
				}
				if n := len(b.sample.Requests()); n > 220 { // three for each of 66 types: 2000 doses are 200 pages more
					t.Errorf("%d requests for a patient with 20 rows", n)
				}
			})
		})
	}
}

// Ensure a Group without members asks the server for nothing but itself, and the time: no search is made whose criterion
// would be empty.
func TestEmptyGroupSearchesNothing(t *testing.T) {
	ended := member("Patient/p1", `,"period":{"end":"1990-01-01"}`)
	for name, members := range map[string][]string{"no members": nil, "none any more": {ended}} {
		for _, personality := range personalities() {
			t.Run(name+"/"+personality.Name, func(t *testing.T) {
				t.Parallel()
				inBubble(t, personality, smallPages, clinic(t, 6, 4, group("g", members...), group("h", member("Patient/p2"))), func(t *testing.T, b *bubble) {
					b.finish(b.kickOff(groupOf("h"))) // the probes are over
					b.sample.ResetRequests()
					if got := b.rows(b.finish(b.kickOff(groupOf("g")))); len(got) > 0 {
						t.Errorf("%d resources of a Group without members", len(got))
					}
					asked := 0
					for _, r := range b.sample.Requests() {
						clock := r.RawQuery == "_count=1"
						if asked++; !clock && !strings.HasSuffix(r.Path, "/metadata") && !strings.HasPrefix(r.Path, "/fhir/Group/g") {
							t.Errorf("%s?%s was asked for", r.Path, r.RawQuery)
						}
					}
					if asked == 0 {
						t.Error("not even the Group was asked for")
					}
				})
			})
		}
	}
}

// Ensure no search names more ids than databases and addresses take, whatever the size of the Group and of its ids.
func TestListsAreBounded(t *testing.T) {
	for _, digits := range []int{4, 60} {
		t.Run(fmt.Sprint(digits), func(t *testing.T) {
			t.Parallel()
			var members, patients []string
			id := func(n int) string { return fmt.Sprintf("p%0*d", digits, n) }
			for n := range 500 {
				patients = append(patients, id(n))
				members = append(members, member("Patient/"+id(n)))
			}
			fill := func(s *fhirtest.Server) {
				at := time.Now().Add(-2 * time.Hour)
				for n := range 2000 { // a quarter of them are members
					must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":%q}`, id(n)), at),
						s.PutAt(dose("i"+id(n)[:digits], id(n)), at.Add(time.Duration(n)*time.Second)))
				}
				must(t, s.PutAt([]byte(group("g", members...)), at))
			}
			edit := func(c *exporter.Config) { smallPages(c); c.Strategy = exporter.StrategyLists }
			inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
				want := ofPatients(t, b.snapshot(), patients...)
				same(t, b.rows(b.finish(b.kickOff(groupOf("g", "Immunization", "Patient")))), want)
				lists := 0
				for _, query := range b.asked("Immunization") {
					list, most := query.Get("patient"), 200
					if query.form {
						most = 100
					}
					if ids := strings.Count(list, ",") + 1; ids > most || len(list) > 1900 && !query.form {
						t.Errorf("a list has %d ids and %d bytes (as a form: %v)", ids, len(list), query.form)
					} else if ids > 1 {
						lists++
					}
				}
				if lists < 3 {
					t.Errorf("%d lists, want several", lists)
				}
			})
		})
	}
}

// Ensure pages of large rows are asked for with fewer rows, so that a page stays about as large in bytes.
func TestPagesAreAskedForByTheirBytes(t *testing.T) {
	edit := func(c *exporter.Config) { c.PageSize, c.Workers = 1000, 1 }
	attachment := strings.Repeat("x", 10<<10)
	fill := func(s *fhirtest.Server) {
		for i := range 1200 {
			row := fmt.Appendf(nil, `{"resourceType":"DocumentReference","id":"d%d","description":%q}`, i, attachment)
			must(t, s.PutAt(row, time.Now().Add(-2*time.Hour+time.Duration(i)*time.Second)))
		}
	}
	inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
		same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
		large, rest := 0, 0
		for _, query := range b.asked("DocumentReference") {
			count, err := strconv.Atoi(query.Get("_count"))
			if err != nil {
				t.Fatal(err)
			}
			if count > 120 { // 1.2 MB
				large++
			} else {
				rest++
			}
		}
		if rest < 5 || large > 3 { // before a row was seen nothing is known of its size
			t.Errorf("%d pages of more than 1.2 MB and %d others", large, rest)
		}
	})
}

// Ensure a passing failure is repaired by one more request, and not by reading anything else again.
func TestOneFaultCostsOneRequest(t *testing.T) {
	cost := func(fault bool) (requests int) {
		inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
			b.finish(b.kickOff(system())) // the probes are over
			b.sample.ResetRequests()
			var pages atomic.Int64
			if fault {
				b.sample.Fail(fhirtest.Fault{Status: 503, Match: func(r *http.Request) bool { return isRowPage(r) && pages.Add(1) == 2 }})
			}
			same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
			if fault && pages.Load() < 2 {
				t.Error("the fault never came")
			}
			requests = len(b.asked("Observation"))
		})
		return requests
	}
	if calm, troubled := cost(false), cost(true); troubled != calm+1 {
		t.Errorf("%d requests without a fault, %d with one", calm, troubled)
	}
}
