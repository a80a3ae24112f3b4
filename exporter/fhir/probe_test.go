package fhir_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// fill puts rows of different times, none of them in the first millisecond of a second.
func fill(t *testing.T, server *fhirtest.Server, typ string, rows int) {
	t.Helper()
	for i := range rows {
		resource := fmt.Appendf(nil, `{"resourceType":%q,"id":"%s-%d"}`, typ, strings.ToLower(typ[:1]), i)
		if err := server.PutAt(resource, when.Add(time.Duration(i)*time.Minute+123*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestProbeTellsWhatAServerCan(t *testing.T) {
	with := func(p fhirtest.Personality, change func(*fhirtest.Personality)) fhirtest.Personality {
		change(&p)
		return p
	}
	type p = fhirtest.Personality
	plain := fhir.Profile{
		FHIRVersion: "4.0.1", Software: "Plain FHIR Server 1.0.0", Keyset: true, Milliseconds: true, Counts: true, IDLists: true,
		PageSize: 1000, TypeHistory: true, Settle: 5 * time.Second,
	}
	want := func(change func(*fhir.Profile)) fhir.Profile {
		w := plain
		change(&w)
		return w
	}
	for _, test := range []struct {
		name   string
		server fhirtest.Personality
		want   fhir.Profile
	}{
		{"plain", fhirtest.Plain(), plain},
		{"hapi", fhirtest.HAPI(), want(func(w *fhir.Profile) {
			w.Software, w.HAPI, w.Settle = "HAPI FHIR Server 8.8.0", true, 10*time.Second
		})},
		{"blaze", fhirtest.Blaze(), want(func(w *fhir.Profile) { w.Software, w.Milliseconds = "Blaze 1.2.0", false })},
		{"microsoft", fhirtest.Microsoft(), want(func(w *fhir.Profile) { w.Software = "Microsoft FHIR Server 4.0.0" })},
		{"pages of 7", with(fhirtest.Plain(), func(p *p) { p.MaxCount = 7 }), want(func(w *fhir.Profile) { w.PageSize = 7 })},
		{"no bounds", with(fhirtest.Plain(), func(p *p) { p.IgnoreLastUpdated = true }), want(func(w *fhir.Profile) {
			w.Keyset, w.Milliseconds, w.Counts, w.IDLists = false, false, false, false
		})},
		{"no sort", with(fhirtest.Plain(), func(p *p) { p.IgnoreSort = true }), want(func(w *fhir.Profile) { w.Keyset = false })},
		{"no counts", with(fhirtest.Plain(), func(p *p) { p.NoSummaryCount = true }), want(func(w *fhir.Profile) {
			w.Counts, w.IDLists = false, false
		})},
		{"no history", with(fhirtest.Plain(), func(p *p) { p.NoHistory = true }), want(func(w *fhir.Profile) { w.TypeHistory = false })},
		{"superset", with(fhirtest.Plain(), func(p *p) { p.IgnoreEverything = true }), want(func(w *fhir.Profile) {
			w.Keyset, w.Milliseconds, w.Counts, w.IDLists = false, false, false, false
		})},
		{"seconds", with(fhirtest.Plain(), func(p *p) { p.Granule = time.Second }), want(func(w *fhir.Profile) { w.Milliseconds = false })},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server, client := start(t, test.server)
			fill(t, server, "Observation", 30)
			got, err := client.Probe(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", test.want) {
				t.Errorf("got  %+v\nwant %+v", *got, test.want)
			}
			if n := len(server.Requests()); n > 40 {
				t.Errorf("%d requests, want about twenty", n)
			}
		})
	}
}

func TestProbeAsksForThePageSizeThatIsWanted(t *testing.T) {
	for _, test := range []struct{ wanted, limit, want int }{{50, 0, 50}, {50, 7, 7}, {5, 100, 5}, {2000, 0, 2000}} {
		personality := fhirtest.Plain()
		personality.MaxCount = test.limit
		server, client := start(t, personality)
		fill(t, server, "Observation", 30)
		if got, err := client.Probe(t.Context(), test.wanted); err != nil || got.PageSize != test.want {
			t.Errorf("wanted %d of a server with the limit %d: %+v, %v; want %d", test.wanted, test.limit, got, err, test.want)
		}
	}
}

func TestProbeOfAnEmptyServerClaimsNothing(t *testing.T) {
	_, client := start(t, fhirtest.Plain())
	got, err := client.Probe(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got.Keyset || got.Counts || got.IDLists || got.TypeHistory || len(got.Remarks) != 1 {
		t.Errorf("got %+v", got)
	}
}

// Ensure a refusal is an answer to one question only, and that a type which is refused is passed over.
func TestProbePassesOverARefusedType(t *testing.T) {
	server, client := start(t, fhirtest.Plain())
	fill(t, server, "Observation", 3)
	fill(t, server, "Patient", 3)
	server.Fail(fhirtest.Fault{
		Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Observation") }, Times: -1, Status: http.StatusForbidden,
	})
	got, err := client.Probe(t.Context(), 0)
	if err != nil || !got.Keyset || !got.Counts || !got.TypeHistory {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestProbeFailsWhenTheServerIsAwayOrRefusesToBeAsked(t *testing.T) {
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusUnauthorized} {
		server, client := start(t, fhirtest.Plain())
		fill(t, server, "Observation", 3)
		server.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool { return r.URL.Query().Get("_summary") == "count" }, Status: status,
		})
		if got, err := client.Probe(t.Context(), 0); fhir.StatusOf(err) != status || got != nil {
			t.Errorf("got %+v, %v; want the refusal %d", got, err, status)
		}
	}
	if _, err := answering(t, http.StatusOK, "<html>").Probe(t.Context(), 0); err == nil {
		t.Error("a login page was probed")
	}
}

func TestCapabilitiesAreReadOnceAndOnlyFromAStatement(t *testing.T) {
	server, client := start(t, fhirtest.HAPI())
	for range 3 {
		statement, err := client.Capabilities(t.Context())
		if err != nil || !statement.IsHAPI() || !statement.Offers("Patient") || statement.Offers("Nothing") {
			t.Fatalf("%+v, %v", statement, err)
		}
		if !statement.HasParam("Observation", "patient") || statement.HasParam("Observation", "nothing") {
			t.Errorf("parameters of Observation: %v", statement.SearchParams["Observation"])
		}
	}
	if got := len(server.Requests()); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	for _, body := range []string{"", "<html>", `{"resourceType":"OperationOutcome"}`, `{"resourceType":"CapabilityStatement"`} {
		if _, err := answering(t, http.StatusOK, body).Capabilities(t.Context()); err == nil {
			t.Errorf("%q was taken for a statement", body)
		}
	}
}
