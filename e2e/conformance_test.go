package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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
var notMet = map[string]string{}

var update = flag.Bool("update", false, "write generated documents anew")

// conformancePage is generated from the results.
const conformancePage = "../docs/conformance.md"

// conformanceHead is the beginning of the page, which is for people who do not know the tests.
const conformanceHead = `# Conformance

What the Bulk Data Export guide asks of a server, requirement by requirement, and what the sidecar does. The page is written by
the tests in e2e/conformance: the built sidecar stands in front of the in-memory sample server and of a HAPI FHIR server, both of
which ask their clients for tokens, and a test fails where the page does not say what was found. What is met of tokens and scopes is met
because the sidecar asks the server with the token of the client before it begins an export and when its status is asked for. The rows on
TLS, and on files that need a token, were tried with a second sidecar over the same data that has the settings ` + "`tls`" + ` and ` + "`links: stream`" + `, and
those on what expires with a third one of a short ` + "`retention`" + `.

"Not offered" is what a server may do without, and a row is "met" only where there was something to see. The same tests can be pointed at
any other server:

` + "```" + `
cd e2e && CONFORMANCE_URL=https://fhir.example.org/fhir go test -count=1 -v -run TestConformance ./conformance
` + "```" + `

CONFORMANCE_TOKEN is a bearer token for it. With CONFORMANCE_WRITE=yes the tests write and delete a few resources of type Basic. Rows
that need more are skipped and say what; a row that is not met fails.
`

// Ensure the sidecar meets the requirements of the Bulk Data guide, but for those that are known, and that the page says so.
func TestConformance(t *testing.T) {
	columns := []conformance.Column{{Name: "sample server"}, {Name: "HAPI"}}
	t.Cleanup(func() { checkConformancePage(t, columns) })
	t.Run("sample", func(t *testing.T) {
		t.Parallel()
		sample := fhirtest.New(fhirtest.HAPI(), "/fhir")
		at := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
		for _, resource := range conformanceRecords() {
			if err := sample.PutAt(resource, at); err != nil {
				t.Fatal(err)
			}
			at = at.Add(time.Second)
		}
		runConformance(t, &columns[0], sample)
	})
	t.Run("HAPI", func(t *testing.T) {
		t.Parallel()
		runConformance(t, &columns[1], emptyHAPI(t, conformanceRecords()))
	})
}

// checkConformancePage compares the page with the results, where -run left no row out.
func checkConformancePage(t *testing.T, columns []conformance.Column) {
	for _, column := range columns {
		if len(column.Results) != len(conformance.Rows()) {
			t.Logf("%s was not compared: %d rows of %s were tested", conformancePage, len(column.Results), column.Name)
			return
		}
	}
	page := conformanceHead + conformance.Page(notMet, columns...)
	if *update {
		if err := os.WriteFile(conformancePage, []byte(page), 0o644); err != nil {
			t.Error(err)
		}
		return
	}
	written, err := os.ReadFile(conformancePage)
	if err != nil {
		t.Error(err)
	}
	if string(written) != page {
		t.Errorf("%s does not say what was found: run this test with -update and look at the difference", conformancePage)
	}
}

// emptyHAPI starts a HAPI that holds these records alone, written some at a time.
func emptyHAPI(t *testing.T, records [][]byte) http.Handler {
	t.Helper()
	if err := buildHAPI(); err != nil {
		t.Fatal(err)
	}
	server, err := startHAPI(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.stop(); err != nil {
			t.Errorf("stop HAPI: %v", err)
		}
	})
	for some := range slices.Chunk(records, 100) {
		var bundle []json.RawMessage
		for _, record := range some {
			bundle = append(bundle, record)
		}
		if err := postTransaction(t.Context(), server.base, bundle); err != nil {
			t.Fatal(err)
		}
	}
	target, err := url.Parse(strings.TrimSuffix(server.base, "/fhir"))
	if err != nil {
		t.Fatal(err)
	}
	return &httputil.ReverseProxy{Transport: client.Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // HAPI builds its links from it
	}}
}

// conformanceRecords are a small clinic and what its records lack for some rows: an attachment that stands on the server,
// and a Patient with two Provenance.
func conformanceRecords() [][]byte {
	records := fhirtest.Generate(1, conformancePatients)
	for i, record := range records {
		records[i] = bytes.ReplaceAll(record, []byte(`\u003cgenerated\u003e`), nil) // no XHTML, which HAPI reads
	}
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
func runConformance(t *testing.T, column *conformance.Column, upstream http.Handler) {
	g := newGuard(upstream, "/fhir")
	front := httptest.NewServer(g)
	t.Cleanup(front.Close)
	config := settings{
		"upstream_auth": settings{"header": settings{"name": "Authorization", "value": "Bearer " + sidecarToken}},
		"max_running":   8, "allow_partial": true, "manifest_page_rows": 20,
		"link_lifetime": "5m", // what the guide recommends
		"auth":          settings{"clients": []settings{{"id": "*", "groups": settings{"deny": []string{deniedGroup}}}}},
	}
	shortLived := maps.Clone(config)
	shortLived["retention"] = "12s" // a busy machine reads the manifest and a file meanwhile
	files, roots := certificateFiles(t)
	secure := maps.Clone(config)
	secure["tls"], secure["links"], secure["gzip"] = files, "stream", true
	// The suite writes by the sidecar, and both servers show what they have answered: no page of a manifest has to wait.
	config["writes_pass_here"], config["settle"] = true, "1ms"
	secureBase := "https" + strings.TrimPrefix(startSidecar(t, front.URL+"/fhir", secure).base, "http")
	server := conformance.Server{
		Base: startSidecar(t, front.URL+"/fhir", config).base, Parallel: 6, Token: g.token, DeniedGroup: deniedGroup, Writable: true,
		Fail: g.fail, Hold: g.hold, Secure: secureBase, Roots: roots, TokenFiles: secureBase,
		ShortLived: startSidecar(t, front.URL+"/fhir", shortLived).base,
	}
	conformance.Run(t, server, notMet, func(results []conformance.Result) {
		column.Results = results
		fmt.Printf("\nconformance of the sidecar over %s\n%s", column.Name, conformance.Table(results))
	})
}

// certificateFiles writes a certificate for this machine and its key, for the setting tls, and gives who vouches for it.
func certificateFiles(t *testing.T) (settings, *x509.CertPool) {
	t.Helper()
	lender := httptest.NewTLSServer(nil)
	defer lender.Close()
	key, err := x509.MarshalPKCS8PrivateKey(lender.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	files, folder := settings{}, t.TempDir()
	for name, block := range map[string]*pem.Block{
		"certificate_file": {Type: "CERTIFICATE", Bytes: lender.Certificate().Raw},
		"key_file":         {Type: "PRIVATE KEY", Bytes: key},
	} {
		path := filepath.Join(folder, name+".pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		files[name] = path
	}
	roots := x509.NewCertPool()
	roots.AddCert(lender.Certificate())
	return files, roots
}
