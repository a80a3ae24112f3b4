package proxy_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/proxy"
	"sidecar/state"
)

// posted is the body of a POST kick-off with these members of parameter.
func posted(parameters ...string) string {
	return `{"resourceType":"Parameters","parameter":[` + strings.Join(parameters, ",") + `]}`
}

func TestPostedKickoffIsUnderstood(t *testing.T) {
	since := time.Date(2021, 12, 8, 8, 28, 7, 0, time.UTC)
	for name, test := range map[string]struct {
		target, body string
		want         state.Kickoff
	}{
		"nothing":           {"/$export", "", state.Kickoff{Level: state.System}},
		"no parameters":     {"/$export", `{"resourceType":"Parameters"}`, state.Kickoff{Level: state.System}},
		"in the address":    {"/$export?_type=Patient", "", state.Kickoff{Level: state.System, Types: []string{"Patient"}}},
		"in both":           {"/$export?_type=Patient", posted(`{"name":"_type","valueString":"Observation"}`), state.Kickoff{Level: state.System, Types: []string{"Observation", "Patient"}}},
		"repeats and lists": {"/$export", posted(`{"name":"_type","valueString":"Patient,Condition"}`, `{"name":"_type","valueCode":"Observation"}`), state.Kickoff{Level: state.System, Types: []string{"Condition", "Observation", "Patient"}}},
		"instant":           {"/$export", posted(`{"name":"_since","valueInstant":"2021-12-08T10:28:07+02:00"}`), state.Kickoff{Level: state.System, Since: since}},
		"dateTime":          {"/$export", posted(`{"name":"_since","valueDateTime":"2021"}`), state.Kickoff{Level: state.System, Since: time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)}},
		"until":             {"/$export", posted(`{"name":"_since","valueInstant":"2021-12-08T08:28:07Z"}`, `{"name":"_until","valueDate":"2022-02"}`), state.Kickoff{Level: state.System, Since: since, Until: time.Date(2022, 2, 1, 0, 0, 0, 0, time.UTC)}},
		"format":            {"/$export", posted(`{"name":"_outputFormat","valueString":"application/fhir+ndjson+gzip"}`), state.Kickoff{Level: state.System, Gzip: true}},
		"filters": {"/$export", posted(`{"name":"_typeFilter","valueString":"Patient?gender=male,female&_id=1"}`, `{"name":"_typeFilter","valueUri":"Patient?active=true,Observation?code=a|b"}`, `{"name":"_typeFilter","valueString":"Patient?active=true"}`), state.Kickoff{Level: state.System, Filters: []state.TypeFilter{
			{Type: "Patient", Query: "gender=male,female&_id=1"}, {Type: "Patient", Query: "active=true"}, {Type: "Observation", Query: "code=a%7Cb"},
		}}},
		"elements":       {"/$export", posted(`{"name":"_elements","valueString":"Patient.name,id"}`), state.Kickoff{Level: state.System, Elements: []string{"Patient.name", "id"}}},
		"patients":       {"/Patient/$export", posted(`{"name":"patient","valueReference":{"reference":"Patient/pat-00002"}}`, `{"name":"patient","valueReference":{"reference":"BASE/Patient/pat-00001","display":"x"}}`, `{"name":"patient","valueString":"Patient/pat-00002"}`), state.Kickoff{Level: state.Patient, Patients: []string{"pat-00001", "pat-00002"}}},
		"code":           {"/$export", posted(`{"name":"includeAssociatedData","valueCode":"LatestProvenanceResources"}`), state.Kickoff{Level: state.System, Associated: []string{"LatestProvenanceResources"}}},
		"Coding":         {"/$export", posted(`{"name":"includeAssociatedData","valueCoding":{"system":"s","code":"RelevantProvenanceResources"}}`), state.Kickoff{Level: state.System, Associated: []string{"RelevantProvenanceResources"}}},
		"organized":      {"/$export", posted(`{"name":"organizeOutputBy","valueString":"Patient"}`), state.Kickoff{Level: state.System, OrganizeBy: "Patient"}},
		"boolean":        {"/$export", posted(`{"name":"allowPartialManifests","valueBoolean":true}`), state.Kickoff{Level: state.System, PartialManifests: true}},
		"false":          {"/$export", posted(`{"name":"allowPartialManifests","valueBoolean":false}`), state.Kickoff{Level: state.System}},
		"sizes":          {"/$export", posted(`{"name":"_minimumFileSize","valuePositiveInt":1000}`, `{"name":"_maximumFileSize","valueInteger64":"9007199254740993"}`), state.Kickoff{Level: state.System, MinFileBytes: 1000, MaxFileBytes: 9007199254740993}},
		"extension, id":  {"/$export", posted(`{"id":"1","name":"_type","valueString":"Patient","_valueString":{},"extension":[]}`), state.Kickoff{Level: state.System, Types: []string{"Patient"}}},
		"plus of a zone": {"/$export", posted(`{"name":"_typeFilter","valueString":"Patient?_lastUpdated=gt2021-12-08T10:28:07+02:00"}`), state.Kickoff{Level: state.System, Filters: []state.TypeFilter{{Type: "Patient", Query: "_lastUpdated=gt2021-12-08T10:28:07%2B02:00"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			got := h.send(http.MethodPost, h.base+test.target, strings.ReplaceAll(test.body, "BASE", h.base), "Content-Type", "application/fhir+json")
			if got.status != http.StatusAccepted {
				t.Fatalf("status: got %d, want 202: %s", got.status, got.body)
			}
			path, _, _ := strings.Cut(test.target, "?")
			want := test.want
			want.Base, want.Request = h.base, h.base+path
			if asked := h.exports.asked[0]; fmt.Sprintf("%+v", asked) != fmt.Sprintf("%+v", want) {
				t.Errorf("kick-off:\n got %+v\nwant %+v", asked, want)
			}
		})
	}
}

func TestPostedKickoffTakesFHIRsJSONOnly(t *testing.T) {
	body := posted(`{"name":"_type","valueString":"Patient"}`)
	for _, test := range []struct {
		header []string
		status int
	}{
		{[]string{"Content-Type", "application/fhir+json"}, 202},
		{[]string{"Content-Type", "application/json"}, 202},
		{[]string{"Content-Type", `Application/FHIR+JSON; fhirVersion=4.0; charset="UTF-8"`}, 202},
		{[]string{"Content-Type", "application/json", "Content-Encoding", "identity"}, 202},
		{nil, 415},
		{[]string{"Content-Type", "application/json; charset=latin1"}, 415},
		{[]string{"Content-Type", "application/json", "Content-Encoding", "gzip"}, 415},
		{[]string{"Content-Type", "application/fhir+xml"}, 415},
		{[]string{"Content-Type", "application/x-www-form-urlencoded"}, 415},
		{[]string{"Content-Type", "json; ="}, 415},
	} {
		t.Run(strings.Join(test.header, " "), func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			got := h.send(http.MethodPost, h.base+"/$export", body, test.header...)
			if test.status == http.StatusAccepted {
				if got.status != test.status {
					t.Errorf("status: got %d: %s", got.status, got.body)
				}
				return
			}
			checkOutcome(t, got, test.status, "not-supported")
		})
	}
}

