package proxy_test

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sidecar/state"
)

func TestPreferIsReadInAllItsForms(t *testing.T) {
	for _, test := range []struct {
		prefer  []string
		applied string
		lenient bool
	}{
		{nil, "", false},
		{[]string{"respond-async"}, "respond-async", false},
		{[]string{"return=minimal, wait=10"}, "", false},
		{[]string{"Respond-Async, Handling = Lenient"}, "respond-async, handling=lenient", true},
		{[]string{"respond-async", `handling="lenient"`}, "respond-async, handling=lenient", true},
		{[]string{"respond-async", `handling="len\ient"`}, "respond-async, handling=lenient", true},
		{[]string{"respond-async;handling=lenient"}, "respond-async, handling=lenient", true},
		{[]string{"respond-async; wait=10 , handling=strict"}, "respond-async, handling=strict", false},
		{[]string{"handling=strict", "handling=lenient"}, "handling=strict", false},
		{[]string{"handling=odd, handling=lenient"}, "handling=lenient", true},
		{[]string{"handling"}, "", false},
		{[]string{`x="a, handling=lenient"`}, "", false},
		{[]string{`x="a\", handling=lenient"`}, "", false},
		{[]string{" , separate-export-status,"}, "respond-async, separate-export-status", false},
		{[]string{"respond-async,separate-export-status"}, "respond-async, separate-export-status", false},
	} {
		t.Run(strings.Join(test.prefer, "|"), func(t *testing.T) {
			var header []string
			for _, line := range test.prefer {
				header = append(header, "Prefer", line)
			}
			h, _ := newFHIRHouse(t, nil)
			got := h.ask(http.MethodGet, h.base+"/$export", header...)
			if got.status != http.StatusAccepted || got.header.Get("Preference-Applied") != test.applied {
				t.Errorf("answer: got %d with %q, want 202 with %q", got.status, got.header.Get("Preference-Applied"), test.applied)
			}
			if separate := strings.Contains(test.applied, "separate"); h.exports.asked[0].SeparateStatus != separate {
				t.Errorf("SeparateStatus: got %t", h.exports.asked[0].SeparateStatus)
			}
			h, _ = newFHIRHouse(t, nil)
			if got := h.ask(http.MethodGet, h.base+"/$export?_foo=1", header...); (got.status == http.StatusAccepted) != test.lenient {
				t.Errorf("with an unknown parameter: got %d %s", got.status, got.body)
			}
		})
	}
}

// Ensure that under handling=lenient each parameter that is ignored is reported, and none whose absence would let other
// persons or times in is ignored.
func TestLenientKickoffReportsWhatItIgnores(t *testing.T) {
	for name, test := range map[string]struct {
		target, body string
		codes        []string
		types        string
	}{
		"unknown":              {"/$export?_foo=1&_type=Patient", "", []string{"not-supported"}, "Patient"},
		"two unknown":          {"/$export?_foo=1&bar=2", "", []string{"not-supported", "not-supported"}, ""},
		"one of the types":     {"/$export?_type=x1,Patient", "", []string{"invalid"}, "Patient"},
		"type not offered":     {"/$export?_type=Unicorn,Patient", "", []string{"not-supported"}, "Patient"},
		"type outside":         {"/Patient/$export?_type=ValueSet,Patient", "", []string{"not-supported"}, "Patient"},
		"elements":             {"/$export?_elements=a.b.c", "", []string{"invalid"}, ""},
		"filter":               {"/$export?_typeFilter=Unicorn%3Fa%3Db", "", []string{"not-supported"}, ""},
		"associated":           {"/$export?includeAssociatedData=_mine", "", []string{"not-supported"}, ""},
		"organized":            {"/$export?organizeOutputBy=Unicorn", "", []string{"not-supported"}, ""},
		"sizes":                {"/$export?_minimumFileSize=3&_maximumFileSize=2", "", []string{"invalid"}, ""},
		"in the body":          {"/$export", posted(`{"name":"_elements"}`), []string{"structure"}, ""},
		"no type left":         {"/$export?_type=x", "", nil, ""},
		"no type offered":      {"/$export?_type=Unicorn", "", nil, ""},
		"only types beside":    {"/Patient/$export?_type=Unicorn,Practitioner", "", nil, ""},
		"since":                {"/$export?_since=soon", "", nil, ""},
		"since with modifier":  {"/$export?_since:not=2020", "", nil, ""},
		"since twice":          {"/$export?_since=2020&_since=2021", "", nil, ""},
		"until":                {"/$export?_until=soon", "", nil, ""},
		"format":               {"/$export?_outputFormat=text/csv", "", nil, ""},
		"patient":              {"/Patient/$export", posted(`{"name":"patient","valueString":"x"}`), nil, ""},
		"patient by GET":       {"/Patient/$export?patient=Patient/pat-00001", "", nil, ""},
		"patient without":      {"/Patient/$export", posted(`{"name":"patient"}`), nil, ""},
		"patient among others": {"/$export?_foo=1", posted(`{"name":"patient","valueString":"Patient/1"}`), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			method := http.MethodGet
			if test.body != "" {
				method = http.MethodPost
			}
			got := h.send(method, h.base+test.target, test.body, "Prefer", "handling=lenient", "Content-Type", "application/json")
			if test.codes == nil {
				if got.status != http.StatusBadRequest {
					t.Errorf("status: got %d: %s", got.status, got.body)
				}
				return
			}
			if got.status != http.StatusAccepted {
				t.Fatalf("status: got %d: %s", got.status, got.body)
			}
			asked := h.exports.asked[0]
			var codes []string
			for _, issue := range asked.Ignored {
				codes = append(codes, issue.Code)
				if issue.Severity != "warning" || !strings.HasPrefix(issue.Text, "ignored: ") {
					t.Errorf("remark: got %+v", issue)
				}
			}
			if !slices.Equal(codes, test.codes) || strings.Join(asked.Types, ",") != test.types {
				t.Errorf("ignored: got %q with the types %q, want %q with %q", codes, asked.Types, test.codes, test.types)
			}
			if len(asked.Filters)+len(asked.Elements)+len(asked.Associated) > 0 || asked.OrganizeBy != "" || asked.MinFileBytes+asked.MaxFileBytes > 0 {
				t.Errorf("what was ignored stayed: %+v", asked)
			}
		})
	}
}

