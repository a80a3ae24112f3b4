package e2e

import (
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
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
	"T-03": "the sidecar has no authorization of its own yet: an export without _type holds what its account may read",
	"T-04": "the sidecar has no authorization of its own yet: who knows the address of a status may ask for it",
	"S-04": "polls are not counted: they cost the sidecar little, and clients take a poll that is refused for the end of the export",
	"F-07": "files of a folder can be read for as long as the export is kept; with S3 or Google Cloud Storage link_lifetime can be 5m",
	"A-03": "a link to a Binary that needs no token would be good for as long as the export is kept and past the server's rights",
	"S-1":  "the sidecar has no authorization of its own yet: the FHIR server judges the token of a kick-off, nobody that of a status",
}

// Ensure the sidecar meets the requirements of the Bulk Data guide, but for those that are known.
func TestConformance(t *testing.T) {
	t.Run("sample", func(t *testing.T) {
		sample := fhirtest.New(fhirtest.HAPI(), "/fhir")
		at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		for _, resource := range conformanceRecords() {
			if err := sample.PutAt(resource, at); err != nil {
				t.Fatal(err)
			}
			at = at.Add(time.Second)
		}
		runConformance(t, "sample", sample)
	})
}

// conformanceRecords are a small clinic and what its records lack for some rows: an attachment that stands on the server,
// and a Patient with two Provenance.
func conformanceRecords() [][]byte {
	records := fhirtest.Generate(1, conformancePatients)
	for _, more := range []string{
		`{"resourceType":"Binary","id":"note","contentType":"text/plain","data":"aGVsbG8="}`,
		`{"resourceType":"DocumentReference","id":"note","status":"current","subject":{"reference":"Patient/pat-00001"},` +
			`"content":[{"attachment":{"contentType":"text/plain","url":"Binary/note"}}]}`,
		`{"resourceType":"Provenance","id":"later","target":[{"reference":"Patient/pat-00003"}],"recorded":"2025-06-01T00:00:00.000Z",` +
			`"agent":[{"who":{"reference":"Organization/org-1"}}]}`,
	} {
		records = append(records, []byte(more))
	}
	return records
}

// runConformance runs the suite against a sidecar in front of a FHIR server that asks for tokens.
func runConformance(t *testing.T, name string, upstream http.Handler) {
	g := newGuard(upstream, "/fhir", deniedGroup)
	front := httptest.NewServer(g)
	t.Cleanup(front.Close)
	config := settings{
		"upstream_auth": settings{"header": settings{"name": "Authorization", "value": "Bearer " + sidecarToken}},
		"max_running":   4, "allow_partial": true, "trusted_proxies": []string{"127.0.0.0/8"},
	}
	shortLived := maps.Clone(config)
	config["writes_pass_here"], shortLived["retention"] = true, "3s"
	s := startSidecar(t, front.URL+"/fhir", config)
	terminator, roots := terminateTLS(t, s.base)
	server := conformance.Server{
		Base: s.base, Parallel: 3, Token: g.token, DeniedGroup: deniedGroup, Writable: true, Fail: g.fail, Hold: g.hold,
		Secure: terminator, Roots: roots, ShortLived: startSidecar(t, front.URL+"/fhir", shortLived).base,
	}
	conformance.Run(t, server, notMet, func(results []conformance.Result) {
		fmt.Printf("\nconformance of the sidecar over %s\n%s", name, conformance.Table(results))
	})
}

// terminateTLS puts a proxy before the sidecar that takes TLS off, as an ingress does.
func terminateTLS(t *testing.T, base string) (string, *x509.CertPool) {
	t.Helper()
	target, err := url.Parse(strings.TrimSuffix(base, "/fhir"))
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.SetXForwarded()
	}})
	t.Cleanup(front.Close)
	roots := x509.NewCertPool()
	roots.AddCert(front.Certificate())
	return front.URL + "/fhir", roots
}
