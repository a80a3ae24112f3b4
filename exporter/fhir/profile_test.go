package fhir_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure a server whose "lt" names the end of a second, not its beginning, is understood: windows are asked for so that
// they end where they should.
func TestInclusiveLTIsSeenAndSpoken(t *testing.T) {
	server := fhirtest.New(fhirtest.Plain(), "/fhir")
	populate(t, server)
	inclusive := changed(func(path string, values url.Values) string {
		for i, value := range values["_lastUpdated"] {
			if bound, ok := strings.CutPrefix(value, "lt"); ok {
				at, err := time.Parse(time.RFC3339, bound)
				step := time.Second
				if strings.Contains(bound, ".") {
					step = time.Millisecond
				}
				if err != nil {
					t.Error(err)
				}
				values["_lastUpdated"][i] = "lt" + fhir.FormatInstant(at.Add(step))
			}
		}
		return path
	})
	web := served(t, inclusive(server))
	for range 2 { // a client that has adopted the dialect must see it again
		profile, err := web.Probe(t.Context(), 0)
		if err != nil || !profile.InclusiveLT || !profile.Keyset || !profile.Milliseconds || profile.Undated != 0 {
			t.Fatalf("got %+v, %v", profile, err)
		}
		web.Adopt(profile)
	}
	second := when.Truncate(time.Second) // the first row lies 123 ms after it
	for to, want := range map[time.Time]int64{
		second: 0, second.Add(time.Second): 1, second.Add(123 * time.Millisecond): 0, second.Add(124 * time.Millisecond): 1,
		second.Add(time.Millisecond): 0,
	} {
		if n, err := web.Count(t.Context(), fhir.Query{Type: "Patient", To: to}); err != nil || n != want {
			t.Errorf("rows before %s: %d, %v; want %d", to.Format(time.StampMilli), n, err, want)
		}
	}
}

// Ensure that where types disagree the weaker answer is taken, and that the profile says which type it was. Only a history is
// used where there is one.
func TestTheWeakerAnswerStands(t *testing.T) {
	server := fhirtest.New(fhirtest.Plain(), "/fhir")
	populate(t, server)
	server.Fail(fhirtest.Fault{Times: -1, Status: http.StatusForbidden, Match: func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/Encounter/_history")
	}})
	server.Fail(fhirtest.Fault{Times: -1, Status: http.StatusBadRequest, Match: func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, "/Organization") && r.URL.Query().Has("_sort")
	}})
	got := probeOf(t, server, nil)
	if !got.TypeHistory || got.Sort || got.Keyset || got.Uncertain || !got.Bounds || !got.InstanceHistory {
		t.Errorf("got %+v", got)
	}
	all := strings.Join(got.Remarks, "\n")
	for _, want := range []string{"history of a type: not of Encounter, but of Observation, Organization", "sorting by _lastUpdated: not of Organization, but of Observation, Encounter"} {
		if !strings.Contains(all, want) {
			t.Errorf("no remark %q in\n%s", want, all)
		}
	}
}

// Ensure one error proves nothing, and two leave a profile that says so and names neither values nor ids.
func TestAnErrorIsNoAnswer(t *testing.T) {
	for _, status := range []int{http.StatusInternalServerError, http.StatusGatewayTimeout} {
		for _, test := range []struct {
			times int
			want  bool
		}{{1, true}, {-1, false}} {
			server := fhirtest.New(fhirtest.Plain(), "/fhir")
			populate(t, server)
			server.Fail(fhirtest.Fault{Times: test.times, Status: status, Match: func(r *http.Request) bool {
				return strings.Contains(r.URL.RawQuery, "lt") && strings.Contains(r.URL.RawQuery, "_id=obs")
			}})
			got := probeOf(t, server, nil)
			if got.Bounds != test.want || got.Uncertain == test.want || (len(got.Remarks) == 0) != test.want {
				t.Errorf("status %d, %d times: got %+v", status, test.times, got)
			}
			if text := strings.Join(got.Remarks, "\n"); strings.Contains(text, "obs") || !test.want && !strings.Contains(text, "two bounds of _lastUpdated: Observation") {
				t.Errorf("status %d: remarks %s", status, text)
			}
		}
	}
}

// compartments gives a server compartment searches, with the habits of bad ones.
func compartments(foreign, unknown bool) func(http.Handler) http.Handler {
	return changed(func(path string, values url.Values) string {
		parts := strings.Split(strings.TrimPrefix(path, "/fhir/"), "/")
		if len(parts) != 3 || parts[0] != "Patient" || parts[2] == "_history" {
			return path
		}
		switch typ, id := parts[2], parts[1]; {
		case typ == "Organization" && foreign, typ != "Organization" && unknown && id == fhir.UnknownID:
		case typ == "Organization":
			values.Set("_id", fhir.UnknownID)
		default:
			values.Set("patient", id)
		}
		return "/fhir/" + parts[2]
	})
}

func TestCompartmentSearchIsNotTrustedOnSight(t *testing.T) {
	for _, test := range []struct{ foreign, unknown, want bool }{{false, false, true}, {true, false, false}, {false, true, false}} {
		if got, _ := probed(t, fhirtest.Plain(), compartments(test.foreign, test.unknown)); got.CompartmentSearch != test.want {
			t.Errorf("foreign type %t, unknown Patient %t: got %t", test.foreign, test.unknown, got.CompartmentSearch)
		}
	}
}

