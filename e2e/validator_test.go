package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// finding is a message of the validator about a file.
type finding struct{ severity, file, place, text string }

// validate gives HAPI's validator for R4 the files, by name, and returns what it finds, without its advice to have a
// narrative, which is for persons who read a resource.
func validate(t *testing.T, files map[string][]byte) []finding {
	t.Helper()
	if err := buildHAPI(); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	java := exec.CommandContext(t.Context(), "java", "-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-cp", filepath.Join(hapiFolder, "target", "hapi.jar"), "hapi.Validate", folder)
	var stderr bytes.Buffer
	java.Stderr = &stderr
	output, err := java.Output()
	if err != nil {
		t.Fatalf("validator: %v\n%s", err, stderr.Bytes())
	}
	var found []finding
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	for _, line := range lines[:len(lines)-1] {
		part := strings.SplitN(line, "\t", 4)
		if len(part) != 4 {
			t.Fatalf("validator: a line that is none of its own: %q", line)
		}
		if !strings.Contains(part[3], "dom-6") {
			found = append(found, finding{part[0], part[1], part[2], part[3]})
		}
	}
	if got, want := lines[len(lines)-1], fmt.Sprintf("validated\t%d", len(files)); got != want {
		t.Fatalf("validator: it ends with %q, want %q", got, want)
	}
	return found
}

// goldenOutcomes are all OperationOutcomes of the product's golden files.
func goldenOutcomes(t *testing.T) map[string][]byte {
	t.Helper()
	read := func(path ...string) []byte {
		text, err := os.ReadFile(filepath.Join(append([]string{".."}, path...)...))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var answers map[string]struct{ Outcome json.RawMessage }
	if err := json.Unmarshal(read("proxy", "testdata", "outcomes.golden.json"), &answers); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for name, answer := range answers {
		files["answer "+name+".json"] = answer.Outcome
	}
	for n, line := range bytes.Split(bytes.TrimSpace(read("exporter", "testdata", "outcomes.golden.ndjson")), []byte("\n")) {
		files[fmt.Sprintf("line %d of error files.json", n+1)] = line
	}
	if len(files) < 80 {
		t.Fatalf("%d outcomes in the golden files: they are not found any more", len(files))
	}
	return files
}

// Ensure HAPI's validator finds nothing wrong with any OperationOutcome of ours, nor with a completed CapabilityStatement, nor with
// the AuditEvents that a server is sent.
func TestOutcomesAndStatementsAreValid(t *testing.T) {
	files := goldenOutcomes(t)
	files["broken.json"] = []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"broken","diagnostics":"x"}]}`)
	real := startSidecar(t, hapi(t).base, nil)
	files["HAPI's statement.json"] = statement(t, real.base, "application/fhir+json")
	files["HAPI's statement.xml"] = statement(t, real.base, "application/fhir+xml")
	files["sample's statement.json"] = statement(t, startSidecar(t, startSample(t, 30).base, nil).base, "application/fhir+json")
	maps.Copy(files, auditEvents(t))
	sound := true
	for _, f := range validate(t, files) {
		switch {
		case f.file == "broken.json":
			sound = false
		case f.severity != "information": // extensions that are not FHIR's own are remarked as unknown
			t.Errorf("%s: %s at %s: %s", f.file, f.severity, f.place, f.text)
		}
	}
	if sound {
		t.Error("the validator finds nothing wrong with a code that FHIR does not have")
	}
}

// auditEvents are what a server has got for exports that were completed, refused, read and deleted.
func auditEvents(t *testing.T) map[string][]byte {
	t.Helper()
	sample := startSample(t, 20)
	s := startSidecar(t, sample.base, settings{"audit": settings{"fhir": true}})
	done := s.export(t, "Group/demo-group/$export?_type=Patient,Condition")
	s.expect(t, "a refused kick-off", http.MethodGet, s.base+"/$export?_since=x", "", http.StatusBadRequest)
	s.expect(t, "a file that is not there", http.MethodGet, s.base+"/$export-file/x/y", "", http.StatusNotFound)
	s.release(t, done.statusURL)
	s.stop(t)
	files := map[string][]byte{}
	for n, event := range sample.Resources("AuditEvent") {
		files[fmt.Sprintf("AuditEvent %d.json", n+1)] = event
	}
	if len(files) < 7 {
		t.Errorf("the server has got %d AuditEvents", len(files))
	}
	return files
}

// statement reads a completed CapabilityStatement.
func statement(t *testing.T, base, media string) []byte {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/metadata", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", media)
	body, err := do(request)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(body, []byte("OperationDefinition/group-export")) {
		t.Errorf("the statement in %s is not completed", media)
	}
	return body
}
