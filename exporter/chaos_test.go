package exporter_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// chaosRuns is how many random exports are made, and chaosSeed the seed of the first one; each has the next number.
func chaosRuns(t *testing.T) (runs int, first uint64) {
	t.Helper()
	runs, first = shorter(len(products())), uint64(time.Now().UnixNano())
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
	gzip   bool
	// pageRows is how many rows make a manifest page.
	pageRows int64
	// takes is how long a request takes.
	takes time.Duration
}

// drawChaos draws an export from its seed. Seeds in a row go round the products.
func drawChaos(seed uint64) *chaos {
	random := rand.New(rand.NewPCG(seed, 0x6368616f73))
	all := products()
	c := &chaos{
		product: all[seed%uint64(len(all))], random: random,
		kickoff:  kickoffOf([]state.Level{state.System, state.Patient, state.Group}[random.IntN(3)]),
		pageSize: 8 + random.IntN(25), workers: 1 + random.IntN(4), fileSize: int64(1+random.IntN(20)) << 10,
		hard: random.IntN(2) == 0, gzip: seed/uint64(len(all))%2 == 1,
	}
	switch {
	case c.promise == refused && random.IntN(4) > 0:
		c.kickoff.Types = askable
	case random.IntN(4) == 0:
		c.kickoff.Types = []string{"Condition", "Observation", "Patient"}
	}
	if random.IntN(4) == 0 {
		c.kickoff.Since = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-time.Duration(random.Int64N(int64(48 * time.Hour)))).Truncate(time.Millisecond)
	}
	c.narrow()
	if random.IntN(3) == 0 {
		c.kickoff.Elements = [][]string{{"id"}, {"subject", "Patient.photo"}, {"Observation.language", "Patient.gender"}, {"language"}}[random.IntN(4)]
	}
	if random.IntN(4) == 0 {
		c.kickoff.OrganizeBy = state.Organizable[random.IntN(len(state.Organizable))]
	}
	if random.IntN(4) == 0 {
		c.kickoff.MinFileBytes, c.kickoff.MaxFileBytes = random.Int64N(1<<10), int64(1+random.IntN(8))<<10
	}
	if random.IntN(3) == 0 {
		c.kickoff.PartialManifests, c.pageRows = true, 1+random.Int64N(60)
	}
	requests := int64(150)
	if c.takes = []time.Duration{latency, latency, time.Second}[random.IntN(3)]; random.IntN(8) == 0 {
		c.Types, requests = fhirtest.AllTypes(), 300
	}
	if random.IntN(3) == 0 {
		c.killAt = 1 + random.Int64N(requests)
	}
	c.knobs = knobs{
		every: []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, time.Second}[random.IntN(3)],
		burst: []int{2, 10, 40}[random.IntN(3)], bundles: random.IntN(20),
		deletes: random.IntN(30), returns: random.IntN(10), groups: random.IntN(4), ahead: random.IntN(40),
	}
	c.setPace()
	// Blocks hold a Provenance by what it refers to; where not every type can be asked for it makes the export fail.
	if c.kickoff.OrganizeBy == "" && c.promise != refused && random.IntN(4) == 0 {
		c.provenance, c.kickoff.Associated = true, [][]string{{latest}, {relevant}, {latest, relevant}}[random.IntN(3)]
	}
	return c
}

// narrow draws the parameters that narrow an export. Most of the Patients that are named exist, and most moments lie before T.
func (c *chaos) narrow() {
	if c.random.IntN(4) == 0 {
		c.kickoff.Until = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(c.random.Int64N(int64(30 * time.Second))))
		if c.random.IntN(3) == 0 {
			c.kickoff.Until = c.kickoff.Until.Add(-time.Duration(c.random.Int64N(int64(48 * time.Hour))))
		}
		if c.random.IntN(2) == 0 {
			c.kickoff.Until = c.kickoff.Until.Truncate(time.Millisecond)
		}
		if !c.kickoff.Until.After(c.kickoff.Since) {
			c.kickoff.Since = time.Time{}
		}
	}
	for range []int{0, 0, 0, 1, 1, 2}[c.random.IntN(6)] {
		c.kickoff.Filters = append(c.kickoff.Filters, []state.TypeFilter{
			{Type: "Observation", Query: "status=final"},
			{Type: "Observation", Query: "status=final,amended"},
			{Type: "Observation", Query: "subject=Patient/p1,Patient/p2"},
			{Type: "Encounter", Query: "status=cancelled"},
			{Type: "Patient", Query: "gender=female"},
		}[c.random.IntN(5)])
	}
	if named := c.kickoff.Types; len(named) > 0 {
		c.kickoff.Filters = slices.DeleteFunc(c.kickoff.Filters, func(f state.TypeFilter) bool { return !slices.Contains(named, f.Type) })
	}
	if c.kickoff.Level != state.System && c.random.IntN(4) == 0 {
		for range 1 + c.random.IntN(3) {
			c.kickoff.Patients = append(c.kickoff.Patients, fmt.Sprintf("p%d", c.random.IntN(population-2)))
		}
		slices.Sort(c.kickoff.Patients)
		c.kickoff.Patients = slices.Compact(c.kickoff.Patients)
	}
}

