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
		"searches for a fifth of a second": {200 * time.Millisecond, 500 * time.Microsecond, 340, 460},
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

// Ensure the first link of a pass counts as sleep where it takes much longer than the page before, for a while at most, and no other does:
// a server that has become slow works.
func TestLinksThatLetWaitAreNoWork(t *testing.T) {
	l := newLimiter(1, nil)
	l.polite = newPolite(&felt{here: true}, DefaultLiveSlowdown)
	w := &walk{run: &run{Exporter: &Exporter{limiter: l}}}
	for _, pass := range []struct{ first, link, idle time.Duration }{
		{50 * time.Millisecond, 90 * time.Millisecond, 0},
		{50 * time.Millisecond, 550 * time.Millisecond, 450 * time.Millisecond},
		{50 * time.Millisecond, 10 * time.Second, linkSleep},
	} {
		l.polite.idle = 0
		w.linkTook("", pass.first)
		w.linkTook("next", pass.link)
		w.linkTook("next", 10*time.Second)
		if l.polite.idle != pass.idle {
			t.Errorf("behind a page of %s, %s of a link of %s count as sleep, want %s", pass.first, l.polite.idle, pass.link, pass.idle)
		}
	}
}
