package exporter_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure each product survives each fault in the same way: what a product can do decides the way, never the result. Cells
// with another result stand below the row that they are of.
func TestEveryFailureOnEveryServer(t *testing.T) {
	n := 0
	for _, row := range faultRows() {
		for _, p := range products() {
			if n++; sparse(n) {
				continue
			}
			c := row.cell()
			if other, ok := row.but[p.Name]; ok {
				if other.unfit != "" {
					continue
				}
				other.before, other.after = c.before, c.after
				c = other.cell
			}
			c.server, c.kickoff, c.fill = p.Personality, system(), matrixData
			if p.promise == refused {
				c.kickoff = kickoffOf(state.Patient, askable...)
			}
			t.Run(row.name+"/"+p.Name, c.run)
		}
	}
}

// faultRow is one fault with its result on every product, and the results of those on which it is another one.
type faultRow struct {
	name string
	cell func() cell
	but  map[string]otherCell
}

// otherCell is a result of its own, or the reason why the fault cannot be on the product.
type otherCell struct {
	cell
	unfit string
}

// matrixData are 30 Immunizations one by one, 25 of one instant, which are read by the server's own links, and 25
// Encounters, all of some Patients.
func matrixData(t *testing.T, s *fhirtest.Server) {
	t.Helper()
	put := func(ago time.Duration, format string, args ...any) {
		if err := s.PutAt(fmt.Appendf(nil, format, args...), time.Now().Add(-ago)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		put(3*time.Hour, `{"resourceType":"Patient","id":"p%d"}`, i)
	}
	for i := range 30 {
		put(2*time.Hour-time.Duration(i)*7*time.Second, `{"resourceType":"Immunization","id":"i%02d","patient":{"reference":"Patient/p%d"}}`, i, i%3)
	}
	for i := range 25 {
		put(time.Hour, `{"resourceType":"Immunization","id":"one-%02d","patient":{"reference":"Patient/p%d"}}`, i, i%3)
		put(90*time.Minute-time.Duration(i)*time.Second, `{"resourceType":"Encounter","id":"e%02d","subject":{"reference":"Patient/p%d"}}`, i, i%3)
	}
	s.CatchUp()
}

// immunizations matches searches for rows of Immunization, also by the server's links, and no counts.
func immunizations(r *http.Request) bool {
	query := r.URL.Query()
	return strings.HasSuffix(r.URL.Path, "/Immunization") && query.Get("_summary") == "" && query.Get("_total") == "" && query.Get("_id") == ""
}

// onImmunizations limits a change to Bundles of Immunizations, whatever link they come by.
func onImmunizations(change func(*http.Request, *bundle) int) func(*http.Request, *bundle) int {
	return func(r *http.Request, b *bundle) int {
		query := r.URL.Query()
		if query.Has("_total") || query.Has("_id") || !slices.ContainsFunc(b.entries(), isImmunization) {
			return 0
		}
		return change(r, b)
	}
}

func isImmunization(entry any) bool {
	resource, _ := entry.(map[string]any)["resource"].(map[string]any)
	return resource["resourceType"] == "Immunization"
}

// stranger puts a row in front that is older than what was asked for.
func stranger(r *http.Request, b *bundle) int {
	if r.URL.Query().Has("_lastUpdated") && strings.HasPrefix(r.URL.Query().Get("_lastUpdated"), "lt") {
		return 0
	}
	old := map[string]any{"resource": map[string]any{
		"resourceType": "Immunization", "id": "old", "patient": map[string]any{"reference": "Patient/p0"},
		"meta": map[string]any{"versionId": "1", "lastUpdated": "1990-01-01T00:00:00.000Z"},
	}}
	(*b)["entry"], (*b)["changed"] = append([]any{old}, b.entries()...), true
	return 0
}

// strike is a fault of the sample server, on searches for Immunizations.
func strike(f fhirtest.Fault) func() cell {
	if f.Match == nil {
		f.Match = immunizations
	}
	return func() cell {
		return cell{before: func(b *bubble) func(http.ResponseWriter, *http.Request) bool {
			b.sample.Fail(f)
			return nil
		}}
	}
}

// without takes a row out of every answer.
func without(id string) func(*http.Request, *bundle) int {
	return func(_ *http.Request, b *bundle) int {
		entries := b.entries()
		kept := make([]any, 0, len(entries))
		for _, entry := range entries {
			if idOf(entry) != id {
				kept = append(kept, entry)
			}
		}
		if len(kept) < len(entries) {
			(*b)["entry"], (*b)["changed"] = kept, true
		}
		return 0
	}
}

// sparse leaves out four of five cells of a large table where tests are to be short, as the race tests are: how goroutines
// meet, which is what they look at, hardly hangs on the cell.
func sparse(cell int) bool { return testing.Short() && cell%5 != 0 }

// shorter is how many of n random runs are made: a third where tests are to be short.
func shorter(n int) int {
	if testing.Short() {
		return max(1, n/3)
	}
	return n
}
