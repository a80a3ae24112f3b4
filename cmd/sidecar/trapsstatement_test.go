package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// trapStatement: the operations come into the entry of the server, which need not be the last, Patient and Group where they
// are missing, and everything else stays; JSON and XML, packed or not, without a token.
func trapStatement(t *testing.T, _ *trapHouse) {
	const (
		before = `{"resourceType":"CapabilityStatement","fhirVersion":"4.0.1","rest":[{"mode":"server","resource":[{"type":"Task","extension":[{"url":"x"}]}],` +
			`"operation":[{"name":"mine","definition":"http://x/mine"}]},{"mode":"client"}]}`
		xml = `<CapabilityStatement xmlns="http://hl7.org/fhir"><fhirVersion value="4.0.1"/><rest><mode value="server"/></rest></CapabilityStatement>`
	)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		media, text := "application/fhir+json", before
		if strings.Contains(r.Header.Get("Accept"), "xml") {
			media, text = "application/fhir+xml", xml
		}
		w.Header().Set("Content-Type", media)
		w.Header().Set("ETag", `"upstream"`)
		out := io.WriteCloser(struct {
			io.Writer
			io.Closer
		}{w, io.NopCloser(nil)})
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			out = gzip.NewWriter(w)
		}
		if _, err := io.WriteString(out, text); err != nil {
			t.Error(err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(upstream.Close)
	s := startSidecar(t, upstream.URL+"/fhir", nil)
	for _, coding := range []string{"gzip", "identity"} {
		checkStatement(t, readStatement(t, s, coding, "application/fhir+json"))
		text := readStatement(t, s, coding, "application/fhir+xml")
		for _, operation := range []string{"export", "patient-export", "group-export"} {
			if !strings.Contains(text, `<definition value="http://hl7.org/fhir/uv/bulkdata/OperationDefinition/`+operation+`"/>`) {
				t.Errorf("XML without %s: %s", operation, text)
			}
		}
	}
}

// readStatement reads the CapabilityStatement in a coding, and fails the test where its headers are not those of its body.
func readStatement(t *testing.T, s *sidecar, coding, media string) string {
	t.Helper()
	got := ask(t, http.MethodGet, s.base+"/metadata", "Accept-Encoding", coding, "Accept", media)
	if length := got.header.Get("Content-Length"); got.status != http.StatusOK || length != "" && length != fmt.Sprint(len(got.body)) {
		t.Fatalf("metadata: got %d, Content-Length %s of %d", got.status, length, len(got.body))
	}
	if got.header.Get("ETag") == `"upstream"` {
		t.Error("the changed statement has the ETag of the server's")
	}
	if got.header.Get("Content-Encoding") != "gzip" {
		return got.body
	}
	if coding != "gzip" {
		t.Error("packed, although the client takes no gzip")
	}
	packed, err := gzip.NewReader(strings.NewReader(got.body))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(packed)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func checkStatement(t *testing.T, text string) {
	t.Helper()
	type operation struct{ Name, Definition string }
	var statement struct {
		Rest []struct {
			Mode      string
			Operation []operation
			Resource  []struct {
				Type      string
				Extension []json.RawMessage
				Operation []operation
			}
		}
	}
	decodeTrap(t, text, &statement)
	found := map[string]string{}
	if len(statement.Rest) != 2 || statement.Rest[0].Mode != "server" || len(statement.Rest[1].Operation) > 0 {
		t.Fatalf("rest: got %s", text)
	}
	for _, one := range statement.Rest[0].Operation {
		found[one.Name] = one.Definition
	}
	for _, resource := range statement.Rest[0].Resource {
		for _, one := range resource.Operation {
			found[resource.Type+" "+one.Name] = one.Definition
		}
		if resource.Type == "Task" && !strings.Contains(text, `{"url":"x"}`) {
			t.Errorf("Task: got %s", resource.Extension)
		}
	}
	for name, want := range map[string]string{
		"mine": "http://x/mine", "export": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export",
		"Patient export": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/patient-export",
		"Group export":   "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export",
	} {
		if found[name] != want {
			t.Errorf("operation %s: got %q, want %q", name, found[name], want)
		}
	}
}
