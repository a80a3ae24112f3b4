package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
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
		if file.Stored || file.Kind != state.Output {
			continue
		}
		var parts []state.Slice
		for _, seq := range file.Slices {
			parts = append(parts, bySeq[seq])
		}
		if err := r.upload(ctx, file, parts); err != nil {
			return err
		}
	}
	return nil
}

// putFile makes one output file of the open spool files of some slices of one type, and takes their rows off them.
func (r *run) putFile(ctx context.Context, parts []state.Slice) error {
	file := state.File{Kind: state.Output, Type: parts[0].Type}
	for _, part := range parts {
		file.Count += part.SpoolRows
		file.Bytes += part.SpoolSize
		file.Slices = append(file.Slices, part.Seq)
	}
	file, err := r.Store.Allot(ctx, r.job.ID, file)
	if err != nil {
		return err
	}
	return r.upload(ctx, file, parts)
}

// upload puts an announced file and records that it is stored. It can be done again after a crash anywhere in it, with
// the same object as result: the spool files stay until the record is written.
func (r *run) upload(ctx context.Context, file state.File, parts []state.Slice) error {
	paths, sizes := make([]string, len(parts)), make([]int64, len(parts))
	for i, part := range parts {
		paths[i], sizes[i] = spoolPath(r.dir, part.Seq), part.SpoolSize
	}
	body, err := openMulti(paths, sizes)
	if err != nil {
		return err
	}
	err = r.put(ctx, file.Name, ndjsonType, body)
	if err := errors.Join(err, body.close()); err != nil {
		return err
	}
	for i := range parts {
		parts[i].SpoolSize, parts[i].SpoolRows = 0, 0
	}
	if err := r.Store.MarkStored(ctx, r.job.ID, file, parts); err != nil {
		return err
	}
	r.Metrics.resources.WithLabelValues(file.Type).Add(float64(file.Count))
	r.Metrics.bytes.WithLabelValues(file.Type).Add(float64(file.Bytes))
	return nil
}

// put stores one object of the job. A bucket that is away for a while costs time, not the export.
func (r *run) put(ctx context.Context, name, contentType string, body io.ReadSeeker) error {
	err := r.bucketPace.do(ctx, func() error { return r.Bucket.Put(ctx, r.job.Folder+"/"+name, contentType, body) })
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
	for _, typ := range r.job.Types {
		var open []state.Slice
		var size int64
		for _, slice := range all {
			if slice.Type != typ || slice.SpoolSize == 0 {
				continue
			}
			if open, size = append(open, slice), size+slice.SpoolSize; size < r.MaxFileBytes {
				continue
			}
			if err := r.putFile(ctx, open); err != nil {
				return err
			}
			open, size = nil, 0
		}
		if len(open) > 0 {
			if err := r.putFile(ctx, open); err != nil {
				return err
			}
		}
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
	return local(os.RemoveAll(r.dir))
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
			file = known
		}
	}
	if file.Name == "" {
		if file, err = r.Store.Allot(ctx, r.job.ID, file); err != nil {
			return err
		}
	}
	if err := r.put(ctx, file.Name, ndjsonType, bytes.NewReader(body.Bytes())); err != nil {
		return err
	}
	return r.Store.MarkStored(ctx, r.job.ID, file, nil)
}

// storedManifest is the manifest beside the files: the client's one, with names relative to itself instead of links,
// which would die.
type storedManifest struct {
	Status              string       `json:"status"`
	TransactionTime     string       `json:"transactionTime"`
	Request             string       `json:"request"`
	RequiresAccessToken bool         `json:"requiresAccessToken"`
	Output              []storedFile `json:"output"`
	Deleted             []storedFile `json:"deleted"`
	Error               []storedFile `json:"error"`
}

type storedFile struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Count int64  `json:"count"`
}

func (r *run) putManifest(ctx context.Context) error {
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil {
		return err
	}
	manifest := storedManifest{
		Status:          "completed",
		TransactionTime: fhir.FormatInstant(r.job.TransactionTime),
		Request:         r.job.Kickoff.Request,
		Output:          []storedFile{},
		Deleted:         []storedFile{},
		Error:           []storedFile{},
	}
	for _, file := range files {
		entry := storedFile{Type: file.Type, URL: file.Name, Count: file.Count}
		if file.Kind == state.Error {
			manifest.Error = append(manifest.Error, entry)
		} else {
			manifest.Output = append(manifest.Output, entry)
		}
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // the request's "&" stays one
	if err := encoder.Encode(manifest); err != nil {
		return err
	}
	return r.put(ctx, manifestName, "application/json", bytes.NewReader(body.Bytes()))
}
