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
	ctx = context.WithoutCancel(ctx)
	event := &state.Audit{What: what, Job: id}
	defer func() { e.Audit.Note(ctx, event) }()
	job, err := e.Store.Get(ctx, id)
	if err != nil {
		return
	}
	event.Client, event.Level, event.Group = job.Kickoff.Client, job.Kickoff.Level, state.GroupHash(job.Kickoff.Group)
	if job.Failure != nil {
		event.Status = job.Failure.Status
	}
	files, err := e.Store.Files(ctx, id)
	if err != nil || job.Status != state.Completed {
		return
	}
	for _, file := range files {
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
