package state_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"sidecar/state"
)

func ended(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

func TestOpenFailsOnAFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	first := open(t, path)
	if second, err := state.Open(path); !errors.Is(err, state.ErrLocked) || second != nil {
		t.Errorf("got %v, want ErrLocked", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path).Close(); err != nil { // the lock ended with the store
		t.Error(err)
	}
	check(t, path)
}

func TestOpenReadsTheVersionOfTheFormat(t *testing.T) {
	for _, test := range []struct {
		name, version string
		want          error // nil: opens
		fails         bool
	}{
		{name: "this version", version: "1"},
		{name: "older", version: "0"},
		{name: "newer", version: "2", want: state.ErrNewer, fails: true},
		{name: "damaged", version: "one", fails: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			if err := open(t, path).Close(); err != nil {
				t.Fatal(err)
			}
			withFile(t, path, func(tx *bbolt.Tx) error {
				return tx.Bucket([]byte("meta")).Put([]byte("version"), []byte(test.version))
			})
			store, err := state.Open(path)
			if err == nil {
				if err := store.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if (err != nil) != test.fails || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			check(t, path) // and the refused file is not locked any more
		})
	}
}

func TestOpenCreatesAFileForTheOwnerAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := open(t, path).Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o, want 600", got)
	}
}

func TestOpenFailsWithoutAFolderAndOnAnotherFile(t *testing.T) {
	folder := t.TempDir()
	other := filepath.Join(folder, "notes.txt")
	if err := os.WriteFile(other, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(folder, "none", "state.db"), other, folder} {
		if store, err := state.Open(path); err == nil || store != nil {
			t.Errorf("%s: opened", filepath.Base(path))
		}
	}
}
