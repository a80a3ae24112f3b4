package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
)

// asks sends one request from an address with a token and returns the status.
func asks(t *testing.T, handler http.Handler, path, from, token string) int {
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	request.RemoteAddr = from + ":1234"
	request.Header.Set("Authorization", "Bearer "+token)
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder.Code
}

// Ensure that a client that makes up a token for each request is bounded by where it comes from, and that others, more of them
// than are remembered, do not make its bounds be forgotten.
func TestMadeUpTokensAreBounded(t *testing.T) {
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.RequestsPerSecond = 1 })
	synctest.Test(t, func(t *testing.T) {
		const path = "/fhir/$export-status/nobody"
		taken := 0
		for n := range 200 {
			if asks(t, h.handler, path, "192.0.2.1", fmt.Sprint("made-up-", n)) != http.StatusTooManyRequests {
				taken++
			}
		}
		if taken != 50 {
			t.Errorf("of 200 requests with as many tokens %d are taken, want 50", taken)
		}
		if got := asks(t, h.handler, path, "192.0.2.2", "b"); got != http.StatusNotFound {
			t.Errorf("another client: got %d", got)
		}
		for n := range 12_000 {
			asks(t, h.handler, path, fmt.Sprintf("198.51.%d.%d", n/250, n%250), fmt.Sprint("c", n))
		}
		if got := asks(t, h.handler, path, "192.0.2.1", "made-up"); got != http.StatusTooManyRequests {
			t.Errorf("it is forgotten among others: got %d", got)
		}
		time.Sleep(time.Second)
		if got := asks(t, h.handler, path, "192.0.2.1", "made-up"); got != http.StatusNotFound {
			t.Errorf("a second later: got %d", got)
		}
	})
}

// Ensure that polls are bounded before the FHIR server is asked for them, and that those of another do not count.
func TestPollsAreBoundedBeforeTheServerIsAsked(t *testing.T) {
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		if r.Header.Get("Authorization") != "Bearer right" {
			return nil
		}
		return &fhirtest.Access{}
	}
	h := newHouse(t, nobody+"/fhir", func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: c.Upstream.String(), Transport: served{sample}})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	})
	job := completed()
	job.Kickoff.Guarded, job.Kickoff.Types = true, []string{"Patient"}
	h.addJob(job, nil)
	synctest.Test(t, func(t *testing.T) {
		const path = "/fhir/$export-status/0b6a"
		refused := 0
		for range 200 {
			switch got := asks(t, h.handler, path, "192.0.2.1", "forged"); got {
			case http.StatusTooManyRequests:
				refused++
			case http.StatusUnauthorized: // the server was asked
			default:
				t.Fatalf("a poll without a right: got %d", got)
			}
		}
		if asked := len(sample.Requests()); refused != 170 || asked > 2*30 {
			t.Errorf("of 200 polls without a right %d are refused as too many, want 170, and the server was asked %d times", refused, asked)
		}
		if got := asks(t, h.handler, path, "192.0.2.1", "right"); got != http.StatusOK {
			t.Errorf("the owner: got %d", got)
		}
	})
}
