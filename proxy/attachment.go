package proxy

import (
	"io"
	"net/http"

	"github.com/gorilla/mux"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// Headers that pass between a client and the server when an attachment is read. The client's own credentials and cookies do
// not go there, nor those of the sidecar's session come back.
var (
	attachmentAsks    = []string{"Accept", "Accept-Encoding", "If-Modified-Since", "If-None-Match", "If-Range", "Range"}
	attachmentAnswers = []string{
		"Accept-Ranges", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Range", "Content-Type", "Etag",
		"Last-Modified", "Vary",
	}
)

// attachment answers a request for a Binary that an exported Attachment names. The link itself is the permission, so the server
// is asked with the sidecar's own credentials, and for nothing but what was signed.
func (p *Proxy) attachment(w http.ResponseWriter, r *http.Request, job *state.Job) {
	vars := mux.Vars(r)
	if !job.OpensAttachment(vars["mac"], vars["path"]) {
		p.refuse(w, r, &refusal{http.StatusNotFound, "not-found", "this export has no such attachment"})
		return
	}
	x, whole := p.ask(r, routeAttachment), false
	defer func() { x.asked(whole) }()
	p.Live.begin(&x.wait, x.began)
	asks := http.Header{}
	passHeaders(asks, r.Header, attachmentAsks)
	answer, err := p.Client.OpenBinary(x.connecting(r.Context()), r.Method, vars["path"], asks)
	if err != nil {
		p.upstreamFailed(w, r, x, err)
		return
	}
	defer func() { _ = answer.Body.Close() }() // an answer that was not read whole ends the request below
	if err := passAttachment(w, answer); err != nil {
		x.answered(err.status, false)
		p.refuse(w, r, err)
		return
	}
	x.answered(answer.StatusCode, true)
	if _, err := io.Copy(w, answer.Body); err != nil {
		p.Log.DebugContext(r.Context(), "attachment not delivered", "job", job.ID, "error", fhir.Cause(err))
		panic(http.ErrAbortHandler) // the client shall not take a part for the whole
	}
	whole = true
}

// passAttachment begins to answer as the server does, up to the body. What it cannot pass on is refused.
func passAttachment(w http.ResponseWriter, answer *http.Response) *refusal {
	header := w.Header()
	switch answer.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotModified:
		header.Set("Cache-Control", "private, no-transform")
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		to, err := answer.Location()
		asked := answer.Request.URL
		if err != nil || to.Host == asked.Host { // not a store beside the server, which would want a token
			return attachmentRefusal(answer.StatusCode)
		}
		if to.Host == "" || to.Scheme != "https" && to.Scheme != asked.Scheme { // no script, file or app, and no way without TLS behind one with it
			return attachmentRefusal(answer.StatusCode)
		}
		header.Set("Location", to.String())
		header.Set("Cache-Control", "no-store") // such an address does not live long
	default:
		passHeaders(header, answer.Header, []string{"Content-Range"}) // of a 416
		return attachmentRefusal(answer.StatusCode)
	}
	passHeaders(header, answer.Header, attachmentAnswers)
	// Anybody's document comes from the address of the FHIR server: no browser shall run what is in it.
	header.Set("Content-Security-Policy", "sandbox")
	header.Set("X-Content-Type-Options", "nosniff")
	asGiven(header, answer.StatusCode)
	w.WriteHeader(answer.StatusCode)
	return nil
}

func passHeaders(to, from http.Header, names []string) {
	for _, name := range names {
		if values := from[name]; len(values) > 0 {
			to[name] = append(to[name], values...)
		}
	}
}

// attachmentRefusal is what a client is told of a status with which the server does not give a Binary. Credentials of its own
// would change nothing, so that it is not asked for any.
func attachmentRefusal(status int) *refusal {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &refusal{http.StatusForbidden, "forbidden", "the FHIR server does not let the export sidecar read this attachment"}
	case http.StatusNotFound, http.StatusGone:
		return &refusal{http.StatusNotFound, "not-found", "the FHIR server has no such attachment any more"}
	case http.StatusNotAcceptable:
		return &refusal{status, "not-supported", "the FHIR server does not give the attachment in a form that the request accepts"}
	case http.StatusRequestedRangeNotSatisfiable:
		return &refusal{status, "processing", "the attachment has no such range"}
	}
	return &refusal{http.StatusServiceUnavailable, "transient", "the FHIR server does not give the attachment now"}
}
