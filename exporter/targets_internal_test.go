package exporter

import (
	"fmt"
	"os"
	"testing"
)

// Ensure a set of names knows those that were added, and no others, also where they do not fit into memory at once, holds
// them in files for their owner alone, and leaves none behind.
func TestTargets(t *testing.T) {
	const names = 2 * sorterBytes / (2*targetBytes + 16)
	dir := t.TempDir()
	set, err := newTargets(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range names {
		if err := set.add(fmt.Sprintf("Patient/%d", i%(names-10))); err != nil { // some twice
			t.Fatal(err)
		}
	}
	if len(set.names.runs) < 1 {
		t.Error("all names are sorted at once: the test shows nothing")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := file.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file.Name(), info, err)
		}
	}
	if err := set.build(); err != nil {
		t.Fatal(err)
	}
	for i := range names {
		if found, err := set.has(fmt.Sprintf("Patient/%d", i)); err != nil || found != (i < names-10) {
			t.Fatalf("Patient/%d: %v, %v", i, found, err)
		}
	}
	if err := set.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
