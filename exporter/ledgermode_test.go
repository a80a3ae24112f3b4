package exporter_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// withLedger turns the ledger on.
func withLedger(c *exporter.Config) {
	smallPages(c)
	c.Ledger = filepath.Join(filepath.Dir(c.Spool), "ledger")
}

// Ensure that on servers without history a replica equals the server, deletions included, where data change between the
// exports and rest while they run, and that each increment counts what has left it by an edit.
func TestChainWithLedger(t *testing.T) {
	runs, first := chaosRuns(t)
	t.Logf("CHAOS_SEED=%d CHAOS_RUNS=%d go test ./exporter -run %s", first, runs, t.Name())
	all := slices.DeleteFunc(products(), func(p product) bool { return !strings.HasPrefix(p.says, "gives no history") })
	for run := range uint64(max(shorter(3*len(all)), runs/3)) {
		seed := first + run
		p := all[seed%uint64(len(all))]
		level := []state.Level{state.System, state.Patient, state.Group}[seed/uint64(len(all))%3]
		if p.promise == refused && level != state.Group { // types that are refused, rows of Patients who are gone: see leaveOut
			continue
		}
		t.Run(fmt.Sprintf("%s/%s/%d", p.Name, level, seed), func(t *testing.T) {
			t.Parallel()
			ledgerChain(t, seed, p, level)
		})
	}
}

func ledgerChain(t *testing.T, seed uint64, p product, level state.Level) {
	edit := func(c *exporter.Config) {
		withLedger(c)
		if p.pause > 0 {
			c.Settle = 0 // as the probe says
		}
	}
	var w *writer
	fill := func(s *fhirtest.Server) {
		w = newWriter(t, s, rand.New(rand.NewPCG(seed, 1)), knobs{
			every: 300 * time.Millisecond, burst: 8, bundles: 10, deletes: 25, returns: 10, late: 20, lag: 2 * time.Second,
		})
		w.fill()
	}
	inBubble(t, p.Personality, edit, fill, func(t *testing.T, b *bubble) {
		check, copied := equalButForEdits(), replica{}
		kickoff := kickoffOf(level)
		if p.promise == refused {
			kickoff.Types = askable
		}
		for range 4 {
			<-time.After(5 * time.Minute)
			job := b.finish(b.kickOff(kickoff))
			copied.feed(b.engine, job)
			kickoff.Since = job.TransactionTime
			whole := *job
			whole.Kickoff.Since = time.Time{}
			check(t, job, copied, w.expected(t, &whole, everybody()))
			stop := w.start()
			<-time.After(20 * time.Second)
			stop()
		}
	})
}
