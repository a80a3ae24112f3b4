package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/state"
)

// shown is an answer with an OperationOutcome, as the golden file has it.
type shown struct {
	Status  int             `json:"status"`
	Outcome json.RawMessage `json:"outcome"`
}

// wrongQueries are kick-offs by GET that are refused for what stands in the address.
var wrongQueries = map[string]string{
	"unknown parameter":       "/$export?_foo=1&_bar=2",
	"modifier":                "/$export?_type:not=Patient",
	"given twice":             "/$export?_since=2020&_since=2021",
	"format":                  "/$export?_outputFormat=text/csv",
	"instant":                 "/$export?_since=soon",
	"future":                  "/$export?_since=8000",
	"until before since":      "/$export?_since=2021&_until=2020",
	"type name":               "/$export?_type=x1",
	"type in lower case":      "/$export?_type=patient",
	"type not offered":        "/$export?_type=Unicorn",
	"type beside":             "/Patient/$export?_type=Practitioner",
	"type outside":            "/Patient/$export?_type=Organization",
	"element form":            "/$export?_elements=a.b.c",
	"element unknown":         "/$export?_elements=Patient.nose",
	"patient of the system":   "/$export?patient=Patient/1",
	"patient by GET":          "/Patient/$export?patient=Patient/1",
	"associated":              "/$export?includeAssociatedData=_mine",
	"organize by no type":     "/$export?organizeOutputBy=patient",
	"organize by another":     "/$export?organizeOutputBy=Device",
	"partial manifests":       "/$export?allowPartialManifests=yes",
	"filter form":             "/$export?_typeFilter=Patient",
	"filter query":            "/$export?_typeFilter=Patient%3Fa%253b%3Bb",
	"filter value":            "/$export?_typeFilter=Patient%3Factive%3D",
	"filter of a result":      "/$export?_typeFilter=Patient%3Factive%3Dtrue%26_sort%3Dname",
	"filter of nothing":       "/$export?_typeFilter=Patient%3F",
	"filter of another type":  "/$export?_type=Patient&_typeFilter=Observation%3Fcode%3D1",
	"filters":                 "/$export?_typeFilter=" + strings.Repeat("Patient%3Factive%3Dtrue,", 100) + "Patient%3Factive%3Dtrue",
	"query":                   "/$export?_type=%zz",
	"Group id":                "/Group/a%2Fb/$export",
	"Group unknown":           "/Group/nobody/$export",
	"Group of traits":         "/Group/by-trait/$export",
	"Group of devices":        "/Group/devices/$export",
	"Group that is not valid": "/Group/broken/$export",
	"too many parameters":     "/$export?" + strings.Repeat("_type=Patient&", 1000) + "_type=Patient",
	"size":                    "/$export?_minimumFileSize=0",
	"size of no file":         "/$export?_minimumFileSize=1048576",
	"sizes":                   "/$export?_minimumFileSize=2&_maximumFileSize=2",
	"odd characters":          "/$export?_type=%00%22%5C%C3%A9" + strings.Repeat("x", 100),
}

// wrongBodies are bodies of kick-offs of all Patients by POST.
var wrongBodies = map[string]string{
	"body not JSON":         "_type=Patient",
	"body of another kind":  `{"resourceType":"Patient"}`,
	"body without names":    posted(`{"valueString":"x"}`),
	"body without value":    posted(`{"name":"_type"}`),
	"body with two values":  posted(`{"name":"_type","valueString":"Patient","valueCode":"Patient"}`),
	"body with an object":   posted(`{"name":"_type","valueQuantity":{}}`),
	"body that is long":     `{"x":"` + strings.Repeat("x", 1<<20) + `"}`,
	"patient form":          posted(`{"name":"patient","valueReference":{"reference":"Group/1"}}`),
	"patient unknown":       posted(`{"name":"patient","valueReference":{"reference":"Patient/nobody"}}`),
	"more faults than told": posted(slices.Repeat([]string{`{"name":"_type"}`}, 30)...),
}