// Ensure that clients who prefer separate-export-status are told the job's status in a header, and others are not.
func TestSeparateExportStatus(t *testing.T) {
	for name, test := range map[string]struct {
		job  state.Job
		want string
	}{
		"accepted": {state.Job{Status: state.Accepted}, "202 Accepted"},
		"failed":   {state.Job{Status: state.Failed, Failure: &state.Failure{Status: 500, Code: "incomplete", Text: "x"}}, "500 Internal Server Error"},
		"refused":  {state.Job{Status: state.Failed, Failure: &state.Failure{Status: 400, Code: "not-supported", Text: "x"}}, "400 Bad Request"},
		"complete": {completed(), "200 OK"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, separate := range []bool{false, true} {
				h, _ := newFHIRHouse(t, nil)
				job := test.job
				job.ID, job.Folder, job.Kickoff.SeparateStatus = "j", "f", separate
				h.addJob(job, nil)
				got := h.ask(http.MethodGet, h.base+"/$export-status/j")
				status, header := test.want[:3], ""
				if separate {
					status, header = "200", test.want
				}
				if got.header.Get("X-Export-Status") != header || status != strconv.Itoa(got.status) {
					t.Errorf("separate %t: got %d with X-Export-Status %q", separate, got.status, got.header.Get("X-Export-Status"))
				}
				if job.Status == state.Failed {
					checkOutcome(t, got, got.status, job.Failure.Code)
				}
			}
			h, _ := newFHIRHouse(t, nil)
			if got := h.ask(http.MethodGet, h.base+"/$export-status/x"); got.status != http.StatusNotFound || got.header.Get("X-Export-Status") != "" {
				t.Errorf("unknown job: got %d %q", got.status, got.header)
			}
		})
	}
}

// Ensure no Prefer header makes the parser panic, and that only known preferences are said to be applied.
func FuzzPrefer(f *testing.F) {
	for _, value := range []string{"", "respond-async", "respond-async, handling=lenient", `x="\",;`, "handling=\"strict\";a", ";;,,==", "separate-export-status"} {
		f.Add(value)
	}
	handler, engine := fuzzed(f)
	f.Fuzz(func(t *testing.T, value string) {
		recorder := kickOffWith(t, handler, engine, http.MethodGet, "/fhir/$export", "", "", http.Header{"Prefer": {value}})
		if recorder.Code != http.StatusAccepted {
			t.Fatalf("refused: %d %s", recorder.Code, recorder.Body)
		}
		if applied := recorder.Header().Get("Preference-Applied"); applied != "" {
			for name := range strings.SplitSeq(applied, ", ") {
				if !slices.Contains([]string{"respond-async", "separate-export-status", "handling=strict", "handling=lenient"}, name) ||
					!strings.Contains(strings.ToLower(value), name[:8]) && name != "respond-async" {
					t.Errorf("applied: got %q", applied)
				}
			}
		}
	})
}
