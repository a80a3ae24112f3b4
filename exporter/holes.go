package exporter

import (
	"context"
	"errors"
)

// errForbidden ends a job whose holes are all of types that the sidecar may not read.
var errForbidden = errors.New("the server does not let the sidecar read it")

// stopType ends the reading of a type whose answers cannot be trusted any more.
func (w *walk) stopType(ctx context.Context) {
	w.Doubt(ctx, "rows that were not asked for, in a search of "+w.slice.Type)
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
