package state_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

// exported is a job that completed with everything that a manifest can tell of.
func exported() (*state.Job, []state.File) {
	job := &state.Job{
		Status: state.Completed, TransactionTime: time.Date(2021, 12, 8, 8, 28, 7, 0, time.UTC),
		Kickoff: state.Kickoff{
			Level: state.Patient, Request: "https://fhir.example.org/fhir/Patient/$export?_type=Patient,Observation&_since=2020-01-01T00:00:00Z",
		},
		Proof: []state.Proof{
			{Type: "Observation", Expected: 3, Met: 3, Exported: 2, Repaired: 1, Replaced: 1, Deleted: 1, Departed: 1, Verdict: state.Proved},
			{Type: "Patient", Expected: -1, Met: 1, Exported: 1, Departed: -1, Verdict: state.Unverified},
			{Type: "Condition", Verdict: state.Counted},
		},
		Issues: []state.Issue{{"information", "informational", "a"}, {"warning", "incomplete", "b"}, {"information", "informational", "c"}},
	}
	return job, []state.File{
		{Name: "Bundle.1.ndjson", Kind: state.Deleted, Type: "Bundle", Count: 1, Bytes: 150, Stored: true},
		{Name: "Observation.1.ndjson", Kind: state.Output, Type: "Observation", Count: 2, Bytes: 2000, Stored: true},
		{Name: "OperationOutcome.1.ndjson", Kind: state.Error, Type: "OperationOutcome", Count: 3, Bytes: 300, Stored: true},
		{Name: "Patient.1.ndjson", Kind: state.Output, Type: "Patient", Count: 1, Bytes: 1000, Stored: true},
	}
}

func TestManifestsAreTheGoldenOnes(t *testing.T) {
	for _, shape := range []state.Shape{state.Shape3, state.Shape4} {
		t.Run(string(shape), func(t *testing.T) {
			job, files := exported()
			job.Kickoff.Shape = shape
			checkGolden(t, "manifest"+string(shape)+".golden.json", encode(t, job, files))
		})
	}
}

// Ensure the manifest of an organised output names no types, and where a block goes on.
func TestManifestsOfOrganisedOutputsAreTheGoldenOnes(t *testing.T) {
	for _, shape := range []state.Shape{state.Shape3, state.Shape4} {
		t.Run(string(shape), func(t *testing.T) {
			job, files := exported()
			job.Kickoff.Shape, job.Kickoff.OrganizeBy = shape, "Patient"
			files = append(files[:1], files[2],
				state.File{Name: "Patient.1.ndjson", Kind: state.Output, Type: "Patient", Count: 9, Bytes: 3000, ContinuesIn: "Patient.2.ndjson", Stored: true},
				state.File{Name: "Patient.2.ndjson", Kind: state.Output, Type: "Patient", Count: 1, Bytes: 1000, Stored: true},
			)
			checkGolden(t, "organized"+string(shape)+".golden.json", encode(t, job, files))
		})
	}
}

// Ensure the pages of an export are alike in all but their files and the link, and that no file is missing from them.
func TestManifestPagesAreTheGoldenOnes(t *testing.T) {
	for _, shape := range []state.Shape{state.Shape3, state.Shape4} {
		t.Run(string(shape), func(t *testing.T) {
			job, files := exported()
			job.Kickoff.Shape = shape
			job.Pages = []state.Page{{Types: []string{"Condition", "Patient"}, Proof: job.Proof[1:]}}
			listed := 0
			for number, next := range []string{"https://fhir.example.org/fhir/$export-status/1?page=2", ""} {
				body, err := state.EncodePage(job, number+1, files, false, address, next)
				if err != nil {
					t.Fatal(err)
				}
				checkGolden(t, fmt.Sprintf("page%d-%s.golden.json", number+1, shape), body)
				listed += strings.Count(string(body), "https://store.example/")
			}
			if listed != len(files) {
				t.Errorf("the pages list %d files of %d", listed, len(files))
			}
		})
	}
}

// Ensure only what stands in a manifest can be fetched, and pages are there in their order.
func TestPagesShowWhatIsFinished(t *testing.T) {
	job, files := exported()
	job.Pages = []state.Page{{Types: []string{"Condition", "Patient"}}, {Types: []string{"Encounter"}}}
	for _, test := range []struct {
		status state.Status
		pages  int
		shown  int
	}{{state.InProgress, 2, 1}, {state.Failed, 2, 1}, {state.Completed, 3, 4}} {
		job.Status = test.status
		pages, shown := 0, 0
		for number := -1; number < 6; number++ {
			if job.HasPage(number) {
				pages++
			}
		}
		for _, file := range files {
			if job.Shows(file) {
				shown++
			}
		}
		if pages != test.pages || shown != test.shown {
			t.Errorf("%s: %d pages and %d files, want %+v", test.status, pages, shown, test)
		}
	}
	if job.PageOf("Patient") != 1 || job.PageOf("Encounter") != 2 || job.PageOf("Observation") != 0 {
		t.Error("types are on wrong pages")
	}
}

func TestManifestsOfNothingHaveAllArrays(t *testing.T) {
	for shape, arrays := range map[state.Shape][]string{
		"":           {"output", "deleted", "error"},
		state.Shape3: {"output", "deleted", "error"},
		state.Shape4: {"output", "deleted", "outcome"},
	} {
		job := &state.Job{Kickoff: state.Kickoff{Shape: shape}}
		body := encode(t, job, nil)
		for _, array := range arrays {
			if !strings.Contains(string(body), `"`+array+`":[]`) {
				t.Errorf("shape %q lacks %s: %s", shape, array, body)
			}
		}
	}
}

func TestManifestOfAnUnknownShapeIsRefused(t *testing.T) {
	job, files := exported()
	job.Kickoff.Shape = "5.0"
	if body, err := state.EncodeManifest(job, files, false, nil); err == nil {
		t.Errorf("got %s", body)
	}
}

func address(file state.File) string { return "https://store.example/" + file.Name + "?a=1&b=2" }

func encode(t *testing.T, job *state.Job, files []state.File) []byte {
	t.Helper()
	body, err := state.EncodeManifest(job, files, false, address)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// checkGolden compares JSON with a file of testdata, which -update writes anew.
func checkGolden(t *testing.T, name string, body []byte) {
	t.Helper()
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, body, "", "  "); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(golden, pretty.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if pretty.String() != string(want) {
		t.Errorf("%s:\n got %s\nwant %s", name, pretty.String(), want)
	}
}
