package exporter

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sidecar/state"
)

// Ensure all ids that were written more than once are found, in one slice or in several, and no others.
func TestRowsWrittenTwiceAreFound(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	var crawled []*state.Slice
	times := map[string]int{}
	for seq := 1; seq <= 3; seq++ {
		var index strings.Builder
		rows := random.IntN(3_000)
		for range rows {
			id := fmt.Sprint(random.IntN(50_000))
			times[id]++
			fmt.Fprintf(&index, "%s\t1\n", id)
		}
		if err := os.WriteFile(indexPath(dir, seq), []byte(index.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		crawled = append(crawled, &state.Slice{Seq: seq, Type: "Observation", Written: int64(rows), IndexSize: int64(index.Len()), Verdict: state.Counted})
	}
	r := &typeRepair{run: &run{job: &state.Job{}, dir: dir}, typ: "Observation", crawled: crawled, log: &changeLog{path: filepath.Join(dir, "changes")}}
	if err := r.takeTwice(); err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(maps.Keys(r.log.whole(t).byID))
	maps.DeleteFunc(times, func(_ string, n int) bool { return n < 2 })
	if want := slices.Sorted(maps.Keys(times)); !slices.Equal(got, want) {
		t.Errorf("%d ids, or others, want %d", len(got), len(want))
	}
}
