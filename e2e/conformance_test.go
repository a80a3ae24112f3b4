package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"sidecar/e2e/conformance"
	"sidecar/exporter/fhir/fhirtest"
)

const (
	conformancePatients = 30
	deniedGroup         = "demo-empty"
)

// notMet are the rows that the sidecar does not meet, with the reason.
var notMet = map[string]string{
	"S-04": "polls are not counted: they cost the sidecar little, and a client that is refused one takes its export for failed",
}

// Ensure the sidecar meets the requirements of the Bulk Data guide, but for those that are known.
func TestConformance(t *testing.T) {
	t.Run("sample", func(t *testing.T) {
		sample := fhirtest.New(fhirtest.HAPI(), "/fhir")
		at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		for _, resource := range fhirtest.Generate(1, conformancePatients) {
			if err := sample.PutAt(resource, at); err != nil {
				t.Fatal(err)
			}
			at = at.Add(time.Second)
		}
		runConformance(t, "sample", sample)
	})
}

// runConformance runs the suite against a sidecar in front of a FHIR server that asks for tokens.
func runConformance(t *testing.T, name string, upstream http.Handler) {
	g := newGuard(upstream, "/fhir", deniedGroup)
	front := httptest.NewServer(g)
	t.Cleanup(front.Close)
	s := startSidecar(t, front.URL+"/fhir", settings{
		"upstream_auth": settings{"header": settings{"name": "Authorization", "value": "Bearer " + sidecarToken}},
		"max_running":   4, "allow_partial": true, "writes_pass_here": true, "settle": "1s",
	})
	server := conformance.Server{
		Base: s.base, Parallel: 3, Token: g.token, DeniedGroup: deniedGroup, Writable: true, Fail: g.fail, Hold: g.hold,
	}
	conformance.Run(t, server, notMet, func(results []conformance.Result) {
		fmt.Printf("\nconformance of the sidecar over %s\n", name)
		conformance.Print(os.Stdout, results)
	})
}
