package fhirtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

func TestFaultsStrikeInOrderAndAsOften(t *testing.T) {
	u := start(t, fhirtest.Plain())
	u.patients(1)
	onPatient := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Patient") }
	u.Fail(fhirtest.Fault{Match: onPatient, Times: 2, Status: 429, Header: http.Header{"Retry-After": {"1"}}})
	u.Fail(fhirtest.Fault{Match: onPatient, Status: 500, Body: []byte(`{"x":1}`)})
	u.Fail(fhirtest.Fault{Match: onPatient, HTML: true})
	for i, want := range []struct {
		path   string
		status int
		text   string
	}{
		{"/Observation", 200, `"Bundle"`},
		{"/Patient", 429, `"throttled"`},
		{"/Patient", 429, `"OperationOutcome"`},
		{"/Patient", 500, `{"x":1}`},
		{"/Patient", 200, "<html>"},
		{"/Patient", 200, `"p1"`},
	} {
		a := u.do("GET", want.path, "")
		if a.status != want.status || !strings.Contains(string(a.body), want.text) {
			t.Errorf("%d: got %d %s", i, a.status, a.body)
		}
		if a.status == 429 && a.header.Get("Retry-After") != "1" {
			t.Errorf("%d: no Retry-After", i)
		}
	}
	u.Fail(fhirtest.Fault{Times: -1, Status: 503})
	for range 3 {
		if got := u.do("GET", "/metadata", "").status; got != 503 {
			t.Errorf("got %d", got)
		}
	}
	u.ClearFaults()
	if got := u.do("GET", "/metadata", "").status; got != 200 {
		t.Errorf("after clearing got %d", got)
	}
}

func TestCutBodyIsNeverAWholeAnswer(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
			u.patients(5)
			u.Fail(fhirtest.Fault{CutBody: true, Chunked: chunked})
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.base+"/Patient", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if cerr := resp.Body.Close(); cerr != nil {
				t.Error(cerr)
			}
			if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) == 0 || resp.StatusCode != http.StatusOK {
				t.Errorf("chunked %v: got %d bytes, %v", chunked, len(body), err)
			}
			if got := len(u.get("/Patient").Entry); got != 5 {
				t.Errorf("afterwards got %d rows", got)
			}
		})
	}
}

func TestExpirePagesStrikesLinksOnly(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		u.patients(3)
		u.Fail(fhirtest.Fault{ExpirePages: http.StatusGone})
		next := u.rebased(u.get("/Patient?_count=2").link("next"))
		if got := u.do("GET", next, "").status; got != http.StatusGone {
			t.Errorf("got %d", got)
		}
		if got := u.do("GET", "/Patient?_count=2", "").status; got != http.StatusOK {
			t.Errorf("new search: got %d", got)
		}
	})
}

func TestHangEndsWithTheClient(t *testing.T) {
	u := start(t, fhirtest.Plain())
	ctx, cancel := context.WithCancel(t.Context())
	u.Fail(fhirtest.Fault{Hang: true, Do: func(*http.Request) { cancel() }})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.base+"/Patient", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err == nil {
		if cerr := resp.Body.Close(); cerr != nil {
			t.Error(cerr)
		}
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDoAloneLeavesTheAnswer(t *testing.T) {
	u := start(t, fhirtest.Plain())
	u.Fail(fhirtest.Fault{Do: func(*http.Request) { u.put(`{"resourceType":"Patient","id":"late"}`) }})
	if got := u.get("/Patient").ids(t); got != "late" {
		t.Errorf("got %q", got)
	}
}

func TestServesWithoutABasePath(t *testing.T) {
	s := fhirtest.New(fhirtest.HAPI(), "")
	for _, id := range []string{"a", "b"} {
		if err := s.Put([]byte(`{"resourceType":"Basic","id":"` + id + `"}`)); err != nil {
			t.Fatal(err)
		}
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	u := &upstream{Server: s, t: t, base: web.URL}
	if ids, pages := u.crawl("/Basic?_count=1"); len(ids) != 2 || pages != 2 {
		t.Errorf("got %v on %d pages", ids, pages)
	}
}

// Ensure that writers, readers and faults may meet; the race detector is the judge.
func TestConcurrentUse(t *testing.T) {
	each(t, func(t *testing.T, u *upstream, _ fhirtest.Personality) {
		u.patients(20)
		var group sync.WaitGroup
		for worker := range 4 {
			group.Go(func() {
				for i := range 20 {
					row := fmt.Appendf(nil, `{"resourceType":"Patient","id":"w%d","x":%d}`, worker, i)
					if err := u.Put(row); err != nil {
						t.Error(err)
					}
					for _, path := range []string{"/fhir/Patient?_count=5&_sort=_lastUpdated", "/fhir/Patient/_history?_count=5", "/fhir/_history?_count=5"} {
						w := httptest.NewRecorder()
						u.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
						if w.Code != http.StatusOK {
							t.Errorf("got %d", w.Code)
						}
					}
					u.Fail(fhirtest.Fault{Match: func(*http.Request) bool { return false }})
					u.clock.add(1)
				}
			})
		}
		group.Wait()
		if got := len(u.Resources("Patient")); got != 24 {
			t.Errorf("got %d rows", got)
		}
	})
}
