package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sidecar/exporter/blob"
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
			p.refuse(w, r, &refusal{http.StatusServiceUnavailable, "transient", "the links to the files cannot be signed now"})
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

// link is where a client reads a file: at the bucket, signed, or at the sidecar where the bucket gives no links.
func (p *Proxy) link(ctx context.Context, job *state.Job, file state.File, expires time.Time) (string, time.Time, error) {
	lifetime := min(p.LinkLifetime, time.Until(expires))
	link, dies, err := p.Bucket.SignURL(ctx, job.Folder+"/"+file.Name, lifetime)
	if errors.Is(err, errors.ErrUnsupported) {
		return job.Kickoff.Base + "/$export-file/" + job.ID + "/" + url.PathEscape(file.Name), expires, nil
	}
	return link, dies, err
}

// serveFile sends a file with Range and conditions. A download that has begun outlives the file's deletion.
func (p *Proxy) serveFile(w http.ResponseWriter, r *http.Request, job *state.Job, file state.File) {
	ctx := r.Context()
	content, err := p.Bucket.Open(ctx, job.Folder+"/"+file.Name)
	if errors.Is(err, blob.ErrNotExist) {
		err = &refusal{http.StatusNotFound, "not-found", "this export has no such file any more"}
	}
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	defer func() {
		if err := content.Close(); err != nil {
			p.Log.ErrorContext(ctx, "file not closed", "job", job.ID, "error", err)
		}
	}()
	seeker, ok := content.(io.ReadSeeker)
	if !ok { // the bucket gives links; this is not the way to its files
		p.refuse(w, r, &refusal{http.StatusNotFound, "not-found", "the files of this export are read through the manifest's links"})
		return
	}
	w.Header().Set("Content-Type", "application/fhir+ndjson")
	w.Header().Set("ETag", `"`+job.ID+"-"+strconv.FormatInt(file.Bytes, 10)+`"`)
	w.Header().Set("Cache-Control", "private, no-transform")
	guarded := &rangeGuard{ResponseWriter: w}
	http.ServeContent(guarded, r, "", job.Finished, seeker)
	if guarded.refused {
		p.refuse(w, r, &refusal{http.StatusRequestedRangeNotSatisfiable, "processing", "the file has no such range"})
	}
}

// rangeGuard holds back net/http's plain text for a range that a file does not have, so that an OperationOutcome can be
// written instead.
type rangeGuard struct {
	http.ResponseWriter
	refused bool
}

// WriteHeader passes every status on but 416.
func (g *rangeGuard) WriteHeader(status int) {
	if g.refused = status == http.StatusRequestedRangeNotSatisfiable; !g.refused {
		g.ResponseWriter.WriteHeader(status)
	}
}

// Write drops the text of a 416.
func (g *rangeGuard) Write(b []byte) (int, error) {
	if g.refused {
		return len(b), nil
	}
	return g.ResponseWriter.Write(b)
}

// ReadFrom keeps the short way from a file to the socket.
func (g *rangeGuard) ReadFrom(from io.Reader) (int64, error) { return io.Copy(g.ResponseWriter, from) }
