package state_test

import (
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"sidecar/state"
)

var accepted = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// openNew opens a store on a new file, which is checked by bbolt itself when the test ends.
func openNew(t *testing.T) *state.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	store := open(t, path)
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		check(t, path)
	})
	return store
}

func open(t *testing.T, path string) *state.Store {
	t.Helper()
	store, err := state.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// check walks all pages of a closed file.
func check(t *testing.T, path string) {
	t.Helper()
	withFile(t, path, func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("integrity: %v", err)
		}
		return nil
	})
}

// withFile changes a closed file behind the store's back.
func withFile(t *testing.T, path string, fn func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(fn); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func newJob(id string) *state.Job {
	return &state.Job{
		ID: id, Folder: "20240501T120000Z_" + id, Status: state.Accepted, Accepted: accepted,
		Kickoff: state.Kickoff{Level: state.System, Request: "https://public.example/fhir/$export"},
	}
}

// create stores a new job, which must succeed.
func create(t *testing.T, store *state.Store, job *state.Job) {
	t.Helper()
	if err := store.Create(t.Context(), job, 100); err != nil {
		t.Fatal(err)
	}
}

// setStatus moves a job, which must succeed.
func setStatus(t *testing.T, store *state.Store, id string, status state.Status) {
	t.Helper()
	err := store.Update(t.Context(), id, func(job *state.Job) error {
		job.Status = status
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
