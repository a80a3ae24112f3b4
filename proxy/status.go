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
	maxRetryAfter = time.Minute
	// pollShare is the part of the time a job needs yet that a client waits until its next poll.
	pollShare = 10
	// maxProgress is the length of an X-Progress that the guide allows.
	maxProgress = 99
)

// status answers a status request.
func (p *Proxy) status(w http.ResponseWriter, r *http.Request, job *state.Job) {
	page, err := pageOf(r, job)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	switch job.Status {
	case state.Completed:
		p.manifest(w, r, job, page, http.StatusOK)
	case state.Failed:
		if job.Kickoff.SeparateStatus {
			p.writeOutcome(w, r, pollStatus(w, job, job.Failure.Status), fhir.NewOutcome("error", job.Failure.Code, job.Failure.Text))
			return
		}
		p.refuse(w, r, &refusal{job.Failure.Status, job.Failure.Code, job.Failure.Text})
	default:
		percent, progress, err := p.progress(r.Context(), job)
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		w.Header().Set("X-Progress", progress)
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter(time.Since(job.Accepted), percent)))
		if page > 0 && job.HasPage(page) {
			p.manifest(w, r, job, page, http.StatusAccepted)
			return
		}
		w.WriteHeader(pollStatus(w, job, http.StatusAccepted))
	}
}

// pollStatus is the status of an answer about a job whose own status is the one given. Clients that prefer
// separate-export-status are told the job's own in a header, and with 200 that the answer is one.
func pollStatus(w http.ResponseWriter, job *state.Job, status int) int {
	if !job.Kickoff.SeparateStatus {
		return status
	}
	w.Header().Set("X-Export-Status", strconv.Itoa(status)+" "+http.StatusText(status))
	return http.StatusOK
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

// retryAfter is the pause until the next poll in whole seconds: a tenth of what the job needs yet at its pace so far. While
// there is no pace to speak of, and at most, it is a tenth or half of the time that the job has taken.
func retryAfter(elapsed time.Duration, percent int64) int {
	wait := elapsed / pollShare
	if percent > 0 {
		wait = min(elapsed/2, elapsed/time.Duration(percent)*time.Duration(100-percent)/pollShare)
	}
	return int(max(time.Second, min(maxRetryAfter, wait)).Seconds())
}

// progress is how far a running job is, in percent and as X-Progress: under 100 characters, the percentage first, below
// 100 until the manifest can be read. It never goes back, because what was counted is fixed with the plan and Slice.Shown
// only grows.
func (p *Proxy) progress(ctx context.Context, job *state.Job) (percent int64, text string, err error) {
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
		return 0, shortened("0 %, " + stage), nil
	}
	slices, err := p.Jobs.Slices(ctx, job.ID)
	if err != nil {
		return 0, "", err
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
		return 0, shortened("1 %, reading" + stage), nil
	}
	percent = min(99, read*100/all)
	return percent, shortened(fmt.Sprintf("%d %%, %d of %d resources read%s", percent, read, all, stage)), nil
}

func shortened(progress string) string { return progress[:min(maxProgress, len(progress))] }

// cancel answers a DELETE of the status address: from here on the job is gone.
func (p *Proxy) cancel(w http.ResponseWriter, r *http.Request, job *state.Job) {
	if err := p.Exports.Cancel(r.Context(), job.ID); err != nil {
		p.refuse(w, r, err)
		return
	}
	p.writeOutcome(w, r, http.StatusAccepted, fhir.NewOutcome("information", "informational", "the export is deleted"))
}