// setPace chooses the settle pause, how late commits are: in time for it, or not; and whether histories lag.
func (c *chaos) setPace() {
	c.settle = time.Duration(1+c.random.IntN(4)) * time.Second
	if c.pause > 0 { // as the probe says; the writer has to last over it
		c.settle, c.every = c.pause, max(c.every, c.pause/100)
	}
	if c.random.IntN(2) == 0 {
		c.late, c.lag = 20, []time.Duration{c.settle, min(3*c.settle, c.settle+time.Minute), 55 * time.Second}[c.random.IntN(3)]
	}
	if c.random.IntN(6) == 0 {
		c.HistoryLag = []time.Duration{300 * time.Millisecond, 3 * time.Second, 40 * time.Second}[c.random.IntN(3)]
	}
}

// Ensure an export is the state at T, or says that it is not, whatever is written while it runs.
func TestChaos(t *testing.T) {
	runs, first := chaosRuns(t)
	t.Logf("CHAOS_SEED=%d CHAOS_RUNS=%d go test ./exporter -run %s", first, runs, t.Name())
	var frail, whole atomic.Int64
	t.Cleanup(func() { // after the last of them
		t.Logf("%d of %d exports that may fail did not", whole.Load(), frail.Load())
		if frail.Load() >= 40 && whole.Load()*2 < frail.Load() {
			t.Error("most exports that may fail do")
		}
	})
	for run := range uint64(runs) {
		seed := first + run
		c := drawChaos(seed)
		t.Run(fmt.Sprintf("%s/%s/%d", c.Name, c.kickoff.Level, seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("CHAOS_SEED=%d CHAOS_RUNS=1: %s, %+v, %+v, history late by %s", seed, c.Name, c.kickoff, c.knobs, c.HistoryLag)
			completed := c.run(t)
			if c.canComplete() && c.mayFail() {
				frail.Add(1)
				whole.Add(completed)
			}
		})
	}
}

// canComplete tells whether the server can be asked for what is asked of it.
func (c *chaos) canComplete() bool {
	return c.promise != refused || slices.Equal(c.kickoff.Types, askable) && c.kickoff.Level != state.System
}

// run makes the export and returns 1 if it completed. One that failed, as it may, has to complete once the server is left alone.
func (c *chaos) run(t *testing.T) (completed int64) {
	edit := func(cfg *exporter.Config) {
		cfg.PageSize, cfg.Workers, cfg.MaxFileBytes, cfg.Settle, cfg.Gzip = c.pageSize, c.workers, c.fileSize, c.settle, c.gzip
		if cfg.PageRows = c.pageRows; c.pause > 0 {
			cfg.Settle = 0
		}
	}
	var w *writer
	fill := func(s *fhirtest.Server) {
		w = newWriter(t, s, c.random, c.knobs)
		w.historyLag = c.HistoryLag
		w.fill()
	}
	inBubble(t, c.Personality, edit, fill, func(t *testing.T, b *bubble) {
		b.link.takes = c.takes
		if b.link.hook = w.overtake; c.kickoff.PartialManifests {
			b.slow()
		}
		stop := w.start()
		defer stop() // also when the test gives up
		<-time.After(15 * time.Second)
		var reached <-chan struct{}
		if c.killAt > 0 {
			reached = b.events.freeze(c.killAt)
		}
		kicked := time.Now()
		id := b.kickOff(c.kickoff)
		select {
		case <-reached:
			b.resume(c.hard)
		case <-time.After(20 * time.Minute): // the run ended before
			b.events.thaw()
		}
		job := b.finish(id)
		stop()
		b.sample.CatchUp()
		if !job.TransactionTime.IsZero() && job.TransactionTime.Before(kicked) {
			t.Errorf("the transaction time is %s before the kick-off", kicked.Sub(job.TransactionTime))
		}
		c.judge(t, b.engine, w.ledger, job, w.unknowable(job.TransactionTime))
		if job.Status == state.Completed {
			completed = 1
		} else if c.canComplete() && job.Failure.Status != 400 {
			w.rest()
			job = b.finish(b.kickOff(c.kickoff))
			if c.judge(t, b.engine, w.ledger, job, w.unknowable(job.TransactionTime)); job.Status != state.Completed {
				t.Errorf("left alone, the server cannot be exported: %+v", job.Failure)
			}
		}
	})
	return completed
}
