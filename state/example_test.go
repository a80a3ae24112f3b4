package state_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"sidecar/state"
)

func ExampleStore() {
	folder, err := os.MkdirTemp("", "state")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	store, err := state.Open(filepath.Join(folder, "state.db"))
	if err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	job := &state.Job{ID: "first", Status: state.Accepted}
	if err := store.Create(ctx, job, 1); err != nil {
		log.Fatal(err)
	}
	err = store.Create(ctx, &state.Job{ID: "second", Status: state.Accepted}, 1)
	fmt.Println("second:", err)

	// A DELETE of the client's: read, decide and write in one transaction.
	err = store.Update(ctx, "first", func(job *state.Job) error {
		if !job.Running() {
			return state.ErrFinal
		}
		job.Status = state.Cancelled
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	err = store.Checkpoint(ctx, "first", &state.Slice{Seq: 1})
	fmt.Println("worker is told:", errors.Is(err, state.ErrFinal))
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// second: an export is running
	// worker is told: true
}
