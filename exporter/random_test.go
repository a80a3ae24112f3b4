package exporter_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

var (
	seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "seed of the random tests")
	runs = flag.Int("runs", 3, "random exports of each personality")
)

// Ensure an export is exact for random times of its rows, page sizes, workers, writes and moments of a crash.
func TestRandomExportsAreExact(t *testing.T) {
	n := 0
	t.Logf("go test ./exporter -run %s -seed %d", t.Name(), *seed)
	for _, personality := range personalities() {
		for run := range *runs {
			if n++; sparse(n) {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", personality.Name, run), func(t *testing.T) {
				t.Parallel()
				random := rand.New(rand.NewPCG(*seed, uint64(run)))
				// Drawn once: a file that was put before a restart keeps to the size that held then.
				pageSize, workers, fileBytes := 8+random.IntN(25), 1+random.IntN(4), int64(1+random.IntN(20))<<10
				edit := func(c *exporter.Config) { c.PageSize, c.Workers, c.MaxFileBytes = pageSize, workers, fileBytes }
				fill := func(s *fhirtest.Server) { randomRows(t, s, random) }
				inBubble(t, personality, edit, fill, func(t *testing.T, b *bubble) {
					want := b.snapshot()
					writeBehind(t, b, 12)
					hard, at := random.IntN(2) == 0, 1+random.Int64N(300)
					same(t, b.rows(b.dying(at, hard)), want)
				})
			})
		}
	}
}

// randomRows puts rows in clumps: apart by hours, by seconds, within a second, within a millisecond.
func randomRows(t *testing.T, s *fhirtest.Server, random *rand.Rand) {
	t.Helper()
	at := time.Now().Add(-48 * time.Hour)
	n := 0
	for n < 150+random.IntN(200) {
		at = at.Add(time.Duration(random.IntN(4000)) * time.Second / 2)
		step := []time.Duration{0, 0, time.Microsecond, 3 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}[random.IntN(6)]
		for range 1 + random.IntN(60) {
			typ := []string{"Observation", "Observation", "Condition", "Encounter"}[random.IntN(4)]
			if err := s.PutAt(fmt.Appendf(nil, `{"resourceType":%q,"id":"%s-%d"}`, typ, typ[:3], n), at); err != nil {
				t.Fatal(err)
			}
			n, at = n+1, at.Add(step)
		}
	}
}