// Ensure the pages of a compartment search and of a form stay within it.
func TestPagesOfCompartmentsAndForms(t *testing.T) {
	server := fhirtest.New(fhirtest.Plain(), "/fhir")
	populate(t, server)
	client := served(t, compartments(false, false)(server))
	for name, q := range map[string]fhir.Query{
		"compartment": {Type: "Observation", Patient: "p1", Count: 4},
		"form":        {Type: "Observation", Criteria: []fhir.QueryParam{{Name: "patient", Value: "p1"}}, Count: 4, Post: true},
	} {
		page, err := client.Search(t.Context(), q)
		if err != nil {
			t.Fatal(name, err)
		}
		found := 0
		for {
			if err := page.Each(func(e *fhir.Entry) error {
				if found++; !strings.Contains(string(e.Resource), "Patient/p1") {
					t.Errorf("%s: a stranger: %s", name, e.Resource)
				}
				return nil
			}); err != nil {
				t.Fatal(name, err)
			}
			next, err := page.Next()
			if err != nil {
				t.Fatal(name, err)
			}
			if next == "" {
				break
			}
			if page, err = client.Follow(t.Context(), "Observation", "searchset", next); err != nil {
				t.Fatal(name, err)
			}
		}
		if found != 6 {
			t.Errorf("%s: %d rows, want 6", name, found)
		}
	}
}

// Ensure a link of a server that has compartments itself is not moved out of the compartment.
func TestNextLinkStaysInTheCompartment(t *testing.T) {
	body := `{"resourceType":"Bundle","type":"searchset","link":[
		{"relation":"self","url":"http://inside/r4/Patient/p1/Observation?_count=4"},
		{"relation":"next","url":"http://inside/r4/Patient/p1/Observation?page=2"}]}`
	page, err := answering(t, http.StatusOK, body).Search(t.Context(), fhir.Query{Type: "Observation", Patient: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Each(func(*fhir.Entry) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if next, err := page.Next(); next != upstreamBase+"/Patient/p1/Observation?page=2" || err != nil {
		t.Errorf("got %q, %v", next, err)
	}
}

func TestFormsHaveNothingInTheAddress(t *testing.T) {
	server, client := start(t, fhirtest.HAPI())
	populate(t, server)
	server.ResetRequests()
	page, err := client.Search(t.Context(), fhir.Query{Type: "Patient", Criteria: []fhir.QueryParam{{Name: "_id", Value: "p1"}}, Post: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Close(); err != nil {
		t.Error(err)
	}
	if got := server.Requests()[0]; got.Method != http.MethodPost || got.RawQuery != "" || got.Path != "/fhir/Patient/_search" || got.Form != "_id=p1" {
		t.Errorf("sent %+v", got)
	}
}

// Ensure rows without a time keep windows from being used, since no window would hold them.
func TestUndatedRowsAreCounted(t *testing.T) {
	got, _ := probed(t, fhirtest.Plain(), changed(func(path string, values url.Values) string {
		if values.Get("_lastUpdated") == "lt2199-01-01T00:00:00Z" && strings.HasSuffix(path, "/Encounter") {
			values.Set("_lastUpdated", "lt"+fhir.FormatInstant(when.Add(25*time.Minute)))
		}
		return path
	}))
	if got.Undated != 3 || got.Keyset || !strings.Contains(strings.Join(got.Remarks, "\n"), "Encounter has rows without meta.lastUpdated") {
		t.Errorf("got %+v", got)
	}
}

func TestClockAndSkew(t *testing.T) {
	server := fhirtest.New(fhirtest.Plain(), "/fhir")
	server.Now = func() time.Time { return time.Now().Add(-time.Hour) }
	populate(t, server)
	undated := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(&noDate{w}, r) })
	}
	for want, wrap := range map[fhir.ClockSource]func(http.Handler) http.Handler{fhir.ClockDate: nil, fhir.ClockBundle: undated} {
		if got := probeOf(t, server, wrap); got.ClockSource != want || (got.Skew+time.Hour).Abs() > 10*time.Second {
			t.Errorf("got %s %s, want %s an hour behind", got.ClockSource, got.Skew, want)
		}
	}
}

// noDate sends no Date header.
type noDate struct{ http.ResponseWriter }

func (w *noDate) WriteHeader(status int) {
	w.Header()["Date"] = nil
	w.ResponseWriter.WriteHeader(status)
}

// Ensure the profile can be stored, and that its findings cover every probe and say what follows.
func TestProfileIsStoredAndExplained(t *testing.T) {
	personality := fhirtest.Plain()
	personality.NoHistory = true
	profile, _ := probed(t, personality, nil)
	raw, err := json.Marshal(profile)
	if err != nil {
		t.Fatal(err)
	}
	var back fhir.Profile
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(&back, profile) {
		t.Errorf("%v: got %+v, want %+v", err, back, profile)
	}
	lines := strings.Join(profile.Lines(), "\n") + "\n"
	for _, want := range []string{
		"P1 ", "P2 ", "P3 ", "P4 ", "P5 ", "P6 ", "P7 ", "P8 ", "P9 ", "P10 ", "P11 ", "P12 ", "deletions cannot be reported",
		"by _summary=count",
	} {
		if !strings.Contains(lines, want) {
			t.Errorf("no %q in\n%s", want, lines)
		}
	}
	for _, finding := range profile.Findings() {
		if finding.Answer == "" || finding.Follows == "" || finding.OK == (finding.Question == "history of a type" || finding.Question == "history of a resource") {
			t.Errorf("got %+v", finding)
		}
	}
}
