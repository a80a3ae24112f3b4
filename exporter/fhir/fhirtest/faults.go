package fhirtest

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Fault breaks chosen requests. The first fault in the queue that matches a request is used for it; of the ways to
// break, the first that is set counts, in the order of the fields.
type Fault struct {
	// Match chooses the requests; nil chooses all.
	Match func(*http.Request) bool
	// Times is how often the fault strikes (0: once, negative: always).
	Times int
	// Do runs before the answer, for tests that must write or stop something at just this request. With nothing else
	// set the request is then answered as usual.
	Do func(*http.Request)

	// Hang answers nothing until the client goes away.
	Hang bool
	// ExpirePages forgets every page link issued so far and answers this status, 404 or 410. Only requests that follow
	// a page link match.
	ExpirePages int
	// CutBody ends the real answer in the middle of its body, although its Content-Length says more; with Chunked set
	// there is no length and the connection is aborted instead.
	CutBody, Chunked bool
	// HTML answers with the page of some proxy in text/html, with Status or 200.
	HTML bool
	// Status, Header and Body are the answer; without a Body it is an OperationOutcome.
	Status int
	Header http.Header
	Body   []byte
}

// Fail puts a fault at the end of the queue.
func (s *Server) Fail(f Fault) {
	if f.Times == 0 {
		f.Times = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// ClearFaults empties the queue.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// takeFault finds the fault of a request and uses it up by one.
func (s *Server) takeFault(r *http.Request) *Fault {
	s.mu.Lock()
	queue := slices.Clone(s.faults)
	s.mu.Unlock()
	for _, f := range queue {
		// Match runs without the lock, so that it may ask the server.
		if f.ExpirePages != 0 && !s.isPageLink(r) || f.Match != nil && !f.Match(r) {
			continue
		}
		if s.useFault(f) {
			return f
		}
	}
	return nil
}

func (s *Server) useFault(f *Fault) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.faults, f)
	if i < 0 {
		return false
	}
	if f.Times > 0 {
		if f.Times--; f.Times == 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
	}
	return true
}

// isPageLink says whether a request follows a page link.
func (s *Server) isPageLink(r *http.Request) bool {
	values := r.URL.Query()
	param := s.p.pageParam()
	return values.Has("_getpages") || values.Has(cursorParam) || param != "" && values.Has(param) || strings.Contains(r.URL.Path, "/__page/")
}

// breakAnswer answers as the fault says; false means that the request is to be answered as usual.
func (s *Server) breakAnswer(f *Fault, w http.ResponseWriter, r *http.Request, form string) bool {
	if f.Do != nil {
		f.Do(r)
	}
	maps.Copy(w.Header(), f.Header)
	switch {
	case f.Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.ExpirePages != 0:
		s.forgetListings()
		s.fail(w, r, refuse(f.ExpirePages, "the page link has expired"))
	case f.CutBody:
		s.cut(f, w, r, form)
	case f.HTML:
		status := f.Status
		if status == 0 {
			status = http.StatusOK
		}
		respond(w, status, "text/html; charset=utf-8", []byte("<!DOCTYPE html>\n<html><body><h1>Please sign in</h1></body></html>\n"))
	case f.Status != 0 && f.Body == nil:
		s.fail(w, r, refuse(f.Status, "%s", strings.ToLower(http.StatusText(f.Status))))
	case f.Status != 0:
		respond(w, f.Status, fhirJSON, f.Body)
	default:
		return false
	}
	return true
}

// respond writes a whole answer; a Content-Type of the fault's own header stays.
func respond(w http.ResponseWriter, status int, contentType string, body []byte) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// cut sends the first half of the real answer and aborts.
func (s *Server) cut(f *Fault, w http.ResponseWriter, r *http.Request, form string) {
	whole := &recorder{header: w.Header(), status: http.StatusOK}
	s.serve(whole, r, form)
	if !f.Chunked {
		w.Header().Set("Content-Length", strconv.Itoa(whole.body.Len()))
	}
	w.WriteHeader(whole.status)
	half := whole.body.Bytes()[:whole.body.Len()/2]
	if _, err := w.Write(half); err == nil {
		if err := http.NewResponseController(w).Flush(); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	panic(http.ErrAbortHandler)
}

// recorder holds an answer back.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
