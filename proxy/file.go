package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/gorilla/mux"

	"sidecar/exporter/blob"
	"sidecar/state"
)

// Links says where the links of a manifest lead.
type Links string

// The three ways to a file.
const (
	// Signed links lead to the store itself; where the bucket gives none, the sidecar streams.
	Signed Links = "signed"
	// Redirect links lead to the sidecar, which answers with a redirect to a link that it signs then.
	Redirect Links = "redirect"
	// Stream links lead to the sidecar, which sends the file itself.
	Stream Links = "stream"
)

// file answers a request for one output file.
func (p *Proxy) file(w http.ResponseWriter, r *http.Request, job *state.Job) {
	name := mux.Vars(r)["name"]
	if err := p.mayRead(r, job, name); err != nil {
		p.refuse(w, r, err)
		return
	}
	file, err := p.Jobs.File(r.Context(), job.ID, name)
	if err == nil && !job.Shows(file) {
		err = state.ErrNotFound
	}
	if errors.Is(err, state.ErrNotFound) {
		err = &refusal{http.StatusNotFound, "not-found", "this export has no such file"}
	}
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	eventOf(r).File, eventOf(r).SHA256 = file.Name, file.SHA256
	switch {
	case p.Links != Stream && r.Method == http.MethodGet:
		p.redirect(w, r, job, file)
	default:
		p.serveFile(w, r, job, file)
	}
}

// redirect sends a client to the store. Where the bucket gives no links the file is sent.
func (p *Proxy) redirect(w http.ResponseWriter, r *http.Request, job *state.Job, file state.File) {
	link, _, err := p.sign(r.Context(), job, file, p.expiresAt(job))
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		p.serveFile(w, r, job, file)
	case err != nil:
		p.Log.ErrorContext(r.Context(), "link not signed", "job", job.ID, "error", err)
		p.refuse(w, r, errNotSigned)
	default:
		header := w.Header()
		header.Set("Location", link)
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Length", "0") // Go's own Redirect writes HTML, which some clients take for the file
		w.WriteHeader(http.StatusTemporaryRedirect)
	}
}

// errNotSigned is told to clients while the store's signer does not work.
var errNotSigned = &refusal{http.StatusServiceUnavailable, "transient", "the links to the files cannot be signed now"}

// serveFile sends a file, as it lies in the bucket where the client takes that, with Range and conditions; decompressed on
// the way it has no ranges. A download that has begun outlives the file's deletion.
func (p *Proxy) serveFile(w http.ResponseWriter, r *http.Request, job *state.Job, file state.File) {
	ctx, header := r.Context(), w.Header()
	size, etag, guarded := file.Bytes, fmt.Sprintf("%s-%d", job.ID, file.Bytes), &rangeGuard{ResponseWriter: w}
	unpack := file.Compressed > 0 && !takesGzip(r.Header)
	if file.Compressed > 0 {
		header.Set("Vary", "Accept-Encoding")
	}
	if file.Compressed > 0 && !unpack {
		size, etag = file.Compressed, fmt.Sprintf("%s-%d-gzip", job.ID, file.Compressed)
	}
	guarded.size = size
	content := &object{size: size, unpack: unpack, open: func(offset int64) (io.ReadCloser, error) {
		return p.Bucket.Open(ctx, job.Folder+"/"+file.Name, offset)
	}}
	if unpack {
		r = r.Clone(ctx)
		r.Header.Del("Range")
		guarded.noRanges = true
	}
	if err := content.begin(rangeStart(r.Header, size)); err != nil {
		if errors.Is(err, blob.ErrNotExist) {
			err = &refusal{http.StatusNotFound, "not-found", "this export has no such file any more"}
		}
		p.refuse(w, r, err)
		return
	}
	defer func() {
		if err := content.Close(); err != nil {
			p.Log.ErrorContext(ctx, "file not closed", "job", job.ID, "error", err)
		}
	}()
	if file.Compressed > 0 && !unpack {
		header.Set("Content-Encoding", blob.Gzip)
	}
	header.Set("Content-Type", "application/fhir+ndjson")
	header.Set("ETag", strconv.Quote(etag))
	header.Set("Cache-Control", "private, no-transform")
	http.ServeContent(guarded, r, "", job.Finished, content.seeker())
	if guarded.refused {
		header.Del("Content-Encoding")
		p.refuse(w, r, &refusal{http.StatusRequestedRangeNotSatisfiable, "processing", "the file has no such range"})
	}
}

// takesGzip tells whether a client says that it takes gzip. One that says nothing may be a tool that saves what it gets. What is
// said of gzip itself counts more than what is said of any coding (RFC 9110, section 12.5.3).
func takesGzip(header http.Header) bool {
	named, takes := false, false
	for part := range strings.SplitSeq(strings.Join(header.Values("Accept-Encoding"), ","), ",") {
		coding, weight, _ := strings.Cut(part, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		byName := coding == "gzip" || coding == "x-gzip"
		if !byName && (coding != "*" || named) {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimPrefix(strings.ReplaceAll(weight, " ", ""), "q="), 64)
		named, takes = byName, err != nil || q > 0
	}
	return takes
}

// rangeStart is where the first range of a request begins, 0 where that is not plain. It only saves opening the object twice.
func rangeStart(header http.Header, size int64) int64 {
	first, _, _ := strings.Cut(strings.TrimPrefix(header.Get("Range"), "bytes="), "-")
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 || start >= size {
		return 0
	}
	return start
}

// rangeGuard holds back net/http's plain text for a range that a file does not have, so that an OperationOutcome can be
// written instead.
type rangeGuard struct {
	http.ResponseWriter
	refused bool
	// noRanges tells clients that there are none.
	noRanges bool
	// size is the length of a whole answer, which net/http leaves out where there is a Content-Encoding.
	size int64
}

// WriteHeader passes every status on but 416.
func (g *rangeGuard) WriteHeader(status int) {
	if status == http.StatusOK {
		g.Header().Set("Content-Length", strconv.FormatInt(g.size, 10))
	}
	if g.noRanges {
		g.Header().Set("Accept-Ranges", "none")
	}
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
