package exporter_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// killData has what the engine treats specially: sparse rows, a crowded second, more rows of one instant than a page.
func killData(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) {
		spread(t, s, "Observation", 70, 7*time.Second, time.Hour)
		spread(t, s, "Condition", 50, 20*time.Millisecond, time.Hour)
		burst(t, s, "Encounter", 90, time.Hour)
		spread(t, s, "Patient", 9, time.Minute, time.Hour)
	}
}

// Ensure an export gives the same wherever its process is ended, by SIGTERM or by kill -9, while data change.
func TestExportIsTheSameWhereverItIsKilled(t *testing.T) {
	small := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers = 20, 2<<10, 2 }
	for _, personality := range []fhirtest.Personality{fhirtest.HAPI(), fhirtest.Blaze()} {
		total := int64(0)
		inBubble(t, personality, small, killData(t), func(t *testing.T, b *bubble) {
			want := b.snapshot()
			writeBehind(t, b, 1)
			same(t, b.rows(b.finish(b.kickOff(system()))), want)
			total = b.events.n.Load()
		})
		step := max(1, total/int64(shorter(10)))
		for at := int64(1); at <= total; at += step {
			for _, hard := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/hard=%v", personality.Name, at, hard), func(t *testing.T) {
					t.Parallel()
					inBubble(t, personality, small, killData(t), func(t *testing.T, b *bubble) {
						want := b.snapshot()
						writeBehind(t, b, 1)
						reached := b.events.freeze(at)
						id := b.kickOff(system())
						select {
						case <-reached:
							b.resume(hard)
						case <-time.After(10 * patience): // the run ended before
						}
						same(t, b.rows(b.finish(id)), want)
					})
				})
			}
		}
	}
}

// writeBehind changes and creates a resource at each page of so many that are read, and deletes one now and then. More
// writes in one instant than pages of it fail the job: such an instant is never read whole.
func writeBehind(t *testing.T, b *bubble, every int64) {
	var n atomic.Int64
	b.link.hook = func(r *http.Request) {
		if r.URL.Query().Get("_sort") == "" || r.URL.Query().Get("_count") == "1" || strings.Contains(r.URL.Path, "_history") {
			return
		}
		i := n.Add(1)
		if i%every != 0 {
			return
		}
		if i%12 == 0 { // a deletion between count and page costs a pass
			_ = b.sample.Delete("Encounter", fmt.Sprintf("burst-%d", i*7%90)) // it may be gone already
		}
		for _, line := range []string{
			fmt.Sprintf(`{"resourceType":"Observation","id":"Obs-%d","language":"w%d"}`, i*11%70, i),
			fmt.Sprintf(`{"resourceType":"Condition","id":"new-%d"}`, i),
		} {
			if err := b.sample.Put([]byte(line)); err != nil {
				t.Error(err)
			}
		}
	}
}

// Ensure an export that bisects is the same wherever it is killed, also while it closes in on a broken row.
func TestKilledWhileBisecting(t *testing.T) {
	n := 0
	noSort := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true })
	for name, server := range map[string]fhirtest.Personality{"no sort": noSort, "sort": fhirtest.Plain()} {
		for _, at := range []int64{70, 80, 90, 110, 130, 150} {
			for _, broken := range []bool{false, true} {
				if n++; sparse(n) {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/broken=%v", name, at, broken), func(t *testing.T) {
					t.Parallel()
					fill := func(s *fhirtest.Server) {
						spread(t, s, "Observation", 200, 3*time.Second, time.Hour)
						burst(t, s, "Observation", 25, 90*time.Minute)
					}
					inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
						want := b.snapshot()
						if broken {
							b.link.handler = &altered{sample: b.link.handler, after: onRead("Observation", poison("Obs-117"))}
						}
						reached := b.events.freeze(at)
						id := b.kickOff(system())
						select {
						case <-reached:
							b.resume(true)
						case <-time.After(time.Hour):
							b.events.thaw()
						}
						job := b.finish(id)
						if !broken {
							same(t, b.rows(job), want)
							return
						}
						(&cell{code: "incomplete", holes: 1, rows: 1, written: 224, reason: "exception"}).failed(t, b, job)
					})
				})
			}
		}
	}
}
