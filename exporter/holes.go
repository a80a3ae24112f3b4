package exporter

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sidecar/state"
)

// errForbidden ends a job whose holes are all of types that the sidecar may not read.
var errForbidden = errors.New("the server does not let the sidecar read it")

// judgeHoles ends a job that has holes.
func (r *run) judgeHoles(ctx context.Context) error {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	var holes []state.Hole
	for _, slice := range all {
		holes = append(holes, slice.Holes...)
	}
	if len(holes) == 0 {
		return nil
	}
	forbidden, types := true, map[string]bool{}
	var words []string
	for _, hole := range holes {
		forbidden = forbidden && hole.Reason == "forbidden"
		if word := hole.Type + ": " + hole.Reason; !types[word] {
			types[word], words = true, append(words, word)
		}
	}
	cause := errIncomplete
	if forbidden {
		cause = errForbidden
	}
	return fmt.Errorf("parts cannot be read (%s): %w", strings.Join(words, ", "), cause)
}

// stopType ends the reading of a type whose answers cannot be trusted any more.
func (w *walk) stopType() {
	w.doubt("rows that were not asked for, in a search of " + w.slice.Type)
	w.stop.Lock()
	defer w.stop.Unlock()
	if w.barred == nil {
		w.barred = map[string]bool{}
	}
	w.barred[w.slice.Type] = true
}

// stoppedType returns an error when the reading of the slice's type has ended.
func (w *walk) stoppedType() error {
	w.stop.Lock()
	defer w.stop.Unlock()
	if w.barred[w.slice.Type] {
		return errSuperset
	}
	return nil
}
