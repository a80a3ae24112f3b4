package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"sidecar/state"
)

// exports are the stored jobs.
type exports interface {
	List(ctx context.Context) ([]*state.Job, error)
	Get(ctx context.Context, id string) (*state.Job, error)
	Slices(ctx context.Context, id string) ([]state.Slice, error)
	Files(ctx context.Context, id string) ([]state.File, error)
}

// worker knows what this process does for a job.
type worker interface {
	// Stage says it in a few words, empty while the job is read.
	Stage(id string) string
	// Retries is how many requests had to be sent again.
	Retries(id string) int64
}

// shownJob is a job in the list. What the client asked for is told by names and numbers: values may name Patients.
type shownJob struct {
	ID              string       `json:"id"`
	Status          state.Status `json:"status"`
	Level           state.Level  `json:"level"`
	Types           []string     `json:"types,omitempty"`
	Parameters      []string     `json:"parameters,omitempty"`
	Folder          string       `json:"folder"`
	Accepted        time.Time    `json:"accepted"`
	TransactionTime time.Time    `json:"transactionTime,omitzero"`
	Finished        time.Time    `json:"finished,omitzero"`
	// Stage is what the work does now, Seconds how long the job has taken.
	Stage   string  `json:"stage,omitempty"`
	Seconds float64 `json:"seconds"`
	// Counted is the server's count of what was planned, as far as it counts; Met and Written are the rows so far.
	Counted   int64   `json:"counted"`
	Met       int64   `json:"met"`
	Written   int64   `json:"written"`
	PerSecond float64 `json:"perSecond"`
	// Retries is how many requests this process had to send again.
	Retries int64          `json:"retries"`
	Failure *state.Failure `json:"failure,omitempty"`
}

// shownDetail is a job with all that is known of it.
type shownDetail struct {
	shownJob
	Issues []state.Issue `json:"issues,omitempty"`
	Proof  []state.Proof `json:"proof,omitempty"`
	Slices []shownSlice  `json:"slices"`
	Files  []shownFile   `json:"files"`
}

type shownSlice struct {
	Seq      int            `json:"seq"`
	Type     string         `json:"type"`
	Strategy state.Strategy `json:"strategy"`
	From     time.Time      `json:"from,omitzero"`
	To       time.Time      `json:"to,omitzero"`
	// Cursor is up to where the window was read; zero before its first page.
	Cursor  time.Time     `json:"cursor,omitzero"`
	Counted int64         `json:"counted"`
	Met     int64         `json:"met"`
	Written int64         `json:"written"`
	Done    bool          `json:"done"`
	Verdict state.Verdict `json:"verdict,omitempty"`
	Holes   []state.Hole  `json:"holes,omitempty"`
}

type shownFile struct {
	Name   string     `json:"name"`
	Kind   state.Kind `json:"kind"`
	Count  int64      `json:"count"`
	Bytes  int64      `json:"bytes"`
	Stored bool       `json:"stored"`
}

// jobs answers /jobs and /jobs/{id}.
type jobs struct {
	stored exports
	work   worker
}

// list answers with all jobs, the newest first.
func (j *jobs) list(w http.ResponseWriter, r *http.Request) {
	all, err := j.stored.List(r.Context())
	shown := struct {
		Jobs []shownJob `json:"jobs"`
	}{[]shownJob{}}
	for _, job := range all {
		var one shownJob
		if one, _, err = j.show(r.Context(), job); errors.Is(err, state.ErrNotFound) {
			continue // it has ended meanwhile
		}
		if err != nil {
			break
		}
		shown.Jobs = append(shown.Jobs, one)
	}
	slices.SortFunc(shown.Jobs, func(a, b shownJob) int { return b.Accepted.Compare(a.Accepted) })
	answerJSON(w, shown, err)
}

// one answers with one job in detail.
func (j *jobs) one(w http.ResponseWriter, r *http.Request) {
	job, err := j.stored.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		answerJSON(w, nil, err)
		return
	}
	shown := shownDetail{Issues: job.Issues, Proof: job.Proof, Slices: []shownSlice{}, Files: []shownFile{}}
	var parts []state.Slice
	if shown.shownJob, parts, err = j.show(r.Context(), job); err != nil {
		answerJSON(w, nil, err)
		return
	}
	for _, s := range parts {
		shown.Slices = append(shown.Slices, shownSlice{
			s.Seq, s.Type, s.Strategy, s.From, s.To, s.Cursor, s.Counted, s.Met, s.Written, s.Done, s.Verdict, s.Holes,
		})
	}
	files, err := j.stored.Files(r.Context(), job.ID)
	for _, f := range files {
		shown.Files = append(shown.Files, shownFile{f.Name, f.Kind, f.Count, f.Bytes, f.Stored})
	}
	answerJSON(w, shown, err)
}

// show returns a job for the list, and its slices.
func (j *jobs) show(ctx context.Context, job *state.Job) (shownJob, []state.Slice, error) {
	shown := shownJob{
		ID: job.ID, Status: job.Status, Level: job.Kickoff.Level, Types: job.Types, Parameters: parameters(&job.Kickoff), Folder: job.Folder,
		Accepted: job.Accepted, TransactionTime: job.TransactionTime, Finished: job.Finished,
		Stage: j.work.Stage(job.ID), Retries: j.work.Retries(job.ID), Failure: job.Failure,
	}
	end := job.Finished
	if end.IsZero() {
		end = time.Now()
	}
	shown.Seconds = end.Sub(job.Accepted).Seconds()
	parts, err := j.stored.Slices(ctx, job.ID)
	for _, s := range parts {
		shown.Counted += max(0, s.Counted)
		shown.Met += s.Met
		shown.Written += s.Written
	}
	if shown.Seconds > 0 {
		shown.PerSecond = float64(shown.Met) / shown.Seconds
	}
	return shown, parts, err
}

// parameters are the names of what a kick-off asked for.
func parameters(k *state.Kickoff) (names []string) {
	for _, parameter := range []struct {
		name  string
		given bool
	}{
		{"_since", !k.Since.IsZero()},
		{"_until", !k.Until.IsZero()},
		{"_type", len(k.Types) > 0},
		{"_typeFilter", len(k.Filters) > 0},
		{"_elements", len(k.Elements) > 0},
		{"patient", len(k.Patients) > 0},
		{"includeAssociatedData", len(k.Associated) > 0},
		{"organizeOutputBy", k.OrganizeBy != ""},
		{"allowPartialManifests", k.PartialManifests},
		{"_minimumFileSize", k.MinFileBytes > 0},
		{"_maximumFileSize", k.MaxFileBytes > 0},
	} {
		if parameter.given {
			names = append(names, parameter.name)
		}
	}
	return names
}

// answerJSON answers with a value, or with what kept it from being read.
func answerJSON(w http.ResponseWriter, value any, err error) {
	if errors.Is(err, state.ErrNotFound) {
		answer(w, http.StatusNotFound, "there is no such export\n")
		return
	}
	var body []byte
	if err == nil {
		body, err = json.MarshalIndent(value, "", "  ")
	}
	if err != nil {
		answer(w, http.StatusInternalServerError, "the state cannot be read; the log and the metric sidecar_state_up say more\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // an operator who has left wants no answer
}
