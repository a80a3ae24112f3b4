package exporter_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// settledLateMayFail tells that an export may fail, instead of being exact, when a write was shown only after the settle
// pause.
const settledLateMayFail = false

// chaosRuns is how many random exports are made, and chaosSeed the seed of the first one; each has the next number.
func chaosRuns(t *testing.T) (runs int, first uint64) {
	t.Helper()
	runs, first = 20, uint64(time.Now().UnixNano())
	for name, set := range map[string]func(uint64){
		"CHAOS_RUNS": func(n uint64) { runs = int(n) },
		"CHAOS_SEED": func(n uint64) { first = n },
	} {
		if value := os.Getenv(name); value != "" {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				t.Fatalf("%s is no number", name)
			}
			set(n)
		}
	}
	return runs, first
}

// product is a server that is exported under chaos.
type product struct {
	fhirtest.Personality
	// inexact tells that no client could read it exactly while data change: its export has to say so, unless it is exact by chance. weak tells that it
	// can be read exactly only when it is left alone for a while: its export may fail as incomplete instead.
	inexact, weak bool
}

// products are the servers of the chaos suite.
func products() []product {
	var all []product
	for _, personality := range personalities() {
		all = append(all, product{Personality: personality})
	}
	odd := func(name string, base fhirtest.Personality, edit func(*fhirtest.Personality)) fhirtest.Personality {
		base.Name = name
		edit(&base)
		return base
	}
	return append(all,
		product{Personality: odd("clamped", fhirtest.HAPI(), func(p *fhirtest.Personality) { p.MaxCount = 7 })},
		product{Personality: odd("silent", fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoSummaryCount = true }), inexact: true},
		product{Personality: odd("forgetful", fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true }), inexact: true},
		product{Personality: odd("unsorted", fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true }), weak: true},
		product{Personality: odd("deaf", fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreEverything = true }), inexact: true},
	)
}

// chaos is one random export: a server, what is asked of it, and what happens meanwhile.
type chaos struct {
	product
	knobs
	random   *rand.Rand
	kickoff  state.Kickoff
	pageSize int
	workers  int
	fileSize int64
	settle   time.Duration
	// killAt is the number of the event at which the process is ended, 0 for none; hard is kill -9.
	killAt int64
	hard   bool
}

// drawChaos draws an export from its seed. Seeds in a row go round the products.
func drawChaos(seed uint64) *chaos {
	random := rand.New(rand.NewPCG(seed, 0x6368616f73))
	all := products()
	c := &chaos{
		product: all[seed%uint64(len(all))], random: random,
		kickoff:  state.Kickoff{Level: []state.Level{state.System, state.Patient, state.Group}[random.IntN(3)], Base: "http://public/fhir"},
		pageSize: 8 + random.IntN(25), workers: 1 + random.IntN(4), fileSize: int64(1+random.IntN(20)) << 10,
		settle: time.Duration(1+random.IntN(4)) * time.Second,
		hard:   random.IntN(2) == 0,
	}
	if c.kickoff.Level == state.Group {
		c.kickoff.Group = "g"
	}
	if random.IntN(4) == 0 {
		c.kickoff.Types = []string{"Condition", "Observation", "Patient"}
	}
	if random.IntN(4) == 0 {
		c.kickoff.Since = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Duration(random.Int64N(int64(48 * time.Hour)))).Truncate(time.Millisecond)
	}
	if random.IntN(3) == 0 {
		c.killAt = 1 + random.Int64N(300)
	}
	c.knobs = knobs{
		every: []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second}[random.IntN(3)],
		burst: []int{2, 10, 40}[random.IntN(3)], bundles: random.IntN(20),
		deletes: random.IntN(30), returns: random.IntN(10), groups: random.IntN(4), ahead: random.IntN(40),
	}
	if random.IntN(2) == 0 { // commits in time, or later than the settle pause
		c.late, c.lag = 20, []time.Duration{c.settle, 3 * c.settle}[random.IntN(2)]
	}
	return c
}

// Ensure an export is the state at T, or says that it is not, whatever is written while it runs.
func TestChaos(t *testing.T) {
	runs, first := chaosRuns(t)
	t.Logf("CHAOS_SEED=%d CHAOS_RUNS=%d go test ./exporter -run %s", first, runs, t.Name())
	for run := range uint64(runs) {
		seed := first + run
		c := drawChaos(seed)
		t.Run(fmt.Sprintf("%s/%s/%d", c.Name, c.kickoff.Level, seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("CHAOS_SEED=%d CHAOS_RUNS=1: %s, %+v, %+v", seed, c.Name, c.kickoff, c.knobs)
			c.run(t)
		})
	}
}

func (c *chaos) run(t *testing.T) {
	edit := func(cfg *exporter.Config) {
		cfg.PageSize, cfg.Workers, cfg.MaxFileBytes, cfg.Settle = c.pageSize, c.workers, c.fileSize, c.settle
	}
	var w *writer
	fill := func(s *fhirtest.Server) {
		w = newWriter(t, s, c.Personality, c.random, c.knobs)
		w.fill()
	}
	inBubble(t, c.Personality, edit, fill, func(t *testing.T, b *bubble) {
		b.link.hook = w.overtake
		stop := w.start()
		defer stop() // also when the test gives up
		<-time.After(15 * time.Second)
		var reached <-chan struct{}
		if c.killAt > 0 {
			reached = b.events.freeze(c.killAt)
		}
		id := b.kickOff(c.kickoff)
		select {
		case <-reached:
			b.resume(c.hard)
		case <-time.After(2 * time.Minute): // the run ended before
		}
		job := b.finish(id)
		stop()
		c.judge(t, b, w, job)
	})
}

// judge compares an export with the truth.
func (c *chaos) judge(t *testing.T, b *bubble, w *writer, job *state.Job) {
	t.Helper()
	late := w.shownAfter(job.TransactionTime, job.TransactionTime.Add(c.settle))
	switch {
	case c.inexact && job.Status == state.Failed:
		return
	case c.inexact && len(job.Issues) > 0:
		b.rows(job)
		return
	case (c.weak || settledLateMayFail && len(late) > 0) && job.Status == state.Failed && job.Failure.Code == "incomplete":
		return
	}
	got, want := b.rows(job), w.expected(t, job, everybody())
	// What is shown after the last row was read may be shown after the history was read, and then nobody can know it.
	for _, key := range w.shownAfter(job.TransactionTime, time.Unix(0, w.lastPage.Load())) {
		delete(got, key)
		delete(want, key)
	}
	same(t, got, want)
	for key := range w.versions {
		if got[key] != want[key] {
			t.Logf("%s: %s", key, w.story(key, job.TransactionTime))
		}
	}
}
