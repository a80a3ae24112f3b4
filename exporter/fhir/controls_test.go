package fhir_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure a server that answers a question well and its control wrongly is not believed: each of these differs from a good server
// in one thing alone.
func TestEveryControlIsAsked(t *testing.T) {
	fraction := regexp.MustCompile(`\.\d+`)
	ofGroup := "_has:Group:member:_id"
	for name, test := range map[string]struct {
		lie func(path string, values url.Values) string
		can func(*fhir.Profile) bool
	}{
		"counts any id": {func(path string, values url.Values) string {
			if values.Get("_id") == fhir.UnknownID && (values.Has("_summary") || values.Has("_total")) {
				values.Del("_id")
			}
			return path
		}, func(p *fhir.Profile) bool { return p.Counts }},
		"the second bound alone": {bounds(func(values url.Values) { values["_lastUpdated"] = values["_lastUpdated"][1:] }), canBound},
		"the first bound alone":  {bounds(func(values url.Values) { values["_lastUpdated"] = values["_lastUpdated"][:1] }), canBound},
		"nothing in two bounds":  {bounds(func(values url.Values) { values.Set("_id", fhir.UnknownID) }), canBound},
		"no fractions": {func(path string, values url.Values) string {
			for i, value := range values["_lastUpdated"] {
				values["_lastUpdated"][i] = fraction.ReplaceAllString(value, "")
			}
			return path
		}, func(p *fhir.Profile) bool { return p.Milliseconds }},
		"the newest first": {alters("_sort", "_lastUpdated", "-_lastUpdated"), canSort},
		"the oldest first": {alters("_sort", "-_lastUpdated", "_lastUpdated"), canSort},
		"a history of anybody": {func(path string, _ url.Values) string {
			return strings.Replace(path, fhir.UnknownID+"/_history", "_history", 1)
		}, func(p *fhir.Profile) bool { return p.InstanceHistory }},
		"others in a history": {func(path string, values url.Values) string {
			if parts := strings.Split(path, "/"); len(parts) == 5 && parts[4] == "_history" && parts[3] != fhir.UnknownID {
				values.Set("_count", "100")
				return "/fhir/" + parts[2] + "/_history"
			}
			return path
		}, func(p *fhir.Profile) bool { return p.InstanceHistory }},
		"any version": {func(path string, _ url.Values) string {
			return strings.TrimSuffix(path, "/_history/"+fhir.UnknownID)
		}, func(p *fhir.Profile) bool { return p.VRead }},
		"any Patient": {func(path string, values url.Values) string {
			for _, param := range []string{"patient", "subject"} {
				if strings.HasSuffix(values.Get(param), fhir.UnknownID) {
					values.Del(param)
				}
			}
			return path
		}, func(p *fhir.Profile) bool { return p.PatientLists }},
		"the first of a list": {func(path string, values url.Values) string {
			for _, param := range []string{"patient", "subject"} {
				if first, _, more := strings.Cut(values.Get(param), ","); more {
					values.Set(param, first)
				}
			}
			return path
		}, func(p *fhir.Profile) bool { return p.PatientLists }},
		"no :missing": {func(path string, values url.Values) string {
			values.Del("patient:missing")
			return path
		}, func(p *fhir.Profile) bool { return p.MissingModifier }},
		"members of any Group":  {alters(ofGroup, fhir.UnknownID, "g1"), canHas},
		"strangers in a Group":  {alters(ofGroup, "g1", ""), canHas},
		"no members of a Group": {alters(ofGroup, "g1", "nobody"), canHas},
		"anybody in a compartment": {func(path string, values url.Values) string {
			if parts := strings.Split(path, "/"); len(parts) == 5 && parts[2] == "Patient" && parts[4] != "_history" {
				if path = "/fhir/" + parts[4]; parts[3] == fhir.UnknownID || parts[4] == "Organization" {
					values.Set("_id", fhir.UnknownID)
				}
			}
			return path
		}, func(p *fhir.Profile) bool { return p.CompartmentSearch }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, _ := probed(t, fhirtest.Plain(), changed(test.lie)); test.can(got) {
				t.Errorf("the server is believed: %+v", got)
			}
		})
	}
}

func canBound(p *fhir.Profile) bool { return p.Bounds || !p.Filter } // one bound is honoured

func canSort(p *fhir.Profile) bool { return p.Sort }

func canHas(p *fhir.Profile) bool { return p.HasGroupMember }

// bounds changes searches with two bounds of _lastUpdated.
func bounds(edit func(url.Values)) func(string, url.Values) string {
	return func(path string, values url.Values) string {
		if len(values["_lastUpdated"]) == 2 {
			edit(values)
		}
		return path
	}
}

// alters gives one value of a parameter another one, or drops the parameter where that is empty.
func alters(param, from, to string) func(string, url.Values) string {
	return func(path string, values url.Values) string {
		switch {
		case values.Get(param) != from:
		case to == "":
			values.Del(param)
		default:
			values.Set(param, to)
		}
		return path
	}
}

// Ensure a server whose forms find nothing, or always the same row, is not sent any.
func TestFormsThatAlwaysFindTheSame(t *testing.T) {
	for name, finds := range map[string]string{"nothing": "_id=" + fhir.UnknownID, "a row": "_count=1"} {
		got, _ := probed(t, fhirtest.Plain(), func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if typ, isForm := strings.CutSuffix(r.URL.Path, "/_search"); isForm {
					r = httptest.NewRequest(http.MethodGet, typ+"?"+finds, nil)
				}
				next.ServeHTTP(w, r)
			})
		})
		if got.PostSearch {
			t.Errorf("%s: the server is believed", name)
		}
	}
}
