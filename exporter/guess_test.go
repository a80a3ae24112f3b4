package exporter_test

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// spare leaves a right to spare, so that a page can be guessed.
func spare(c *exporter.Config) { c.PageSize, c.Workers = 10, 2 }

// guessedRows is less than would be cut into slices, which would take the right to spare.
const guessedRows = 30

// stamped puts rows step apart. A row ends with what more says of its time.
func stamped(t *testing.T, step time.Duration, more func(at time.Time) string) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		begin := time.Now().Add(-2 * time.Hour)
		for i := range guessedRows {
			at := begin.Add(time.Duration(i) * step)
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%d"%s}`, i, more(at)), at))
		}
	}
}

func nothingMore(time.Time) string { return "" }

// exported runs an export after one that has learned the server, and returns the requests for pages that were sent in it,
// also those that were given up on the way.
func exported(t *testing.T, edit func(*exporter.Config), fill func(*fhirtest.Server), before func(*bubble)) (pages []string) {
	t.Helper()
	inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(system()))
		b.events.freezeWhen(func(name string) bool {
			if strings.Contains(name, "/Observation?") && strings.Contains(name, "&_sort=_lastUpdated&_count=10") {
				pages = append(pages, name)
			}
			return false
		})
		if before != nil {
			before(b)
		}
		got := b.rows(b.finish(b.kickOff(system())))
		if b.link.handler == b.sample { // else the rows have been written anew
			same(t, got, b.snapshot())
		}
		if len(got) != guessedRows {
			t.Errorf("%d rows, want %d", len(got), guessedRows)
		}
	})
	return pages
}

// isObservations matches the pages of rows.
func isObservations(r *http.Request) bool {
	return isRowPage(r) && strings.HasSuffix(r.URL.Path, "/Observation")
}

// Ensure right guesses cost nothing: an export asks for as many pages with and without a right to spare.
func TestRightGuessesCostNothing(t *testing.T) {
	for name, step := range map[string]time.Duration{
		"seconds apart":     7 * time.Second,
		"some a second":     150 * time.Millisecond,
		"crowded seconds":   40 * time.Millisecond, // a page begins at a millisecond
		"crowded instances": time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fill := stamped(t, step, nothingMore)
			without, with := exported(t, smallPages, fill, nil), exported(t, spare, fill, nil)
			if len(without) < 4 || len(with) != len(without) {
				t.Errorf("%d pages without guesses, %d with them", len(without), len(with))
			}
		})
	}
}

// Ensure the next page is asked for before this one is read. Three rows of each come without their resource, and are read
// one by one: with a guess the next page does not wait for them.
func TestNextPageIsAskedForBeforeThisOneIsRead(t *testing.T) {
	const bareRows = 3
	pages, reads, early := 0, 0, 0
	pages = len(exported(t, spare, stamped(t, 7*time.Second, nothingMore), func(b *bubble) {
		b.link.handler = &altered{sample: b.sample, after: func(r *http.Request, page *bundle) int {
			if !isObservations(r) || len(page.entries()) < 10 {
				return 0
			}
			for _, entry := range page.entries()[:bareRows] {
				entry := entry.(map[string]any)
				resource := entry["resource"].(map[string]any)
				entry["was"] = resource["meta"] // so that the text has as many times as rows
				entry["fullUrl"] = "http://fhir.example/fhir/Observation/" + idOf(entry)
				delete(entry, "resource")
			}
			(*page)["changed"] = true
			return 0
		}}
		seen := 0
		var mu sync.Mutex // a page that was guessed is asked for beside the reads
		b.link.hook = func(r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case strings.Contains(r.URL.Path, "/Observation/o"):
				reads++
			case isObservations(r):
				if seen++; seen > 1 && reads < bareRows*(seen-1) {
					early++
				}
			}
		}
	}))
	if pages < 4 || early < pages-2 { // behind the last page nothing is guessed
		t.Errorf("%d of %d pages were asked for early, with %d single reads", early, pages, reads)
	}
}

// Ensure a wrong guess costs one request and no row, and that guesses then end for a while. A member of the rows names a
// time in the middle of the next page.
func TestWrongGuessCostsOneRequest(t *testing.T) {
	fill := stamped(t, 7*time.Second, func(at time.Time) string {
		return fmt.Sprintf(`,"text":{"lastUpdated":%q}`, at.Add(30*time.Second).UTC().Format(time.RFC3339))
	})
	without, with := exported(t, smallPages, fill, nil), exported(t, spare, fill, nil)
	if len(with) != len(without)+1 {
		t.Errorf("%d pages without guesses, %d with them, want one more", len(without), len(with))
	}
}

// users is how many requests of users are under way. Nothing is known of their waits.
type users struct{ atomic.Int64 }

func (u *users) Present() bool                { return u.Load() > 0 }
func (u *users) Beside(time.Time)             {}
func (u *users) Idle() <-chan struct{}        { return nil }
func (u *users) Slowdown() (float64, float64) { return 1, math.Inf(1) }
func (u *users) Forget(bool)                  {}

// Ensure a page that cannot be read behind a guess is asked for again, although users leave the export a single right: the
// guess must not hold it.
func TestGuessGivesWay(t *testing.T) {
	var busy users
	pages := 0
	const at = "1999-12-31T22:02:40" // the rows begin at 22:00:00, the second page at 22:01:03
	sent := exported(t, func(c *exporter.Config) { spare(c); c.Traffic = &busy }, stamped(t, 7*time.Second, nothingMore), func(b *bubble) {
		broken := `{"resourceType":"Bundle","type":"searchset","x":[` + strings.Repeat(`{"lastUpdated":"`+at+`Z"},`, 10) + `oops`
		b.sample.Fail(fhirtest.Fault{
			Status: http.StatusOK, Body: []byte(broken),
			Match: func(r *http.Request) bool {
				if isObservations(r) {
					pages++
				}
				return pages == 2
			},
		})
		seen := b.events.freezeOn
		b.events.freezeWhen(func(name string) bool {
			if strings.Contains(name, "ge"+at) {
				busy.Store(1)
			}
			return seen(name)
		})
	})
	guesses := slices.DeleteFunc(sent, func(page string) bool { return !strings.Contains(page, "ge"+at) })
	if busy.Load() != 1 || len(guesses) == 0 {
		t.Errorf("busy: %d, %d guesses from the broken page: nothing was tested", busy.Load(), len(guesses))
	}
}
