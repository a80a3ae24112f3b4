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

// Ensure each type has pages of its own size: a server that sorts all rows of a search needs longer for the types that have many.
func TestPagesBesideUsersAreSizedByType(t *testing.T) {
	p := newPolite(&felt{here: true}, DefaultLiveSlowdown)
	for range 100 {
		for typ, search := range map[string]time.Duration{"Observation": 100 * time.Millisecond, "Claim": 4 * time.Millisecond} {
			bytes := p.page(typ).next()
			p.page(typ).add(bytes, search+time.Duration(bytes)*500*time.Nanosecond)
		}
	}
	if few, many := p.page("Claim").size, p.page("Observation").size; few < 35e3 || few > 45e3 || many < 180e3 || many > 220e3 {
		t.Errorf("pages of %.0f and %.0f bytes, want about 40,000 and 200,000", few, many)
	}
}

// Ensure a link that takes much longer than the page before counts as waiting, and one that takes as long as work.
func TestLinksThatLetWaitAreNoWork(t *testing.T) {
	l := newLimiter(1, nil)
	l.polite = newPolite(&felt{here: true}, DefaultLiveSlowdown)
	w := &walk{run: &run{Exporter: &Exporter{limiter: l}}}
	w.linkTook("", 50*time.Millisecond)
	w.linkTook("next", 90*time.Millisecond)
	if l.polite.idle != 0 {
		t.Errorf("%s of a quick link count as waiting", l.polite.idle)
	}
	w.linkTook("next", 600*time.Millisecond)
	if want := 420 * time.Millisecond; l.polite.idle != want {
		t.Errorf("%s of a link that let wait count as waiting, want %s", l.polite.idle, want)
	}
}
