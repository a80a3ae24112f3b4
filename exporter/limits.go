package exporter

import (
	"context"
	"errors"

	"sidecar/state"
)

// errTooCostly ends an export that would have more bytes than one may have.
var errTooCostly = errors.New("it is larger than exports may be here (limits.export_bytes): ask for fewer types, for fewer patients, or for a shorter time")

// boundBytes fails with errTooCostly when the files of the job, with those that are announced, are larger than MaxExportBytes.
func (r *run) boundBytes(ctx context.Context) error {
	if r.MaxExportBytes == 0 {
		return nil
	}
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil {
		return err
	}
	var total int64
	for _, file := range files {
		if total += file.Bytes; total > r.MaxExportBytes {
			return errTooCostly
		}
	}
	return nil
}

// admit stores a job, unless there are too many. One at a time: between counting and storing no other may come in.
func (e *Exporter) admit(ctx context.Context, job *state.Job) error {
	e.admitting.Lock()
	defer e.admitting.Unlock()
	if err := e.boundJobs(ctx, job.Kickoff.Client); err != nil {
		return err
	}
	return e.Store.Create(ctx, job, e.MaxRunning)
}

// boundJobs fails with state.ErrTooMany when as many exports of the client are kept as may be. Those without a name count
// together: they may be one.
func (e *Exporter) boundJobs(ctx context.Context, client string) error {
	if e.MaxJobsPerClient == 0 {
		return nil
	}
	jobs, err := e.Store.List(ctx)
	if err != nil {
		return err
	}
	kept := 0
	for _, job := range jobs {
		if job.Status != state.Cancelled && job.Kickoff.Client == client {
			kept++
		}
	}
	if kept >= e.MaxJobsPerClient {
		return state.ErrTooMany
	}
	return nil
}
