package proxy

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"sidecar/state"
)

const (
	// maxKickoffBody bounds the body of a kick-off in bytes: some 12,000 references, which the job's record has to hold.
	maxKickoffBody = 1 << 20
	// kickoffBodyTimeout is how long it may take to arrive.
	kickoffBodyTimeout = 30 * time.Second
	// maxKickoffValues bounds the values in the address of a kick-off.
	maxKickoffValues = 1000
)

// kickOff answers a kick-off request: parse, check, store, 202. Nothing slow happens before the 202, and nothing fails
// after the job is stored. An empty shape leaves the manifest's form to the configuration.
func (p *Proxy) kickOff(w http.ResponseWriter, r *http.Request, level state.Level, shape state.Shape, who *asker) {
	prefer := parsePrefer(r.Header)
	kickoff, err := p.parseKickoff(w, r, level, prefer)
	if err == nil {
		kickoff.Shape = shape
		err = p.mayKickOff(r, kickoff, prefer, who)
	}
	event := eventOf(r)
	event.Client = who.id
	if kickoff != nil && kickoff.Client != "" {
		event.Client = kickoff.Client
	}
	var job *state.Job
	if err == nil {
		job, err = p.Exports.KickOff(r.Context(), *kickoff)
	}
	if err != nil {
		p.Metrics.kickOffs.WithLabelValues(string(level), "refused").Inc()
		p.refuse(w, r, err)
		return
	}
	p.lend(r, job)
	p.Metrics.kickOffs.WithLabelValues(string(level), "accepted").Inc()
	event.Job, event.Group, event.Types = job.ID, state.GroupHash(kickoff.Group), kickoff.Types
	w.Header().Set("Content-Location", statusAddress(kickoff.Base, job.ID))
	if applied := prefer.applied(); applied != "" {
		w.Header().Set("Preference-Applied", applied)
	}
	w.WriteHeader(http.StatusAccepted)
}

// parseKickoff reads a kick-off strictly: what is not understood is refused, all of it at once, unless the client prefers
// that it be ignored.
func (p *Proxy) parseKickoff(w http.ResponseWriter, r *http.Request, level state.Level, prefer preferences) (*state.Kickoff, error) {
	base := p.publicBase(r)
	kickoff := &state.Kickoff{
		Level:          level,
		Base:           base,
		Request:        base + strings.TrimPrefix(r.URL.EscapedPath(), p.basePath),
		SeparateStatus: prefer.separateStatus,
	}
	if r.URL.RawQuery != "" && r.Method == http.MethodGet { // the guide wants no parameters in the request of a POST
		kickoff.Request += "?" + r.URL.RawQuery
	}
	if level == state.Group {
		id, err := url.PathUnescape(mux.Vars(r)["group"])
		if err != nil || strings.ContainsAny(id, "/?#") || id == "." || id == ".." { // these would read another address
			return nil, &refusal{http.StatusBadRequest, "invalid", "the Group's id in the path is not an id"}
		}
		kickoff.Group = id
	}
	if strings.Count(r.URL.RawQuery, "&") >= maxKickoffValues {
		return nil, &refusal{http.StatusBadRequest, "too-costly", "the address of a kick-off may have 1,000 parameters at most: send more in the body of a POST"}
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "invalid", "the query cannot be read: check its percent signs and semicolons"}
	}
	read := &reading{Kickoff: kickoff, posted: r.Method == http.MethodPost, bases: append(p.Client.Bases(), base), maxFileBytes: p.MaxFileBytes}
	if read.posted {
		body, err := kickoffBody(w, r)
		if err != nil {
			return nil, err
		}
		if len(body) > 0 {
			if err := read.body(body, values); err != nil {
				return nil, err
			}
		}
	}
	read.parameters(values)
	return kickoff, prefer.settle(kickoff, read.faults)
}

// kickoffBody reads the body of a POST, which may be empty.
func kickoffBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	// net/http sets the deadline anew behind each request. Where none can be set, in tests, the body is here already.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(kickoffBodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxKickoffBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &refusal{http.StatusRequestTimeout, "timeout", "the body of the request did not arrive within 30 seconds"}
	case errors.As(err, &tooLarge):
		return nil, &refusal{http.StatusRequestEntityTooLarge, "too-long", "the body of a kick-off may have 1 MiB at most"}
	case err != nil:
		return nil, &refusal{http.StatusBadRequest, "incomplete", "the body of the request did not arrive whole"}
	case len(body) > 0 && !isJSON(r.Header):
		return nil, &refusal{
			http.StatusUnsupportedMediaType, "not-supported", "the body of a kick-off is a Parameters resource as application/fhir+json or application/json, in UTF-8",
		}
	}
	return body, nil
}
