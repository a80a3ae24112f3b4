package proxy

import (
	"net/http"
	"strconv"

	"sidecar/state"
)

// manifest answers with the manifest of a completed job. Links are signed now, so that they live as long as they can;
// Expires is when the first of them dies.
func (p *Proxy) manifest(w http.ResponseWriter, r *http.Request, job *state.Job) {
	files, err := p.Jobs.Files(r.Context(), job.ID)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	expires := p.Exports.ExpiresAt(job)
	links := make(map[string]string, len(files))
	for _, file := range files {
		link, dies, err := p.link(r.Context(), job, file, expires)
		if err != nil {
			p.Log.ErrorContext(r.Context(), "link not signed", "job", job.ID, "error", err)
			p.refuse(w, r, errNotSigned)
			return
		}
		if dies.Before(expires) {
			expires = dies
		}
		links[file.Name] = link
	}
	body, err := state.EncodeManifest(job, files, func(file state.File) string { return links[file.Name] })
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Expires", expires.UTC().Format(http.TimeFormat))
	w.WriteHeader(pollStatus(w, job, http.StatusOK))
	if _, err := w.Write(body); err != nil {
		p.Log.DebugContext(r.Context(), "answer not delivered", "error", err)
	}
}
