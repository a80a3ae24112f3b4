package exporter

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Ensure ids come out in order and once each, also where they do not fit into memory at once.
func TestSorter(t *testing.T) {
	const seed = 3
	random := rand.New(rand.NewPCG(seed, seed))
	long := strings.Repeat("x", 40)
	for _, n := range []int{0, 1, 10, 2 * sorterBytes / len(long)} {
		s := newSorter(t.TempDir(), "Patient.alive")
		var want []string
		for range n {
			id := fmt.Sprintf("%d%s", random.IntN(n), long)
			want = append(want, id)
			if err := s.add(id); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(want)
		want = slices.Compact(want)
		sorted, err := s.sorted()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for {
			id, more, err := sorted.next()
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
			got = append(got, id)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d of %d ids, or another order, seed %d", len(got), len(want), seed)
		}
		if n > 10 && len(s.runs) < 2 {
			t.Error("all ids were sorted at once: the test shows nothing")
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}
