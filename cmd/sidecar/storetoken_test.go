package main

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
)

// Ensure nothing by which a client shows who it is reaches the store, whichever way its files go and whatever it sends; and that
// who follows the redirect is told no token either.
func TestStoreNeverSeesTheTokenOfAClient(t *testing.T) {
	t.Parallel()
	const token = "Bearer token-of-the-client"
	_, upstream := newSample(t, fhirtest.Plain(), 2)
	for _, links := range []proxy.Links{proxy.Redirect, proxy.Stream} {
		store := &signedStore{}
		s := startBeforeStore(t, upstream, store, func(c *config) { c.Links, c.ForwardHeaders = links, []string{"X-Api-Key"} })
		until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
		mine := []string{"Authorization", token, "X-Api-Key", "key-of-the-client", "Cookie", "session=of-the-client"}
		kicked := ask(t, http.MethodGet, s.base+"/$export?_type=Patient", mine...)
		if kicked.status != http.StatusAccepted {
			t.Fatalf("kick-off: got %d %s", kicked.status, kicked.body)
		}
		manifest := s.manifest(kicked.header.Get("Content-Location"), mine...)
		if !manifest.RequiresAccessToken || len(manifest.Output) != 1 {
			t.Fatalf("%s: got %+v", links, manifest)
		}
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			got := ask(t, method, manifest.Output[0].URL, mine...)
			if to := got.header.Get("Location"); to != "" {
				if strings.Contains(to, "of-the-client") {
					t.Error("the redirect holds what the client has sent")
				}
				got = ask(t, method, to)
			}
			if got.status != http.StatusOK {
				t.Errorf("%s of a file, %s: got %d", method, links, got.status)
			}
		}
		store.mu.Lock()
		for _, header := range store.headers {
			for name, values := range header {
				if slices.ContainsFunc(values, func(value string) bool { return strings.Contains(value, "of-the-client") }) {
					t.Errorf("%s: the store was sent the client's %s", links, name)
				}
			}
		}
		if len(store.headers) < 5 { // the test of the bucket, the file, its manifest, and a reading
			t.Errorf("%s: the store was asked %d times", links, len(store.headers))
		}
		store.mu.Unlock()
	}
}