// refusals asks a house before the sample in every wrong way.
func refusals(t *testing.T, into map[string]answer) {
	t.Helper()
	h, sample := newFHIRHouse(t, func(c *proxy.Config) { c.MaxFileBytes = 1 << 20 })
	for _, resource := range []string{
		`{"resourceType":"Group","id":"by-trait","type":"person","actual":false,"characteristic":[{"exclude":false}]}`,
		`{"resourceType":"Group","id":"devices","type":"device","actual":true,"member":[{"entity":{"reference":"Device/1"}}]}`,
		`{"resourceType":"Group","id":"broken","member":[{"entity":{"reference":"Patient/1"},"period":{"end":"soon"}}]}`,
	} {
		if err := sample.Put([]byte(resource)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range wrongQueries {
		into[name] = h.ask(http.MethodGet, h.base+target)
	}
	for name, body := range wrongBodies {
		into[name] = h.send(http.MethodPost, h.base+"/Patient/$export", body, "Content-Type", "application/fhir+json")
	}
	into["body of another media type"] = h.send(http.MethodPost, h.base+"/$export", "a=b", "Content-Type", "application/x-www-form-urlencoded")
	into["body cut"], _ = exchange(t, h.url, "POST /fhir/$export HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	into["connect"], _ = exchange(t, h.url, "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n")
	into["method"] = h.ask(http.MethodPut, h.base+"/$export")
	into["status of no job"] = h.ask(http.MethodGet, h.base+"/$export-status/nobody")

	for name, status := range map[string]int{"401": 401, "403": 403, "410": 410, "400": 400, "500": 500} {
		sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Observation" }, Status: status, Times: 1})
		into[name+" for a type"] = h.ask(http.MethodGet, h.base+"/$export?_type=Observation", "Authorization", "Bearer "+name)
	}
	part, gated := newFHIRHouse(t, asSidecar(t))
	gated.Gate = gate
	into["part of a type"] = part.ask(http.MethodGet, part.base+"/$export?_type=Observation", "Authorization", bearer("c", "part"))
	tokens, _ := newFHIRHouse(t, judged)
	into["no token"] = tokens.ask(http.MethodGet, tokens.base+"/$export")
	into["token for less"] = tokens.ask(http.MethodGet, tokens.base+"/$export?_type=Observation", "Authorization", "Bearer narrow")
	into["token for nothing here"] = tokens.ask(http.MethodGet, tokens.base+"/Patient/$export", "Authorization", "Bearer blind")
	into["Group for others"] = tokens.ask(http.MethodGet, tokens.base+"/Group/forbidden-group/$export", "Authorization", "Bearer right")
	hasty, _ := newFHIRHouse(t, func(c *proxy.Config) { c.RequestsPerSecond = 1 })
	for range 100 { // five and one, if they come within a second
		if into["too many requests"] = hasty.ask(http.MethodGet, hasty.base+"/$export-status/nobody"); into["too many requests"].status == http.StatusTooManyRequests {
			break
		}
	}
	mine := owned(t, judged)
	into["status with a token for less"] = mine.ask(http.MethodGet, mine.base+"/$export-status/0b6a", "Authorization", "Bearer narrow")
	mine = owned(t, nil)
	into["status without credentials"] = mine.ask(http.MethodGet, mine.base+"/$export-status/0b6a")
	old := metadataOf(t, "application/fhir+json",
		`{"resourceType":"CapabilityStatement","fhirVersion":"3.0.2","rest":[{"mode":"server","resource":[{"type":"Patient","interaction":[{"code":"search-type"}]}]}]}`)
	into["compartment of an old release"] = old.ask(http.MethodGet, old.base+"/Patient/$export")
	into["elements of an old release"] = old.ask(http.MethodGet, old.base+"/$export?_elements=id")
	into["organized by an old release"] = old.ask(http.MethodGet, old.base+"/$export?organizeOutputBy=Patient")
	none := newHouse(t, nobody+"/fhir", nil)
	into["no statement"] = none.ask(http.MethodGet, none.base+"/$export")
	into["server away"] = none.ask(http.MethodGet, none.base+"/Patient")
	slow := newHouse(t, nobody+"/fhir", func(c *proxy.Config) { c.Transport = late{} })
	into["server late"] = slow.ask(http.MethodGet, slow.base+"/Patient")
}

// late is an upstream that never answers in time.
type late struct{}

func (late) RoundTrip(*http.Request) (*http.Response, error) { return nil, context.DeadlineExceeded }

// answers asks a house for jobs, files and what its own trouble gives.
func answers(t *testing.T, into map[string]answer) {
	t.Helper()
	for name, err := range map[string]error{
		"another export":   state.ErrBusy,
		"too many exports": state.ErrTooMany,
		"disk full":        &fs.PathError{Op: "write", Path: "/secret", Err: syscall.ENOSPC},
		"fault of ours":    errors.New("secret"),
		"bucket not there": nil,
	} {
		h, _ := newFHIRHouse(t, nil)
		h.exports.kickOff = func(state.Kickoff) (*state.Job, error) { return nil, err }
		if err == nil {
			h.exports.ready = errors.New("secret")
		}
		into[name] = h.ask(http.MethodGet, h.base+"/$export")
	}
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Links, c.Bucket = proxy.Redirect, signing{err: errors.New("secret")} })
	h.addJob(completed(), twoFiles)
	failed := completed()
	failed.ID, failed.Status = "failed", state.Failed
	failed.Failure = &state.Failure{Status: 500, Code: "incomplete", Text: "the export failed: something is missing"}
	h.addJob(failed, nil)
	failed.ID, failed.Kickoff.SeparateStatus = "separate", true
	h.addJob(failed, nil)
	into["no such page"] = h.ask(http.MethodGet, h.base+"/$export-status/0b6a?page=7")
	into["export failed"] = h.ask(http.MethodGet, h.base+"/$export-status/failed")
	into["export failed, status apart"] = h.ask(http.MethodGet, h.base+"/$export-status/separate")
	into["link not signed"] = h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson"))
	into["no such file"] = h.ask(http.MethodGet, h.file("0b6a", "Patient.2.ndjson"))
	into["dead link"] = h.ask(http.MethodGet, h.base+"/$export-file/0b6a/Patient.1.ndjson")
	into["deleted"] = h.ask(http.MethodDelete, h.base+"/$export-status/failed")

	h, sample := newFHIRHouse(t, nil)
	job := completed()
	job.AttachmentKey = []byte("key")
	h.addJob(job, twoFiles)
	into["no such attachment"] = h.ask(http.MethodGet, h.base+"/$export-attachment/0b6a/x/Binary/1")
	for _, status := range []int{401, 404, 406, 416, 500} {
		sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Path == "/fhir/Binary/1" }, Status: status, Times: 1})
		into[strconv.Itoa(status)+" for an attachment"] = h.ask(http.MethodGet, h.attachment(&job, "Binary/1"))
	}
	into["range"] = h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson"), "Range", "bytes=1000-")
	if err := h.bucket.Delete(t.Context(), job.Folder+"/Patient.1.ndjson"); err != nil {
		t.Fatal(err)
	}
	into["file lost"] = h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson"))
}

