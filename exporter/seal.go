package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/state"
	"sidecar/state/failpoint"
)

const (
	// manifestName is the object that tells a pipeline which never polls that the export is complete.
	manifestName = "manifest.json"
	// ndjsonType is the media type of the files (Bulk Data guide, section "File Request").
	ndjsonType = "application/fhir+ndjson"
)

// finishFiles puts files that were announced before a crash and perhaps never arrived.
func (r *run) finishFiles(ctx context.Context) error {
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil {
		return err
	}
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	bySeq := make(map[int]state.Slice, len(all))
	for _, slice := range all {
		bySeq[slice.Seq] = slice
	}
	for _, file := range files {
		switch {
		case file.Stored || file.Kind == state.Error:
			continue
		case file.Rewritten:
			err = r.putRewritten(ctx, file)
		case file.Kind == state.Output && r.job.Kickoff.OrganizeBy != "":
			err = r.putOrganized(ctx, file)
		default:
			var parts []state.Slice
			for _, seq := range file.Slices {
				parts = append(parts, bySeq[seq])
			}
			err = r.upload(ctx, file, parts)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// putContent puts the content of local files as one object and records it, together with the slices it was taken from.
func (r *run) putContent(ctx context.Context, file state.File, contents []content, parts []state.Slice) error {
	if err := r.boundBytes(ctx); err != nil {
		return err
	}
	body, err := openMulti(contents)
	if err != nil {
		return err
	}
	// Copies are made again under their names, a spool file never is: see roll.
	body.final = len(parts) == 1 && contents[0].path == spoolPath(r.dir, &parts[0])
	err = r.putRows(ctx, &file, body)
	if err := errors.Join(err, body.close()); err != nil {
		return err
	}
	if err := r.Store.MarkStored(ctx, r.job.ID, file, parts); err != nil {
		return err
	}
	if file.Kind == state.Output && !file.Rewritten && r.job.Kickoff.OrganizeBy == "" {
		r.Metrics.resources.WithLabelValues(file.Type).Add(float64(file.Count))
		r.Metrics.bytes.WithLabelValues(file.Type).Add(float64(file.Bytes))
	}
	return nil
}

// put stores one object of the job. A bucket that is away for a while costs time, not the export.
func (r *run) put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	failpoint.Pass("before put")
	err := r.bucketPace.do(ctx, func() error { return r.Bucket.Put(ctx, r.job.Folder+"/"+name, media, body) })
	failpoint.Pass("after put")
	if err != nil {
		return local(fmt.Errorf("store file: %w", err))
	}
	return nil
}

// seal puts what the slices still hold, the remarks and the manifest, and completes the job.
func (r *run) seal(ctx context.Context) error {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	err = r.judge(ctx, all)
	if errors.Is(err, errIncomplete) || errors.Is(err, errForbidden) {
		err = fmt.Errorf("%w; with the setting allow_partial an export completes without what is missing, and names it", err)
	}
	if err != nil {
		return err
	}
	if r.job.Kickoff.OrganizeBy != "" {
		err = r.organize(ctx, all)
	} else {
		err = r.putTypes(ctx, all, r.outputTypes())
	}
	if err != nil {
		return err
	}
	err = r.join(ctx, state.Deleted, "Bundle", all, func(s *state.Slice) bool { return s.Strategy == state.Deletions })
	if err != nil {
		return err
	}
	if r.job, err = r.Store.Get(ctx, r.job.ID); err != nil { // with the remarks of all stages
		return err
	}
	if err := r.putIssues(ctx); err != nil {
		return err
	}
	if err := r.putManifest(ctx); err != nil {
		return err
	}
	err = r.Store.Update(ctx, r.job.ID, func(job *state.Job) error {
		if job.Status != state.InProgress {
			return state.ErrFinal
		}
		job.Status, job.Finished = state.Completed, time.Now().UTC()
		return nil
	})
	if err != nil {
		return err
	}
	if err := r.publishLedgers(ctx, r.dir); err != nil { // the next increment says that it has none
		r.Log.ErrorContext(ctx, "ledger not stored", "job", r.job.ID, "error", err)
	}
	if err := os.RemoveAll(r.dir); err != nil { // the next start removes it; the export is complete
		r.Log.ErrorContext(ctx, "spool not removed", "job", r.job.ID, "error", err)
	}
	return nil
}

// join puts what the chosen slices still hold, several of them in one file.
func (r *run) join(ctx context.Context, kind state.Kind, typ string, all []state.Slice, chosen func(*state.Slice) bool) error {
	var parts []state.Slice
	for i := range all {
		if all[i].SpoolRows > 0 && chosen(&all[i]) {
			parts = append(parts, all[i])
		}
	}
	return r.putFiles(ctx, state.File{Kind: kind, Type: typ, Sealed: true}, parts)
}

// outputTypes are all types that the output may hold.
func (r *run) outputTypes() []string {
	types := slices.Concat(r.job.Types, r.job.Referenced)
	slices.Sort(types)
	return slices.Compact(types)
}

// putIssues puts the job's remarks as a file of OperationOutcomes, one a line.
func (r *run) putIssues(ctx context.Context) error {
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil || len(r.job.Issues) == 0 {
		return err
	}
	var body bytes.Buffer
	for _, issue := range r.job.Issues {
		line, err := json.Marshal(fhir.NewOutcome(issue.Severity, issue.Code, issue.Text))
		if err != nil {
			return err
		}
		body.Write(line)
		body.WriteByte('\n')
	}
	file := state.File{Kind: state.Error, Type: "OperationOutcome", Count: int64(len(r.job.Issues)), Bytes: int64(body.Len())}
	for _, known := range files { // announced before a crash
		if known.Kind == state.Error {
			file.Name = known.Name
		}
	}
	if file.Name == "" {
		if file, err = r.Store.Allot(ctx, r.job.ID, file); err != nil {
			return err
		}
	}
	if err := r.putRows(ctx, &file, bytes.NewReader(body.Bytes())); err != nil {
		return err
	}
	return r.Store.MarkStored(ctx, r.job.ID, file, nil)
}

func (r *run) putManifest(ctx context.Context) error {
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil {
		return err
	}
	body, err := state.EncodeManifest(r.job, files, false, func(file state.File) string { return file.Name })
	if err != nil {
		return err
	}
	return r.put(ctx, manifestName, blob.Media{Type: "application/json"}, bytes.NewReader(body))
}