func TestPostedKickoffRefusesWhatItCannotRead(t *testing.T) {
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.MaxFileBytes = 1 << 20 })
	for name, test := range map[string]struct {
		target, body string
		status       int
		codes        []string
	}{
		"not JSON":            {"/$export", "_type=Patient", 400, []string{"structure"}},
		"two resources":       {"/$export", posted() + posted(), 400, []string{"structure"}},
		"another resource":    {"/$export", `{"resourceType":"Patient"}`, 400, []string{"structure"}},
		"an array":            {"/$export", `[]`, 400, []string{"structure"}},
		"too large":           {"/$export", `{"resourceType":"Parameters","x":"` + strings.Repeat("x", 1<<20) + `"}`, 413, []string{"too-long"}},
		"no name":             {"/$export", posted(`{"valueString":"x"}`, `{"name":7,"valueString":"x"}`, `null`), 400, []string{"structure", "structure", "structure"}},
		"no value":            {"/$export", posted(`{"name":"_type"}`, `{"name":"_since","valueInstant":null}`), 400, []string{"structure", "structure"}},
		"two values":          {"/$export", posted(`{"name":"_type","valueString":"Patient","valueCode":"Patient"}`), 400, []string{"structure"}},
		"parts":               {"/$export", posted(`{"name":"_type","valueString":"Patient","part":[]}`, `{"name":"_type","valueString":"Patient","resource":{}}`), 400, []string{"structure", "structure"}},
		"modifier extension":  {"/$export", posted(`{"name":"_type","valueString":"Patient","modifierExtension":[{"url":"u"}]}`), 400, []string{"structure"}},
		"list":                {"/$export", posted(`{"name":"_type","valueString":["Patient"]}`), 400, []string{"structure"}},
		"object":              {"/$export", posted(`{"name":"_type","valueQuantity":{"code":"Patient"}}`, `{"name":"patient","valueReference":{"identifier":{}}}`), 400, []string{"structure", "structure"}},
		"once in each":        {"/$export?_since=2020", posted(`{"name":"_since","valueInstant":"2020"}`), 400, []string{"invalid"}},
		"unknown":             {"/$export", posted(`{"name":"_typo","valueString":"Patient"}`), 400, []string{"not-supported"}},
		"modifier":            {"/$export", posted(`{"name":"_type:not","valueString":"Patient"}`), 400, []string{"invalid"}},
		"until before since":  {"/$export", posted(`{"name":"_since","valueDate":"2020"}`, `{"name":"_until","valueDate":"2020-01-01"}`), 400, []string{"invalid"}},
		"the future":          {"/$export", posted(`{"name":"_since","valueDate":"8000"}`), 400, []string{"invalid"}},
		"until the future":    {"/$export", posted(`{"name":"_until","valueDate":"8000"}`), 400, []string{"invalid"}},
		"sizes":               {"/$export", posted(`{"name":"_minimumFileSize","valuePositiveInt":10}`, `{"name":"_maximumFileSize","valuePositiveInt":10}`), 400, []string{"invalid"}},
		"larger than any":     {"/$export", posted(`{"name":"_minimumFileSize","valuePositiveInt":1048576}`, `{"name":"_maximumFileSize","valuePositiveInt":1048577}`), 400, []string{"not-supported"}},
		"no sizes":            {"/$export", posted(`{"name":"_minimumFileSize","valueDecimal":1e3}`, `{"name":"_maximumFileSize","valueInteger":0}`), 400, []string{"invalid", "invalid"}},
		"not a boolean":       {"/$export", posted(`{"name":"allowPartialManifests","valueString":"yes"}`), 400, []string{"invalid"}},
		"organized by what":   {"/$export", posted(`{"name":"organizeOutputBy","valueString":"patient"}`), 400, []string{"invalid"}},
		"by an unknown type":  {"/$export", posted(`{"name":"organizeOutputBy","valueString":"Unicorn"}`), 400, []string{"not-supported"}},
		"another association": {"/$export", posted(`{"name":"includeAssociatedData","valueCode":"_mine"}`), 400, []string{"not-supported"}},
		"elements":            {"/$export", posted(`{"name":"_elements","valueString":"Patient.name.family,Patient,,.id,patient.id,Patient.,a b"}`), 400, slices.Repeat([]string{"invalid"}, 7)},
		"system level":        {"/$export", posted(`{"name":"patient","valueString":"Patient/1"}`), 400, []string{"not-supported"}},
		"not Patients":        {"/Patient/$export", posted(`{"name":"patient","valueString":"1"}`, `{"name":"patient","valueString":"Group/1"}`, `{"name":"patient","valueString":"Patient/1/_history/2"}`, `{"name":"patient","valueString":"https://other.example/Patient/1"}`), 400, []string{"invalid"}},
		"an unknown Patient":  {"/Patient/$export", posted(`{"name":"patient","valueString":"Patient/nobody"}`), 404, []string{"not-found"}},
		"filters": {"/$export?_type=Patient", posted(
			`{"name":"_typeFilter","valueString":"Patient"}`, `{"name":"_typeFilter","valueString":"patient?active=true"}`, `{"name":"_typeFilter","valueString":"Patient?"}`,
			`{"name":"_typeFilter","valueString":"Patient?active="}`, `{"name":"_typeFilter","valueString":"Patient?active=true&_sort=name"}`,
			`{"name":"_typeFilter","valueString":"Patient?a;b"}`, `{"name":"_typeFilter","valueString":"Observation?code=1"}`,
		), 400, slices.Repeat([]string{"invalid"}, 7)},
		"filter of an unknown type": {"/$export", posted(`{"name":"_typeFilter","valueString":"Unicorn?horn=1"}`), 400, []string{"not-supported"}},
		"filter beside":             {"/Patient/$export", posted(`{"name":"_typeFilter","valueString":"Practitioner?active=true"}`), 400, []string{"not-supported"}},
		"many filters":              {"/$export", posted(slices.Repeat([]string{`{"name":"_typeFilter","valueString":"Patient?active=true"}`}, 101)...), 400, []string{"too-costly"}},
		"many faults":               {"/$export", posted(slices.Repeat([]string{`{"name":"_type"}`}, 30)...), 400, append(slices.Repeat([]string{"structure"}, 20), "invalid")},
	} {
		t.Run(name, func(t *testing.T) {
			checkOutcome(t, h.send(http.MethodPost, h.base+test.target, test.body, "Content-Type", "application/json"), test.status, test.codes...)
		})
	}
	if len(h.exports.asked) > 0 {
		t.Errorf("a job was begun: %+v", h.exports.asked)
	}
}

