package exporter_test

import (
	"testing"
	"time"

	"sidecar/exporter"
)

// Ensure an increment does not name a resource as deleted that was made again by a commit that was stamped before _since, and
// so before the deletion, but came after it: wherever the deletion lies in the history that is read.
func TestMadeAgainByALateCommitIsNotDeleted(t *testing.T) {
	n := 0
	for name, wait := range map[string]time.Duration{"within the span of repairs": 50 * time.Second, "before it": 5 * time.Minute} {
		for _, personality := range personalities() {
			if n++; sparse(n) {
				continue
			}
			t.Run(name+"/"+personality.Name, func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { smallPages(c); c.Settle = 30 * time.Second }
				inBubble(t, personality, edit, thirtyRows(t), func(t *testing.T, b *bubble) {
					first := b.finish(b.kickOff(system()))
					since := first.TransactionTime.Add(time.Minute)
					<-time.After(time.Until(since.Add(5 * time.Second)))
					must(t, b.sample.Delete("Observation", "Obs-3"), b.sample.Delete("Observation", "Obs-4"),
						b.sample.PutLate([]byte(`{"resourceType":"Observation","id":"Obs-3"}`), since.Add(-15*time.Second), time.Now().Add(5*time.Second)))
					<-time.After(time.Until(since.Add(wait)))
					kickoff := system()
					kickoff.Since = since
					job := b.finish(b.kickOff(kickoff))
					same(t, b.rows(job), map[string]string{})
					if got := b.deleted(job); len(got) != 1 || got[0] != "Observation/Obs-4" {
						t.Errorf("deleted %v, want Observation/Obs-4", got)
					}
				})
			})
		}
	}
}