// Ensure that every OperationOutcome of ours is the golden one. End-to-end tests give the golden file to a validator.
func TestOutcomesAreTheGoldenOnes(t *testing.T) {
	got := map[string]answer{}
	refusals(t, got)
	answers(t, got)
	all := map[string]shown{}
	for name, answer := range got {
		if media := answer.header.Get("Content-Type"); media != "application/fhir+json" {
			t.Errorf("%s: got %d %s %s", name, answer.status, media, answer.body)
			continue
		}
		all[name] = shown{answer.status, json.RawMessage(answer.unnamed())}
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "outcomes.golden.json")
	if *update {
		if err := os.WriteFile(golden, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(text, '\n'), want) {
		t.Errorf("the outcomes are not those of %s:\n%s", golden, text)
	}
	said := diagnostics(t, all)
	for at, pattern := range sayings(t) {
		if !regexp.MustCompile(pattern).MatchString(said) {
			t.Errorf("%s: no row of this test is refused with this text: add one", at)
		}
	}
}

// diagnostics are the texts of outcomes, one a line.
func diagnostics(t *testing.T, all map[string]shown) string {
	t.Helper()
	var texts strings.Builder
	for _, one := range all {
		var outcome fhir.OperationOutcome
		if err := json.Unmarshal(one.Outcome, &outcome); err != nil {
			t.Fatal(err)
		}
		for _, issue := range outcome.Issue {
			fmt.Fprintln(&texts, issue.Diagnostics)
		}
	}
	return texts.String()
}

// unshown are the refusals that no row can have.
var unshown = map[string]string{
	"the request was cancelled":                   "its client has left",
	"the FHIR server did not answer the checks ":  "it takes ten seconds: TestHangingServerIsGivenUpOn has it",
	"the body of the request did not arrive with": "it takes half a minute: TestBodyThatComesTooSlowly has it",
}

// sayings finds in the source where refusals and faults are made, with a pattern of the literal parts of their texts.
func sayings(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found, places := map[string]string{}, token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(places, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			if pattern := literals(t, textOf(node)); pattern != "" {
				found[places.Position(node.Pos()).String()] = pattern
			}
			return true
		})
	}
	if len(found) < 50 {
		t.Errorf("%d places in the source refuse something: they are not recognised any more", len(found))
	}
	return found
}

// textOf is the text in a refusal{status, code, text}, a fault{parameter, code, text}, alone among faults or not, or a call of
// reading.fault, nil in anything else.
func textOf(node ast.Node) ast.Expr {
	switch node := node.(type) {
	case *ast.CompositeLit:
		if kind, ok := node.Type.(*ast.Ident); ok && (kind.Name == "refusal" || kind.Name == "fault") && len(node.Elts) == 3 {
			return node.Elts[2]
		} else if ok && kind.Name == "faults" && len(node.Elts) == 1 {
			return textOf(&ast.CompositeLit{Type: ast.NewIdent("fault"), Elts: node.Elts[0].(*ast.CompositeLit).Elts})
		}
	case *ast.CallExpr:
		if called, ok := node.Fun.(*ast.SelectorExpr); ok && called.Sel.Name == "fault" {
			return node.Args[2]
		}
	}
	return nil
}

// literals is a pattern of the literal parts of a text, empty where it has none, or where no row can show it.
func literals(t *testing.T, text ast.Expr) string {
	t.Helper()
	var parts []string
	if text == nil {
		return ""
	}
	ast.Inspect(text, func(node ast.Node) bool {
		if _, called := node.(*ast.CallExpr); called {
			return false // its literals are not the text's
		}
		if literal, ok := node.(*ast.BasicLit); ok {
			value, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, regexp.QuoteMeta(value))
		}
		return true
	})
	pattern := strings.Join(parts, ".*")
	for begin := range unshown {
		if strings.HasPrefix(pattern, begin) {
			return ""
		}
	}
	return pattern
}
