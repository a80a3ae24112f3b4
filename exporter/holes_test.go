package exporter_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure a row that shifts into a page that was read already is not lost, although a row came for the one that went and
// the counts agree.
func TestBalancedWritesBetweenServerPages(t *testing.T) {
	for name, edit := range map[string]func(*fhirtest.Personality){
		"no sort":         func(p *fhirtest.Personality) { p.IgnoreSort = true },
		"no lastUpdated":  func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true },
		"no sort, capped": func(p *fhirtest.Personality) { p.IgnoreSort, p.MaxCount = true, 7 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fill := func(s *fhirtest.Server) { spread(t, s, "Observation", 60, time.Second, time.Hour) }
			inBubble(t, with(fhirtest.Plain(), edit), smallPages, fill, func(t *testing.T, b *bubble) {
				want := b.snapshot()
				written, windows := false, 0
				b.link.hook = func(r *http.Request) {
					query := r.URL.Query()
					if query.Has("_count") && len(query["_lastUpdated"]) == 2 && !query.Has("_id") {
						windows++ // where the bounds are honoured, no next link is followed
					}
					if written || query.Get("_page") != "3" && windows < 12 {
						return
					}
					written = true
					err := b.sample.Delete("Observation", "Obs-0")
					if err := errors.Join(err, b.sample.Put([]byte(`{"resourceType":"Observation","id":"zzz"}`))); err != nil {
						t.Error(err)
					}
				}
				got := b.rows(b.finish(b.kickOff(system())))
				if !written {
					t.Fatal("neither a third page nor a twelfth window was asked for")
				}
				same(t, got, want)
			})
		})
	}
}

// Ensure lists are not trusted for a reference that repeats: a server that has not indexed the one to a Patient who came
// later still counts the row as having the parameter, for its other reference.
func TestRepeatingReferenceToAPatientWhoCameLater(t *testing.T) {
	fill := func(s *fhirtest.Server) {
		put := func(ago time.Duration, format string, args ...any) {
			if err := s.PutAt(fmt.Appendf(nil, format, args...), time.Now().Add(-ago)); err != nil {
				t.Fatal(err)
			}
		}
		put(3*time.Hour, `{"resourceType":"Practitioner","id":"dr"}`)
		for i := range 600 {
			if i == 300 {
				for p := range 20 {
					put(2*time.Hour, `{"resourceType":"Patient","id":"p%d"}`, p)
				}
			}
			put(2*time.Hour-time.Duration(i)*3*time.Second, `{"resourceType":"Appointment","id":"a%d","participant":[`+
				`{"actor":{"reference":"Practitioner/dr"}},{"actor":{"reference":"Patient/p%d"}}]}`, i, i%20)
		}
		put(time.Minute, "%s", group("g", member("Patient/p3"), member("Patient/p7")))
	}
	inBubble(t, fhirtest.HAPI(), smallPages, fill, func(t *testing.T, b *bubble) {
		want := ofPatients(t, b.snapshot(), "p3", "p7")
		same(t, b.rows(b.finish(b.kickOff(groupOf("g", "Appointment", "Patient")))), want)
	})
}

// Ensure the members are those of the Group as of T, although it is changed before it is read.
func TestGroupChangedAfterTheTransactionTime(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			fill := clinic(t, 6, 4, group("g", member("Patient/p1"), member("Group/h")), group("h", member("Patient/p4")))
			inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
				want := ofPatients(t, b.snapshot(), "p1", "p4")
				changed := false
				b.link.hook = func(r *http.Request) {
					if changed || !strings.HasSuffix(r.URL.Path, "/Group/g") {
						return
					}
					changed = true
					err := b.sample.Put([]byte(group("g", member("Patient/p2"), member("Group/h"))))
					if err := errors.Join(err, b.sample.Put([]byte(group("h", member("Patient/p5"))))); err != nil {
						t.Error(err)
					}
				}
				same(t, b.rows(b.finish(b.kickOff(groupOf("g")))), want)
			})
		})
	}
}

// Ensure a nested Group that does not exist has no members, as a Patient who does not has no rows.
func TestNestedGroupThatIsNotThere(t *testing.T) {
	fill := clinic(t, 6, 4, group("g", member("Patient/p1"), member("Group/nowhere")))
	inBubble(t, fhirtest.HAPI(), smallPages, fill, func(t *testing.T, b *bubble) {
		want := ofPatients(t, b.snapshot(), "p1")
		same(t, b.rows(b.finish(b.kickOff(groupOf("g")))), want)
	})
}

// Ensure a row whose deletion becomes visible too late is taken out also where deletions carry no time.
func TestUndatedDeletionSeenTooLateIsTakenOut(t *testing.T) {
	inBubble(t, fhirtest.HAPI(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		clock, pages := b.sample.Now, 0
		b.link.hook = func(r *http.Request) {
			if !isRowPage(r) {
				return
			}
			if pages++; pages != 3 {
				return
			}
			jobs, err := b.store.List(t.Context())
			if err != nil {
				t.Error(err)
			}
			b.sample.Now = func() time.Time { return jobs[0].TransactionTime.Add(-time.Second) }
			if err := b.sample.Delete("Observation", "Obs-0"); err != nil {
				t.Error(err)
			}
			b.sample.Now = clock
		}
		lateIsTakenOut(t, b, b.finish(b.kickOff(system())))
	})
}

// Ensure a crash between the end of a job and the removal of its spool leaves no health data on the disk.
func TestSpoolOfAnEndedJobGoesWithTheNextStart(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		id := b.kickOff(system())
		b.finish(id)
		b.stop()
		left := filepath.Join(b.folder, "spool", id)
		if err := os.MkdirAll(left, 0o700); err != nil {
			t.Fatal(err)
		}
		b.start()
		synctest.Wait()
		if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the spool is still there: %v", err)
		}
	})
}

// Ensure a row that the server leaves out is missed although another one has left its window since it was read, so that the server
// counts no more than was met.
func TestHoleBehindARowThatHasLeft(t *testing.T) {
	var sample *fhirtest.Server
	hide, changed := without("Obs-17"), false
	c := cell{
		server: fhirtest.Plain(), kickoff: ofObservations(), code: "incomplete", holes: 1, rows: 1, written: 29, reason: "incomplete",
		fill: func(t *testing.T, s *fhirtest.Server) {
			sample = s
			thirtyRows(t)(s)
		},
		after: func(r *http.Request, page *bundle) int {
			if !changed && observations(r) && page.has("Obs-3") {
				changed = true
				must(t, rewrite(sample, "Obs-3", 1))
			}
			return hide(r, page)
		},
	}
	t.Run("plain", c.run)
}
