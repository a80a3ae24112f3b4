package exporter

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Ensure pages beside users are quick on servers that read quickly, and large on those that need long to begin any page: there small
// ones would cost many times as much in all.
func TestPagesBesideUsersCostWhatTheirSearchCosts(t *testing.T) {
	for name, test := range map[string]struct {
		search, perKiB time.Duration
		least, most    int64 // KiB
	}{
		"reads at half a millisecond":      {4 * time.Millisecond, 500 * time.Microsecond, 35, 46},
		"searches for a fifth of a second": {200 * time.Millisecond, 500 * time.Microsecond, 350, 460},
		"searches for ten seconds":         {10 * time.Second, 500 * time.Microsecond, 1024, 1024},
		"reads at ten milliseconds":        {10 * time.Millisecond, 10 * time.Millisecond, 8, 8},
		"needs no time":                    {0, 0, 1024, 1024},
	} {
		t.Run(name, func(t *testing.T) {
			const seed = 7
			random := rand.New(rand.NewPCG(seed, seed))
			t.Logf("seed %d", seed)
			c := newPageCost()
			for range 200 {
				bytes := c.next()
				took := test.search + time.Duration(float64(bytes)/1024*float64(test.perKiB))
				c.add(bytes, time.Duration(float64(took)*(0.9+0.2*random.Float64())))
			}
			if got := int64(c.size) >> 10; got < test.least || got > test.most {
				t.Errorf("pages of %d KiB, want %d to %d", got, test.least, test.most)
			}
		})
	}
}
