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

// Ensure an export gives the same when its process is ended at each kind of point of its work.
func TestKilledAtEachKindOfPoint(t *testing.T) {
	n := 0
	has := strings.Contains
	for point, on := range map[string]func(name string) bool{
		"clock and capabilities":    func(name string) bool { return has(name, "/metadata") },
		"before the plan is stored": func(name string) bool { return has(name, "/VisionPrescription?") && has(name, "_summary=count") },
		"after the plan was stored": func(name string) bool { return has(name, "_sort=_lastUpdated") && has(name, "_count=20") },
		"between pages": func(name string) bool {
			return has(name, "/Observation?") && has(name, "_count=20") && has(name, "_lastUpdated=ge1999-12-31T22")
		},
		"before a file of a slice":    func(name string) bool { return has(name, "before put") && has(name, "Observation.1") },
		"after a file of a slice":     func(name string) bool { return has(name, "after put") && has(name, "Observation.1") },
		"after the second file":       func(name string) bool { return has(name, "after put") && has(name, "Observation.2") },
		"before the repair":           func(name string) bool { return has(name, "/Account/_history") },
		"within the repair":           func(name string) bool { return has(name, "/Observation/_history") },
		"after the repair was stored": func(name string) bool { return has(name, "/Patient/_history") },
		"before the seal":             func(name string) bool { return has(name, "before put") && has(name, "Patient.1") },
		"within the seal":             func(name string) bool { return has(name, "after put") && has(name, "Patient.1") },
		"before the manifest":         func(name string) bool { return has(name, "before put") && has(name, "manifest") },
		"before the job is complete":  func(name string) bool { return has(name, "after put") && has(name, "manifest") },
	} {
		for _, hard := range []bool{true, false} {
			if n++; sparse(n) {
				continue
			}
			t.Run(fmt.Sprintf("%s/hard=%v", point, hard), func(t *testing.T) {
				t.Parallel()
				small := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers, c.Gzip = 20, 2<<10, 1, hard }
				inBubble(t, fhirtest.HAPI(), small, killData(t), func(t *testing.T, b *bubble) {
					want := b.snapshot()
					writeBehind(t, b, 1)
					reached := b.events.freezeWhen(on)
					id := b.kickOff(system())
					select {
					case <-reached:
						b.resume(hard)
					case <-time.After(patience * 10):
						t.Fatal("the point is never reached")
					}
					same(t, b.rows(b.finish(id)), want)
				})
			})
		}
	}
}

// Ensure a clock of the server that is wrong, or that jumps while the export runs, gives the rows of T all the same. One
// that goes back stamps new rows as old, like a commit later than the settle pause: the export may fail then, but
// not be wrong.
func TestServerClockThatJumps(t *testing.T) {
	for name, jump := range map[string]struct {
		before, after time.Duration
	}{
		"hours behind":    {before: -5 * time.Hour, after: -5 * time.Hour},
		"hours ahead":     {before: 5 * time.Hour, after: 5 * time.Hour},
		"jumps forward":   {after: time.Hour},
		"goes back a bit": {after: -30 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ahead atomic.Int64
			ahead.Store(int64(jump.before))
			fill := func(s *fhirtest.Server) {
				s.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
				spread(t, s, "Observation", 60, 7*time.Second, 6*time.Hour)
			}
			inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
				pages := 0
				b.link.hook = func(r *http.Request) {
					if !isRowPage(r) {
						return
					}
					if pages++; pages == 3 {
						ahead.Store(int64(jump.after))
						for _, id := range []string{"Obs-1", "Obs-59"} { // read already, and not yet
							if err := rewrite(b.sample, id, pages); err != nil {
								t.Error(err)
							}
						}
					}
				}
				job := b.finish(b.kickOff(system()))
				same(t, b.rows(job), (&ledger{b.sample}).asOf(job.TransactionTime))
			})
		})
	}
}
