package proxy

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/gorilla/mux"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// maxRetryAfter bounds what a poll is told to wait; small jobs are told a second.
	maxRetryAfter = 30 * time.Second
	// pollShare is the share of the time a job has run that a client waits until its next poll.
	pollShare = 10
)

// status answers a status request.
func (p *Proxy) status(w http.ResponseWriter, r *http.Request) {
	job, err := p.job(r)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	switch job.Status {
	case state.Completed:
		p.manifest(w, r, job)
	case state.Failed:
		p.refuse(w, r, &refusal{job.Failure.Status, job.Failure.Code, job.Failure.Text})
	default:
		progress, err := p.progress(r.Context(), job)
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		w.Header().Set("X-Progress", progress)
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter(time.Since(job.Accepted))))
		w.WriteHeader(http.StatusAccepted)
	}
}

// job finds the job of a request; one whose retention is over is gone, swept or not.
func (p *Proxy) job(r *http.Request) (*state.Job, error) {
	job, err := p.Jobs.Get(r.Context(), mux.Vars(r)["job"])
	if err != nil {
		return nil, err
	}
	if expires := p.Exports.ExpiresAt(job); !expires.IsZero() && !time.Now().Before(expires) {
		return nil, state.ErrNotFound
	}
	return job, nil
}

// retryAfter is the pause until the next poll in whole seconds: a tenth of the time that the job has taken so far.
func retryAfter(elapsed time.Duration) int {
	return int(max(time.Second, min(maxRetryAfter, elapsed/pollShare)).Seconds())
}

// progress is the X-Progress of a running job: under 100 characters, the percentage first, and below 100 until the
// manifest can be read.
func (p *Proxy) progress(ctx context.Context, job *state.Job) (string, error) {
	stage := ""
	if p.Stages != nil {
		stage = p.Stages.Stage(job.ID)
	}
	if !job.Planned {
		switch {
		case stage != "":
		case job.Status == state.Accepted:
			stage = "accepted"
		default:
			stage = "waiting to go on"
		}
		return "0 %, " + stage, nil
	}
	slices, err := p.Jobs.Slices(ctx, job.ID)
	if err != nil {
		return "", err
	}
	var read, all int64
	for _, slice := range slices {
		if slice.Counted < 0 { // nobody counted it
			continue
		}
		all += slice.Counted
		read += min(slice.Shown, slice.Counted)
	}
	if stage != "" {
		stage = ", " + stage
	}
	if all == 0 {
		return "1 %, reading" + stage, nil
	}
	return fmt.Sprintf("%d %%, %d of %d resources read%s", min(99, read*100/all), read, all, stage), nil
}

// cancel answers a DELETE of the status address: from here on the job is gone.
func (p *Proxy) cancel(w http.ResponseWriter, r *http.Request) {
	job, err := p.job(r)
	if err == nil {
		err = p.Exports.Cancel(r.Context(), job.ID)
	}
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	p.writeOutcome(w, r, http.StatusAccepted, fhir.NewOutcome("information", "informational", "the export is deleted"))
}
