package proxy

import (
	"net/http"
	"strconv"
	"time"

	"sidecar/state"
)

// pageParameter numbers the manifest pages in the address of the status, where the first one has none.
const pageParameter = "page"

// pageOf is the page that a status request asks for: 0 for the only one of a job whose client takes one manifest. A page may
// be asked for before it is there, as soon as it is the next one.
func pageOf(r *http.Request, job *state.Job) (int, error) {
	number := 1
	if asked := r.URL.Query().Get(pageParameter); asked != "" {
		var err error
		if number, err = strconv.Atoi(asked); err != nil {
			number = 0
		}
	}
	switch {
	case number == 1 && len(job.Pages) == 0:
		return 0, nil
	case job.HasPage(number), job.Kickoff.PartialManifests && number == len(job.Pages)+1:
		return number, nil
	}
	return 0, &refusal{http.StatusNotFound, "not-found", "this export has no such page"}
}

// manifest answers with a manifest of the job, or with one of its pages. Links are signed now, so that they live as long as they
// can; Expires is when the first of them dies.
func (p *Proxy) manifest(w http.ResponseWriter, r *http.Request, job *state.Job, page, status int) {
	files, err := p.Jobs.Files(r.Context(), job.ID)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	if page > 0 {
		files = state.PageFiles(job, page, files)
	}
	expires := p.expiresAt(job)
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
	address := func(file state.File) string { return links[file.Name] }
	token := p.needsToken(&job.Kickoff)
	var body []byte
	if page == 0 {
		body, err = state.EncodeManifest(job, files, token, address)
	} else {
		body, err = state.EncodePage(job, page, files, token, address, nextPage(job, page))
	}
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Expires", expires.UTC().Format(http.TimeFormat))
	w.WriteHeader(pollStatus(w, job, status))
	if _, err := w.Write(body); err != nil {
		p.Log.DebugContext(r.Context(), "answer not delivered", "error", err)
	}
}

// nextPage is where the page behind another is read, empty while there is none.
func nextPage(job *state.Job, page int) string {
	if !job.HasPage(page + 1) {
		return ""
	}
	return statusAddress(job.Kickoff.Base, job.ID) + "?" + pageParameter + "=" + strconv.Itoa(page+1)
}

// statusAddress is the address of a job's status.
func statusAddress(base, id string) string { return base + "/$export-status/" + id }

// expiresAt is when retention removes a job. One that runs is kept for longer than any link lives that is made now.
func (p *Proxy) expiresAt(job *state.Job) time.Time {
	if expires := p.Exports.ExpiresAt(job); !expires.IsZero() {
		return expires
	}
	return time.Now().Add(p.LinkLifetime)
}
