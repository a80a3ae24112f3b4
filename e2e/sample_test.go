package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

const (
	// samplePage is the number of rows in a page of the exports of the sample.
	samplePage = 20
	// sampleSince lies within the sample's rows: what was deleted after it is reported.
	sampleSince = "2020-01-01T00:01:00Z"
)

// sampleServer is a server with a small clinic, in this process. Its rows are the same at each start, byte for byte.
type sampleServer struct {
	*fhirtest.Server
	base string // with the path of the FHIR base

	mu sync.Mutex
	// hook sees each request before it is answered. May be nil.
	hook func(*http.Request)
}

// startSample serves a clinic of so many patients, with some rows that were deleted after sampleSince.
func startSample(t *testing.T, patients int) *sampleServer {
	t.Helper()
	personality := fhirtest.HAPI()
	personality.Types = fhirtest.FewTypes()
	s := &sampleServer{Server: fhirtest.New(personality, "/fhir")}
	at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, resource := range fhirtest.Generate(1, patients) {
		if err := s.PutAt(resource, at); err != nil {
			t.Fatal(err)
		}
		at = at.Add(300 * time.Millisecond)
	}
	s.Now = func() time.Time { return at }
	for n := range 4 {
		if err := s.Delete("Condition", fmt.Sprintf("cond-%d", 3*n+1)); err != nil {
			t.Fatal(err)
		}
	}
	s.Now = time.Now
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.hook != nil {
			s.hook(r)
		}
		s.mu.Unlock()
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	s.base = front.URL + "/fhir"
	return s
}

// onRequest sets the hook.
func (s *sampleServer) onRequest(hook func(*http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// isSamplePage matches the reading of rows, with which the plan is made and T is over.
func isSamplePage(r *http.Request) bool {
	query := r.URL.Query()
	return query.Get("_sort") == "_lastUpdated" && query.Get("_count") == fmt.Sprint(samplePage) && !strings.Contains(r.URL.Path, "_history")
}

// writeWhileRead changes, makes and deletes resources at each page that is read, all of them after T.
func (s *sampleServer) writeWhileRead(t *testing.T) {
	n := 0
	s.onRequest(func(r *http.Request) {
		if !isSamplePage(r) {
			return
		}
		n++
		for _, resource := range []string{
			fmt.Sprintf(`{"resourceType":"Patient","id":"pat-%05d","active":false}`, n%30+1),
			fmt.Sprintf(`{"resourceType":"Observation","id":"new-%d","status":"final","code":{},"subject":{"reference":"Patient/pat-00001"}}`, n),
		} {
			if err := s.Put([]byte(resource)); err != nil {
				t.Error(err)
			}
		}
		if n%3 == 0 {
			_ = s.Delete("Immunization", fmt.Sprintf("imm-%d", n)) // it may be gone already
		}
	})
}
