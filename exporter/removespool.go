package exporter

import (
	"context"
	"errors"

	"sidecar/state"
)

// errSpoolRemoved fails a job whose pages were shown: a page never changes, and what it was made from is gone.
var errSpoolRemoved = errors.New("what was read was removed when the sidecar was started, and the manifests that were fetched before cannot be gone on with: begin the export anew")

// markAnew notes that the spool of a job is about to be removed. The note comes first, so that a crash in between costs the job
// nothing but its reading.
func (e *Exporter) markAnew(ctx context.Context, id string) error {
	err := e.Store.Update(ctx, id, func(job *state.Job) error {
		if !job.Running() {
			return state.ErrFinal
		}
		job.Anew = true
		return nil
	})
	if errors.Is(err, state.ErrNotFound) || errors.Is(err, state.ErrFinal) { // it was deleted just now
		return nil
	}
	if err == nil {
		e.Log.InfoContext(ctx, "spool of a running export is removed: it begins anew", "job", id)
	}
	return err
}

// anew takes a job whose spool was removed back to its kick-off: its objects go first, so that none is left that nobody knows.
func (r *run) anew(ctx context.Context, id string) error {
	job, err := r.Store.Get(ctx, id)
	if err != nil || !job.Anew {
		return err
	}
	if len(job.Pages) > 0 {
		return errSpoolRemoved
	}
	if err := r.bucketPace.do(ctx, func() error { return r.deleteObjects(ctx, job) }); err != nil {
		return local(err)
	}
	return r.Store.Restart(ctx, id)
}
