//go:build figures

package bench

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// server is a FHIR server over computed rows. It knows what an export asks for, and refuses every other parameter.
type server struct {
	http     *httptest.Server
	types    []*rows
	counts   bool          // it counts; else an export reads a type as one slice
	thinking time.Duration // per row of a page, before the page begins

	mu     sync.Mutex
	asked  []string // the addresses of the pages since the last take
	onThem int64    // the rows on those pages
}

func startServer(t *testing.T, s *server) *server {
	t.Helper()
	s.http = httptest.NewServer(s)
	t.Cleanup(s.http.Close)
	return s
}

func (s *server) base() string { return s.http.URL + "/fhir" }

// take returns the addresses of the sorted pages that were asked for since the last take, and how many rows those had.
func (s *server) take() (asked []string, onThem int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, onThem = s.asked, s.onThem
	s.asked, s.onThem = nil, 0
	return asked, onThem
}

// ServeHTTP answers the CapabilityStatement, searches, and histories, in which nothing ever happens.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/fhir+json")
	path := strings.TrimPrefix(r.URL.Path, "/fhir/")
	if path == "metadata" {
		s.metadata(w)
		return
	}
	typ, rest, _ := strings.Cut(path, "/")
	for _, of := range s.types {
		switch {
		case of.typ != typ || r.Method != http.MethodGet:
		case rest == "_history":
			_, _ = w.Write([]byte(`{"resourceType":"Bundle","type":"history","total":0}`))
			return
		case rest == "":
			s.search(w, r, of)
			return
		}
	}
	refuse(w, http.StatusNotFound)
}

func refuse(w http.ResponseWriter, status int) {
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"not-supported"}]}`))
}

func (s *server) metadata(w http.ResponseWriter) {
	var resources []string
	for _, of := range s.types {
		resources = append(resources, fmt.Sprintf(`{"type":"%s","interaction":[{"code":"search-type"}]}`, of.typ))
	}
	_, _ = fmt.Fprintf(w, `{"resourceType":"CapabilityStatement","status":"active","fhirVersion":"4.0.1","software":{"name":"Plain","version":"1"},`+
		`"rest":[{"mode":"server","resource":[%s]}]}`, strings.Join(resources, ","))
}

// search is the question of one page.
type search struct {
	first, end int64 // the rows that match
	count      int64
	down       bool
	offset     int64
	counted    bool
	sorted     bool
}

func (s *server) search(w http.ResponseWriter, r *http.Request, of *rows) {
	values := r.URL.Query()
	q, ok := s.parse(values, of)
	if !ok {
		refuse(w, http.StatusBadRequest)
		return
	}
	if q.counted {
		_, _ = fmt.Fprintf(w, `{"resourceType":"Bundle","type":"searchset","total":%d}`, q.end-q.first)
		return
	}
	n := min(q.count, max(0, q.end-q.first-q.offset))
	if q.sorted && !q.down && n > 1 {
		s.mu.Lock()
		s.asked, s.onThem = append(s.asked, r.URL.RequestURI()), s.onThem+n
		s.mu.Unlock()
		time.Sleep(time.Duration(n) * s.thinking)
	}
	next := ""
	if q.first+q.offset+n < q.end {
		values.Set("_offset", strconv.FormatInt(q.offset+n, 10))
		next = fmt.Sprintf(`,{"relation":"next","url":"%s/%s?%s"}`, s.base(), of.typ, values.Encode())
	}
	send(w, of, q, n, fmt.Sprintf(`{"resourceType":"Bundle","type":"searchset","link":[{"relation":"self","url":"%s/%s"}%s],"entry":[`, s.base(), of.typ, next))
}

// parse reads the parameters, and tells whether all of them are known.
func (s *server) parse(values url.Values, of *rows) (q search, ok bool) {
	var from, to time.Time
	q.count = 50
	for name, all := range values {
		for _, value := range all {
			var err error
			switch name {
			case "_lastUpdated":
				if at, is := strings.CutPrefix(value, "ge"); is {
					from, err = time.Parse(time.RFC3339, at)
				} else {
					to, err = time.Parse(time.RFC3339, strings.TrimPrefix(value, "lt"))
				}
			case "_count":
				q.count, err = strconv.ParseInt(value, 10, 64)
			case "_offset":
				q.offset, err = strconv.ParseInt(value, 10, 64)
			case "_sort":
				q.sorted, q.down = true, strings.HasPrefix(value, "-")
			case "_summary":
				q.counted = s.counts
				if !s.counts {
					return q, false
				}
			case "_id":
			default:
				return q, false
			}
			if err != nil {
				return q, false
			}
		}
	}
	q.count = min(q.count, 1000)
	q.first, q.end = of.window(from, to)
	if ids := values.Get("_id"); ids != "" {
		q = q.only(ids, of)
	}
	return q, true
}

// only narrows a search to some ids; the rows of a probe are neighbours.
func (q search) only(ids string, of *rows) search {
	first, end := q.end, q.first
	for id := range strings.SplitSeq(ids, ",") {
		if i, known := of.number(id); known && i >= q.first && i < q.end {
			first, end = min(first, i), max(end, i+1)
		}
	}
	q.first, q.end = first, max(first, end)
	return q
}

var (
	pages  = sync.Pool{New: func() any { return new([]byte) }}
	filler = bytes.Repeat([]byte("QUJD"), 16<<10)
)

// send writes a page of n rows. Small rows go out in one piece, the bodies of large ones are never held.
func send(w http.ResponseWriter, of *rows, q search, n int64, head string) {
	held := pages.Get().(*[]byte)
	defer pages.Put(held)
	page := append((*held)[:0], head...)
	for k := range n {
		i := q.first + q.offset + k
		if q.down {
			i = q.end - 1 - q.offset - k
		}
		begin := len(page)
		page = of.append(page, i)
		if k == 0 {
			page = append(page[:begin], page[begin+1:]...) // no comma before the first one
		}
		if of.bodyBytes == 0 {
			continue
		}
		at := len(page) - len(of.entry) + of.bodyAt
		_, _ = w.Write(page[:at])
		for left := of.bodyBytes; left > 0; left -= int64(len(filler)) {
			if _, err := w.Write(filler[:min(left, int64(len(filler)))]); err != nil {
				return // the client has left
			}
		}
		page = append(page[:0], page[at:]...)
	}
	page = append(page, "]}"...)
	if of.bodyBytes == 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(page)))
	}
	_, _ = w.Write(page)
	*held = page
}
