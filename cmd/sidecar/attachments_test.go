package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// attachmentOf exports DocumentReferences with a token, and returns the url of the only one's attachment.
func attachmentOf(t *testing.T, s *sidecar) (status, url string) {
	t.Helper()
	kicked := ask(t, http.MethodGet, s.base+"/Patient/$export?_type=DocumentReference", "Authorization", "Bearer good")
	if kicked.status != http.StatusAccepted {
		t.Fatalf("kick-off: got %d %s", kicked.status, kicked.body)
	}
	status = kicked.header.Get("Content-Location")
	manifest := s.manifest(status, "Authorization", "Bearer good")
	if len(manifest.Output) != 1 {
		t.Fatalf("%d files", len(manifest.Output))
	}
	var document struct {
		Content []struct {
			Attachment struct {
				URL string `json:"url"`
			} `json:"attachment"`
		} `json:"content"`
	}
	if err := json.Unmarshal([]byte(ask(t, http.MethodGet, manifest.Output[0].URL).body), &document); err != nil {
		t.Fatal(err)
	}
	return status, document.Content[0].Attachment.URL
}

// Ensure the attachment of an exported document is read without a token, although the server wants one, also after a restart
// and until the export is deleted (Bulk Data guide, section Attachments); and that the operator can leave it to the server.
func TestAttachmentsNeedNoTokenUnlessTheOperatorWants(t *testing.T) {
	t.Parallel()
	const binary = `{"resourceType":"Binary","id":"scan","contentType":"text/plain","data":"aGVsbG8="}`
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	for _, resource := range []string{
		binary,
		`{"resourceType":"DocumentReference","id":"d","status":"current","subject":{"reference":"Patient/pat-00001"},"content":[{"attachment":{"url":"Binary/scan"}}]}`,
	} {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Fatal(err)
		}
	}
	const own = "Basic c2lkZWNhcjpzZWNyZXQ="
	sample.Fail(fhirtest.Fault{Times: -1, Status: http.StatusUnauthorized, Match: func(r *http.Request) bool {
		asks := r.Header.Get("Authorization")
		return r.URL.Path != "/fhir/metadata" && asks != own && asks != "Bearer good"
	}})
	s := startSidecar(t, upstream, func(c *config) { c.UpstreamAuth.Basic.Username, c.UpstreamAuth.Basic.Password = "sidecar", "secret" })
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	status, link := attachmentOf(t, s)
	s.stop()
	s.start()
	if got := ask(t, http.MethodGet, link); got.status != http.StatusOK || !strings.Contains(got.body, "aGVsbG8=") {
		t.Errorf("without a token: got %d %s", got.status, got.body)
	}
	if got := ask(t, http.MethodGet, s.base+"/Binary/scan"); got.status != http.StatusUnauthorized {
		t.Errorf("at the server's address: got %d", got.status)
	}
	if got := ask(t, http.MethodDelete, status, "Authorization", "Bearer good"); got.status != http.StatusAccepted {
		t.Errorf("DELETE: got %d", got.status)
	}
	checkOutcome(t, ask(t, http.MethodGet, link), http.StatusNotFound, "not-found")
	s.stop()
	s.config.Attachments = exporter.ServerAttachments
	s.start()
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	if _, link := attachmentOf(t, s); link != s.base+"/Binary/scan" {
		t.Errorf("left to the server: %s", link)
	}
}
