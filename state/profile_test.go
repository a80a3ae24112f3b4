package state_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"sidecar/state"
)

func TestProfileOutlivesTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	store := open(t, path)
	if _, _, err := store.Profile(t.Context(), "a"); !errors.Is(err, state.ErrNotFound) {
		t.Errorf("before: %v, want ErrNotFound", err)
	}
	for _, raw := range []string{`{"n":1}`, `{"n":2}`} {
		if err := store.PutProfile(t.Context(), "a", []byte(raw)); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.PutProfile(t.Context(), "b", []byte("no JSON")); err == nil {
		t.Error("stored what is no JSON")
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = open(t, path)
	raw, at, err := store.Profile(t.Context(), "a")
	if err != nil || string(raw) != `{"n":2}` || time.Since(at) > time.Minute || time.Since(at) < 0 {
		t.Errorf("got %s of %s, %v", raw, at, err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}