// Ensure no refusal repeats what could tell of a person.
func TestRefusalsRepeatNoSearchValue(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	for _, parameter := range []string{
		`{"name":"_typeFilter","valueString":"Patient?name=secret&_sort=secret"}`, `{"name":"_typeFilter","valueString":"Patient?secret"}`,
		`{"name":"_typeFilter","valueString":"secret"}`, `{"name":"patient","valueString":"Patient/secret"}`, `{"name":"patient","valueString":"secret/1"}`,
		`{"name":"_since","valueString":"secret"}`,
	} {
		got := h.send(http.MethodPost, h.base+"/Patient/$export", posted(parameter), "Content-Type", "application/json")
		if got.status < 400 || strings.Contains(got.body, "secret") {
			t.Errorf("%s: got %d %s", parameter, got.status, got.body)
		}
	}
}

func TestPatientParameterIsForPostsOnly(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	checkOutcome(t, h.ask(http.MethodGet, h.base+"/Patient/$export?patient=Patient/pat-00001"), http.StatusBadRequest, "not-supported")
	if got := h.send(http.MethodPost, h.base+"/Patient/$export?patient=Patient/pat-00001", ""); got.status != http.StatusAccepted {
		t.Errorf("POST: got %d %s", got.status, got.body)
	}
}

