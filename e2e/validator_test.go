package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// finding is a message of the validator about a file.
type finding struct{ severity, file, place, text string }

// validate gives HAPI's validator the files, by HAPI's name of their release of FHIR and their own (R4/x.json), and returns
// what it finds, without its advice to have a narrative, which is for persons who read a resource.
func validate(t *testing.T, files map[string][]byte) []finding {
	t.Helper()
	if err := buildHAPI(); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, content := range files {
		if err := os.MkdirAll(filepath.Join(folder, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
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
		files["R4/answer "+name+".json"] = answer.Outcome
	}
	for n, line := range bytes.Split(bytes.TrimSpace(read("exporter", "testdata", "outcomes.golden.ndjson")), []byte("\n")) {
		files[fmt.Sprintf("R4/line %d of error files.json", n+1)] = line
	}
	if len(files) < 80 {
		t.Fatalf("%d outcomes in the golden files: they are not found any more", len(files))
	}
	return files
}

// saidInSource finds the codes and severities of remarks, failures, holes and refusals of tokens in the source, of which no
// golden file has all.
var saidInSource = regexp.MustCompile(`\b(?:Severity: |Code: |Code = (?:\d+, )?|Reason: |Status\w+, )"([^"]+)"|(?m:^\t"([a-z-]+)": +"the(?:y| server))`)

// codeOutcomes are OperationOutcomes with every code and severity of the source.
func codeOutcomes(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, pattern := range []string{"exporter/*.go", "proxy/*.go", "proxy/auth/*.go"} {
		names, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, said := range saidInSource.FindAllStringSubmatch(string(text), -1) {
				severity, code := "error", said[1]+said[2]
				if strings.HasPrefix(said[0], "Severity") {
					severity, code = code, "processing"
				}
				if !strings.HasSuffix(name, "_test.go") {
					files["R4/"+severity+" "+code+".json"] = fmt.Appendf(nil,
						`{"resourceType":"OperationOutcome","issue":[{"severity":%q,"code":%q,"diagnostics":"x"}]}`, severity, code)
				}
			}
		}
	}
	if len(files) < 15 {
		t.Fatalf("%d codes and severities in the source: they are not found any more", len(files))
	}
	return files
}

// lenientOutcomes are those in the error file of an export, and in its outcome file in the manifest of version 4.
func lenientOutcomes(t *testing.T, c *sidecar) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, operation := range []string{"$export", "$export-v4"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
			c.base+"/"+operation+"?_type=Patient,Unicorn&_elements=Patient.nose&organizeOutputBy=Device&includeAssociatedData=_mine&_foo=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Prefer", "respond-async, handling=lenient")
		status, header, body := send(t, request)
		if status != http.StatusAccepted {
			t.Fatalf("%s: got %d %s", operation, status, body)
		}
		get := func(address string) []byte {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := do(request)
			if err != nil {
				t.Fatal(err)
			}
			return body
		}
		text := get(header.Get("Content-Location"))
		for ; len(text) == 0; text = get(header.Get("Content-Location")) {
			pause(t, time.Second)
		}
		var answer struct{ Error, Outcome []outputFile }
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatal(err)
		}
		for _, file := range append(answer.Error, answer.Outcome...) {
			for n, line := range bytes.Split(bytes.TrimSpace(get(file.URL)), []byte("\n")) {
				files[fmt.Sprintf("R4/line %d of %s.json", n+1, operation)] = line
			}
		}
	}
	if len(files) != 10 {
		t.Errorf("%d outcomes for five parameters that are ignored in each of two exports", len(files))
	}
	return files
}

// otherReleases are what differs in statements of FHIR's other releases, in JSON and XML, by HAPI's name of the release. What is
// added for R5 is what is added for R4B, and to read R5's definitions takes the validator longer than all of the others.
var otherReleases = map[string]struct{ json, xml string }{
	"DSTU3": {`"fhirVersion":"3.0.2","acceptUnknown":"no"`, `<fhirVersion value="3.0.2"/><acceptUnknown value="no"/>`},
	"R4B":   {`"fhirVersion":"4.3.0"`, `<fhirVersion value="4.3.0"/>`},
}

// serveStatement serves a statement that holds what differs from release to release, and gives the server's base.
func serveStatement(t *testing.T, release struct{ json, xml string }) string {
	t.Helper()
	inJSON := `{"resourceType":"CapabilityStatement","status":"active","date":"2024-01-01","publisher":"x","kind":"instance",` +
		`"implementation":{"description":"x","url":"http://example.org/fhir"},` + release.json + `,"format":["json","xml"],"rest":[{"mode":"server","resource":[` +
		`{"type":"Library","interaction":[{"code":"search-type"}]},{"type":"Patient","interaction":[{"code":"search-type"}]}],` +
		`"interaction":[{"code":"transaction"}]}]}`
	inXML := `<CapabilityStatement xmlns="http://hl7.org/fhir"><status value="active"/><date value="2024-01-01"/><publisher value="x"/><kind value="instance"/>` +
		`<implementation><description value="x"/><url value="http://example.org/fhir"/></implementation>` + release.xml +
		`<format value="json"/><format value="xml"/><rest><mode value="server"/>` +
		`<resource><type value="Library"/><interaction><code value="search-type"/></interaction></resource>` +
		`<resource><type value="Patient"/><interaction><code value="search-type"/></interaction></resource>` +
		`<interaction><code value="transaction"/></interaction></rest></CapabilityStatement>`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, media := inJSON, "application/fhir+json"
		if strings.Contains(r.Header.Get("Accept"), "xml") {
			body, media = inXML, "application/fhir+xml"
		}
		w.Header().Set("Content-Type", media)
		if _, err := w.Write([]byte(body)); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/fhir"
}

// Ensure HAPI's validator finds nothing wrong with any OperationOutcome of ours, nor with a completed CapabilityStatement, nor with
// the AuditEvents that a server is sent.
func TestOutcomesAndStatementsAreValid(t *testing.T) {
	files := goldenOutcomes(t)
	files["R4/broken.json"] = []byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"broken","diagnostics":"x"}]}`)
	real := startSidecar(t, hapi(t).base, nil)
	files["R4/HAPI's statement.json"] = statement(t, real.base, "application/fhir+json")
	files["R4/HAPI's statement.xml"] = statement(t, real.base, "application/fhir+xml")
	sample := startSidecar(t, startSample(t, 30).base, nil)
	files["R4/sample's statement.json"] = statement(t, sample.base, "application/fhir+json")
	maps.Copy(files, codeOutcomes(t))
	maps.Copy(files, lenientOutcomes(t, sample))
	for release, facts := range otherReleases {
		c := startSidecar(t, serveStatement(t, facts), nil)
		files[release+"/statement.json"] = statement(t, c.base, "application/fhir+json")
		files[release+"/statement.xml"] = statement(t, c.base, "application/fhir+xml")
		files[release+"/outcome.json"] = files["R4/answer unknown parameter.json"]
	}
	maps.Copy(files, auditEvents(t))
	sound := true
	for _, f := range validate(t, files) {
		switch {
		case f.file == "R4/broken.json":
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
		files[fmt.Sprintf("R4/AuditEvent %d.json", n+1)] = event
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
	if !bytes.Contains(body, []byte("OperationDefinition/export")) {
		t.Errorf("the statement in %s is not completed", media)
	}
	return body
}
