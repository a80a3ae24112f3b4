package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Ensure an export of an installation through which all writers pass has a write that was under way at its transaction time and
// was stamped before it, although it showed long after, and does not wait as long as settle says.
func TestWritesInFlightAreAwaited(t *testing.T) {
	t.Parallel() // it waits
	const settle, slow = 15 * time.Second, 4 * time.Second
	server := startSample(t, 20)
	began := make(chan time.Time, 1)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			server.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		start := time.Now()
		shown := start.Add(slow)
		if err == nil {
			err = server.PutLate(body, start, shown)
		}
		if err != nil {
			t.Error(err)
		}
		began <- start
		<-time.After(time.Until(shown)) // the transaction
		server.CatchUp()
		w.WriteHeader(http.StatusOK)
	}))
	t.Cleanup(front.Close)
	s := startSidecar(t, front.URL+"/fhir", settings{"settle": settle.String(), "writes_pass_here": true})
	s.export(t, "$export") // what was written before the start of the sidecar counts as in flight for as long as settle

	answered := make(chan error, 1)
	go func() {
		body := strings.NewReader(`{"resourceType":"Observation","id":"in-flight","status":"final","code":{}}`)
		request, err := http.NewRequest(http.MethodPut, s.base+"/Observation/in-flight", body)
		if err == nil {
			request.Header.Set("Content-Type", "application/fhir+json")
			var response *http.Response
			if response, err = http.DefaultClient.Do(request); err == nil {
				if response.StatusCode != http.StatusOK {
					err = fmt.Errorf("status %d", response.StatusCode)
				}
				_ = response.Body.Close()
			}
		}
		answered <- err
	}()
	stamped := <-began
	kicked := time.Now()
	result := s.export(t, "$export")
	took := time.Since(kicked)
	if err := <-answered; err != nil {
		t.Fatalf("write through the sidecar: %v", err)
	}
	if result.rows["Observation/in-flight"] == nil {
		t.Errorf("a write stamped %s before the kick-off is not in the export", kicked.Sub(stamped))
	}
	if took < slow/2 || took >= settle {
		t.Errorf("the export took %s, want about %s and less than settle, %s", took, slow, settle)
	}
}
