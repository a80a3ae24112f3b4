package exporter_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// crowd are users who are away for a third of a second every two, and of whom one waits half of the time.
type crowd struct{}

func (crowd) Present() bool                { return time.Now().UnixMilli()/333%6 != 0 }
func (crowd) Beside(time.Time)             {}
func (crowd) Slowdown() (float64, float64) { return 1, math.Inf(1) }
func (crowd) Forget(bool)                  {}

func (crowd) Idle() <-chan struct{} {
	now := time.Now()
	idle := now.Truncate(20 * time.Millisecond).Add(10 * time.Millisecond)
	if !now.Before(idle) {
		return nil
	}
	closed := make(chan struct{})
	time.AfterFunc(idle.Sub(now), func() { close(closed) })
	return closed
}

// Ensure an export is exact whose pages are small while there are users, on every server: of rows far apart, and of more in one moment
// than such a page holds, also over a crash.
func TestExportsBesideUsersAreExact(t *testing.T) {
	t.Logf("go test ./exporter -run %s -seed %d", t.Name(), *seed)
	var small atomic.Int64
	t.Cleanup(func() {
		if t.Logf("%d pages were small", small.Load()); small.Load() < 20 {
			t.Errorf("%d pages were small", small.Load())
		}
	})
	for n, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(*seed, uint64(n)))
			pageSize := 60 + random.IntN(200)
			edit := func(c *exporter.Config) { c.PageSize, c.Workers, c.Traffic = pageSize, 2, crowd{} }
			inBubble(t, personality, edit, func(s *fhirtest.Server) { largeRows(t, s, random) }, func(t *testing.T, b *bubble) {
				b.link.hook = func(r *http.Request) { // such a server is slower for larger pages
					if query := r.URL.Query(); query.Get("_sort") == "_lastUpdated" {
						count, _ := strconv.Atoi(query.Get("_count"))
						time.Sleep(time.Duration(count) * 5 * time.Millisecond)
						if count >= 10 && 2*count < pageSize {
							small.Add(1)
						}
					}
				}
				want := b.snapshot()
				same(t, b.rows(b.dying(1+random.Int64N(300), random.IntN(2) == 0)), want)
			})
		})
	}
}

// largeRows puts rows of four kilobytes in clumps, some of them larger than a small page within one moment.
func largeRows(t *testing.T, s *fhirtest.Server, random *rand.Rand) {
	t.Helper()
	at := time.Now().Add(-48 * time.Hour)
	text := strings.Repeat("x", 4<<10)
	for n := 0; n < 500; {
		at = at.Add(time.Duration(random.IntN(4000)) * time.Second / 2)
		step := []time.Duration{0, time.Microsecond, 3 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}[random.IntN(5)]
		for range 1 + random.IntN([]int{40, 40, 40, 200}[random.IntN(4)]) {
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%d","note":[{"text":%q}]}`, n, text), at))
			n, at = n+1, at.Add(step)
		}
	}
}

// present are users who are there all the time and never wait.
type present struct{ crowd }

func (present) Present() bool         { return true }
func (present) Idle() <-chan struct{} { return nil }

// Ensure beside users one page is as large as a moment with many rows needs, which the server counts, and the next ones are small again.
func TestMomentsAreCountedBesideUsers(t *testing.T) {
	const inMoment, small = 45, 25
	edit := func(c *exporter.Config) { c.PageSize, c.Workers, c.Traffic = 200, 1, present{} }
	fill := func(s *fhirtest.Server) {
		at, text := time.Now().Add(-48*time.Hour), strings.Repeat("x", 4<<10)
		for n := range 400 {
			if n <= 200 || n >= 200+inMoment {
				at = at.Add(time.Minute)
			}
			must(t, s.PutAt(fmt.Appendf(nil, `{"resourceType":"Observation","id":"o%d","note":[{"text":%q}]}`, n, text), at))
		}
	}
	inBubble(t, fhirtest.HAPI(), edit, fill, func(t *testing.T, b *bubble) {
		var asked []int
		b.link.hook = func(r *http.Request) {
			if query := r.URL.Query(); query.Get("_sort") == "_lastUpdated" && strings.HasSuffix(r.URL.Path, "/Observation") {
				count, _ := strconv.Atoi(query.Get("_count"))
				time.Sleep(time.Duration(count) * 50 * time.Millisecond) // it is slower for larger pages
				asked = append(asked, count)
			}
		}
		want := b.snapshot()
		same(t, b.rows(b.finish(b.kickOff(system()))), want)
		large := slices.Index(asked, inMoment+1)
		if large < 1 || large+1 == len(asked) || asked[large-1] > small || asked[large+1] > small {
			t.Errorf("pages of %v rows, want one of %d, before and behind it at most %d", asked, inMoment+1, small)
		}
	})
}