// Ensure that no body makes the parser panic or begin an export that it did not ask for.
func FuzzParameters(f *testing.F) {
	for _, body := range []string{
		"", "{}", posted(), posted(`{"name":"_type","valueString":"Patient"}`), posted(`{"name":"patient","valueReference":{"reference":"Patient/1"}}`),
		posted(`{"name":"_typeFilter","valueString":"Patient?a=b,Observation?c=d"}`), posted(`{"name":"_since","valueInstant":"2021-12-08T08:28:07 02:00"}`),
		posted(`{"name":"_elements","valueString":"a.b"}`, `{"name":"_maximumFileSize","valueInteger":12}`), posted(`null`, `{"name":{}}`), `{"resourceType":"Parameters","parameter":{}}`,
	} {
		f.Add(body)
	}
	handler, engine := fuzzed(f)
	f.Fuzz(func(t *testing.T, body string) {
		recorder := kickOffWith(t, handler, engine, http.MethodPost, "/fhir/Patient/$export", "", body, http.Header{"Content-Type": {"application/json"}})
		if recorder.Code != http.StatusAccepted {
			return
		}
		kickoff := engine.asked[0]
		for _, id := range kickoff.Patients {
			if id == "" || strings.ContainsAny(id, "/?#, ") {
				t.Errorf("accepted with the Patient %q", id)
			}
		}
		for _, filter := range kickoff.Filters {
			if given, err := url.ParseQuery(filter.Query); !typeName.MatchString(filter.Type) || err != nil || len(given) == 0 {
				t.Errorf("accepted with the filter %+v", filter)
			}
			if _, err := url.Parse("http://h/" + filter.Type + "?" + filter.Query); err != nil || strings.ContainsAny(filter.Query, "# ") {
				t.Errorf("filter makes no address: %+v", filter)
			}
		}
		if strings.TrimSpace(body) != "" && !strings.Contains(body, "Parameters") && !strings.Contains(body, `\u`) {
			t.Errorf("accepted %q", body)
		}
	})
}
