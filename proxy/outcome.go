package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// refusal is an error with its own status and issue code. Its text is for the client.
type refusal struct {
	status int
	code   string
	text   string
}

func (r *refusal) Error() string { return r.text }

// login is a refusal of a client's credentials, with the upstream's own words on which ones it wants.
type login struct {
	refusal
	challenge []string
}

func (l *login) Unwrap() error { return &l.refusal }

// errInside is for what the client can do nothing about.
var errInside = &refusal{http.StatusInternalServerError, "exception", "an error inside the export sidecar; its log says more"}

// retryPause is the Retry-After of refusals that pass by themselves.
const retryPause = 5 * time.Second

// refuse is the only way from an error to a status and an OperationOutcome. What is not in its table is a 500 without any
// text from inside, and a line in the log.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var known *refusal
	var wrong faults
	var fault *panicked
	switch {
	case errors.As(err, &wrong):
		p.writeOutcome(w, r, http.StatusBadRequest, wrong.outcome())
		return
	case errors.As(err, &known):
	case errors.Is(err, state.ErrNotFound):
		known = &refusal{http.StatusNotFound, "not-found", "there is no such export, or it was deleted or has expired"}
	case errors.Is(err, state.ErrBusy):
		known = &refusal{http.StatusTooManyRequests, "throttled", "another export is running: try again when it has ended, or delete it"}
	case errors.Is(err, state.ErrTooMany):
		known = &refusal{http.StatusTooManyRequests, "throttled", "too many exports of this client are kept: delete those that are not needed any more"}
	case state.DiskFull(err):
		p.Log.WarnContext(r.Context(), "request refused: the disk is full", "error", err)
		known = &refusal{http.StatusServiceUnavailable, "no-store", "the export sidecar's disk has no room now"}
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil: // the client has left; nobody reads the answer
		known = &refusal{http.StatusServiceUnavailable, "transient", "the request was cancelled"}
	case errors.As(err, &fault):
		p.endedByPanic(r.Context(), fault)
		known = errInside
	default:
		p.Log.ErrorContext(r.Context(), "request failed", "error", err)
		known = errInside
	}
	var unknown *login
	if errors.As(err, &unknown) {
		w.Header()["Www-Authenticate"] = unknown.challenge
	}
	if known.status == http.StatusServiceUnavailable || known.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", strconv.Itoa(int(retryPause.Seconds())))
	}
	p.writeOutcome(w, r, known.status, fhir.NewOutcome("error", known.code, known.text))
}

// writeOutcome answers with an outcome of our own, by which the request can be found in the log.
func (p *Proxy) writeOutcome(w http.ResponseWriter, r *http.Request, status int, outcome *fhir.OperationOutcome) {
	outcome.ID = RequestID(r.Context())
	body, err := json.Marshal(outcome)
	if err != nil {
		p.Log.ErrorContext(r.Context(), "outcome not written", "error", err)
		body = nil
	}
	header := w.Header()
	header.Set("Content-Type", "application/fhir+json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Cache-Control", "no-store")
	header.Set(cmp.Or(p.RequestIDHeader, DefaultRequestIDHeader), outcome.ID)
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		p.Log.DebugContext(r.Context(), "answer not delivered", "error", err)
	}
}

// upstreamRefusal turns an error of a check at the upstream into the answer of the kick-off: what the server refuses to
// this client, the sidecar refuses likewise; a server that cannot be asked is not the client's fault.
func upstreamRefusal(err error, what string) error {
	var known *refusal
	switch status := fhir.StatusOf(err); {
	case errors.As(err, &known):
		return known
	case status == http.StatusUnauthorized:
		var response *fhir.ResponseError
		errors.As(err, &response)
		challenge := response.Challenge
		if len(challenge) == 0 { // a 401 has to have one (RFC 9110, section 15.5.2), whatever the server forgets
			challenge = []string{"Bearer"}
		}
		return &login{refusal{status, "login", "the FHIR server does not accept these credentials for " + what}, challenge}
	case status == http.StatusForbidden:
		return &refusal{status, "forbidden", "the FHIR server does not allow " + what}
	case status == http.StatusNotFound || status == http.StatusGone:
		return &refusal{http.StatusNotFound, "not-found", "the FHIR server does not know " + what}
	case status >= 400 && status < 500 && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests:
		return &refusal{http.StatusBadRequest, "not-supported", "the FHIR server refuses " + what + " with status " + strconv.Itoa(status)}
	}
	return &refusal{http.StatusServiceUnavailable, "transient", "the FHIR server could not be asked for " + what}
}
