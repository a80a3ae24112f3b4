package exporter_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure a replica of a Group lacks nothing and has nothing old although members come and go and resources change hands, that
// what it has left over is of others or of nobody now, and that each increment counts the members who have gone.
func TestChainOfAChangingGroup(t *testing.T) {
	runs, first := chaosRuns(t)
	t.Logf("CHAOS_SEED=%d CHAOS_RUNS=%d go test ./exporter -run %s", first, runs, t.Name())
	all := slices.DeleteFunc(products(), func(p product) bool { return p.promise != exact })
	for run := range uint64(max(2, runs/5)) {
		seed := first + run
		p := all[seed%uint64(len(all))]
		t.Run(fmt.Sprintf("%s/%d", p.Name, seed), func(t *testing.T) {
			t.Parallel()
			changingGroup(t, seed, p)
		})
	}
}

func changingGroup(t *testing.T, seed uint64, p product) {
	random := rand.New(rand.NewPCG(seed, 0x67726f7570))
	edit := func(c *exporter.Config) {
		if c.PageSize = 8 + random.IntN(25); p.pause > 0 {
			c.Settle = 0 // as the probe says
		}
	}
	var w *writer
	fill := func(s *fhirtest.Server) {
		w = newWriter(t, s, rand.New(rand.NewPCG(seed, 1)), knobs{
			every: max(300*time.Millisecond, p.pause/50), burst: 8, bundles: 10, deletes: 20, returns: 10, groups: 15, ahead: 20, late: 20, lag: 2 * time.Second,
		})
		w.fill()
	}
	inBubble(t, p.Personality, edit, fill, func(t *testing.T, b *bubble) {
		b.link.hook = w.overtake
		defer w.start()()
		copied, kickoff := replica{}, kickoffOf(state.Group)
		for range 4 {
			<-time.After(time.Duration(1+random.IntN(20)) * time.Second)
			job := b.finish(b.kickOff(kickoff))
			copied.feed(b.engine, job)
			p.audit(t, b.engine, w.ledger, job, nil)
			w.checkMembers(t, job)
			whole := *job
			whole.Kickoff.Since = time.Time{}
			want := w.expected(t, &whole, everybody())
			kept := maps.Clone(copied)
			maps.DeleteFunc(kept, func(key, _ string) bool { return want[key] == "" })
			same(t, kept, want)
			kickoff.Since = job.TransactionTime
		}
	})
}

// checkMembers holds the number of members whom an increment says have left against the Group's versions.
func (l *ledger) checkMembers(t *testing.T, job *state.Job) {
	t.Helper()
	if job.Kickoff.Since.IsZero() {
		return
	}
	left := map[string]bool{}
	for _, id := range membersOf(t, l.asOf(job.Kickoff.Since), job.Kickoff.Group) {
		left[id] = true
	}
	for _, id := range membersOf(t, l.asOf(job.TransactionTime), job.Kickoff.Group) {
		delete(left, id)
	}
	want := fmt.Sprintf("%d patients have left the Group", len(left))
	if len(left) == 1 {
		want = "1 patient has left the Group"
	}
	said := fmt.Sprint(job.Issues)
	if strings.Contains(said, want) != (len(left) > 0) || len(left) == 0 && strings.Contains(said, "left the Group") {
		t.Errorf("%d members have left, the remarks are %s", len(left), said)
	}
}
