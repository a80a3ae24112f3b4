package exporter

import (
	"context"
	"slices"

	"sidecar/state"
)

// auditor keeps an audit trail. It never fails an export.
type auditor interface {
	Note(ctx context.Context, event *state.Audit)
}

// note tells the audit trail how a job has ended.
func (e *Exporter) note(ctx context.Context, what, id string) {
	if e.Audit == nil {
		return
	}
	job, err := e.Store.Get(context.WithoutCancel(ctx), id)
	if err != nil { // it is gone already
		job = &state.Job{ID: id}
	}
	e.noteOf(ctx, what, job)
}

// noteOf is note for a job that is at hand.
func (e *Exporter) noteOf(ctx context.Context, what string, job *state.Job) {
	if e.Audit == nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	event := &state.Audit{What: what, Job: job.ID, Client: job.Kickoff.Client, Level: job.Kickoff.Level, Group: state.GroupHash(job.Kickoff.Group)}
	if job.Failure != nil {
		event.Status = job.Failure.Status
	}
	if what == "completed" {
		e.count(ctx, event)
	}
	e.Audit.Note(ctx, event)
}

// count puts what a completed job handed out into an event.
func (e *Exporter) count(ctx context.Context, event *state.Audit) {
	files, err := e.Store.Files(ctx, event.Job)
	if err != nil {
		e.Log.ErrorContext(ctx, "audit line without its numbers", "job", event.Job, "error", err)
		return
	}
	event.Hashes = map[string]string{}
	for _, file := range files {
		if file.SHA256 != "" {
			event.Hashes[file.Name] = file.SHA256
		}
		event.Files++
		event.Bytes += file.Bytes
		if file.Kind == state.Output {
			event.Resources += file.Count
			event.Types = append(event.Types, file.Type)
		}
	}
	slices.Sort(event.Types)
	event.Types = slices.Compact(event.Types)
}
