package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// encrypted is a client that trusts an authority; with most it speaks no newer TLS.
func encrypted(t *testing.T, a *authority, most uint16) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: most}, ForceAttemptHTTP2: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// spoken is an answer with how it was brought.
type spoken struct {
	reply
	proto int
	tls   uint16
}

// over asks by a client and reads the answer to its end.
func over(t *testing.T, client *http.Client, address string) (spoken, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return spoken{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	got := spoken{reply: reply{response.StatusCode, response.Header, string(body)}, proto: response.ProtoMajor}
	if response.TLS != nil {
		got.tls = response.TLS.Version
	}
	return got, err
}

// Ensure the port for clients speaks TLS 1.2 and newer, with HTTP/2, that forwarding and exports work over it with links that
// say so, and that a certificate that is renewed on disk is shown without a restart (Bulk Data guide, section "Security
// Considerations").
func TestTLSInFront(t *testing.T) {
	t.Parallel()
	a, folder := newAuthority(t), t.TempDir()
	a.write(t, folder, "front")
	sample, upstream := newSample(t, fhirtest.Plain(), 3)
	s := startSidecar(t, upstream, func(c *config) {
		c.TLS = tlsConfig{filepath.Join(folder, "front.crt"), filepath.Join(folder, "front.key")}
	})
	base := strings.Replace(s.base, "http://", "https://", 1)
	for version, works := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		got, err := over(t, encrypted(t, a, version), base+"/metadata")
		if (err == nil) != works {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil && (got.proto != 2 || got.tls != version) {
			t.Errorf("%s: got HTTP/%d by %s", tls.VersionName(version), got.proto, tls.VersionName(got.tls))
		}
	}
	client := encrypted(t, a, 0)
	direct := ask(t, http.MethodGet, upstream+"/Patient/pat-00001")
	if forwarded, err := over(t, client, base+"/Patient/pat-00001"); err != nil || forwarded.body != direct.body {
		t.Errorf("forwarded: %d bytes, want %d: %v", len(forwarded.body), len(direct.body), err)
	}
	var got spoken
	var err error
	until(t, "kick-off", func() bool {
		got, err = over(t, client, base+"/$export")
		return err != nil || got.status == http.StatusAccepted
	})
	status := got.header.Get("Content-Location")
	if !strings.HasPrefix(status, base+"/$export-status/") {
		t.Fatalf("status address %q", status)
	}
	until(t, "export", func() bool {
		got, err = over(t, client, status)
		return err != nil || got.status != http.StatusAccepted
	})
	var manifest state.Manifest
	if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, file := range manifest.Output {
		if !strings.HasPrefix(file.URL, base) {
			t.Errorf("a link leads to %.8s", file.URL)
		}
		rows, err := over(t, client, file.URL)
		if err != nil {
			t.Error(err)
		}
		lines += strings.Count(rows.body, "\n")
	}
	if want := len(expected(t, sample, nil)); lines != want {
		t.Errorf("%d lines, want %d", lines, want)
	}
	s.checkRenewal(a, folder)
}

// checkRenewal renews the certificate, first in a wrong way.
func (s *sidecar) checkRenewal(a *authority, folder string) {
	t := s.t
	t.Helper()
	shown := func() string {
		connection, err := tls.Dial("tcp", s.config.Listen, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		serial := connection.ConnectionState().PeerCertificates[0].SerialNumber.String()
		if err := connection.Close(); err != nil {
			t.Error(err)
		}
		return serial
	}
	first := shown()
	key, err := os.ReadFile(filepath.Join(folder, "front.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "front.key"), []byte("half of a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != first {
		t.Errorf("with a broken key: certificate %s, want %s", got, first)
	}
	if err := os.WriteFile(filepath.Join(folder, "front.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	a.write(t, folder, "front")
	if got := shown(); got == first {
		t.Error("a renewed certificate is not shown")
	}
}

// Ensure faults of the certificate for clients are said before anything is served.
func TestTLSFaultsAreSaid(t *testing.T) {
	folder := t.TempDir()
	newAuthority(t).write(t, folder, "front")
	newAuthority(t).write(t, folder, "other")
	for text, want := range map[string]string{
		"{certificate_file: " + folder + "/front.crt}":                                           "tls needs both certificate_file and key_file",
		"{certificate_file: " + folder + "/front.crt, key_file: " + folder + "/other.key}":       "tls: certificate and key:",
		"{certificate_file: " + folder + "/front.crt, key_file: " + folder + "/none.key}":        "tls: open ",
		"{certificate_file: " + folder + "/front.crt, key_file: " + folder + "/front.key, a: b}": "there is no setting a",
	} {
		if _, err := load(t, "upstream: https://a/fhir\ntls: "+text+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v\nwant %q", text, err, want)
		}
	}
}

// Ensure the port for clients speaks HTTP/2 without TLS to those who begin with it, and that an upstream that knows nothing else
// is spoken to in it, for forwarded requests and for exports.
func TestHTTP2WithoutTLS(t *testing.T) {
	t.Parallel()
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	for _, resource := range fhirtest.Generate(1, 3) {
		if err := sample.Put(resource); err != nil {
			t.Fatal(err)
		}
	}
	upstream := httptest.NewUnstartedServer(sample)
	upstream.Config.Protocols = new(http.Protocols)
	upstream.Config.Protocols.SetUnencryptedHTTP2(true)
	upstream.Start()
	t.Cleanup(upstream.Close)
	s := startSidecar(t, upstream.URL+"/fhir", func(c *config) { c.Protocol = fhir.H2C })
	transport := &http.Transport{}
	fhir.H2C.Apply(transport)
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	if got, err := over(t, client, s.base+"/Patient/pat-00001"); err != nil || got.proto != 2 || got.status != http.StatusOK {
		t.Errorf("forwarded: HTTP/%d, status %d, %v", got.proto, got.status, err)
	}
	var got spoken
	var err error
	until(t, "kick-off", func() bool {
		got, err = over(t, client, s.base+"/$export")
		return err != nil || got.status == http.StatusAccepted
	})
	status := got.header.Get("Content-Location")
	until(t, "export", func() bool {
		got, err = over(t, client, status)
		return err != nil || got.status != http.StatusAccepted
	})
	if err != nil || got.status != http.StatusOK {
		t.Errorf("export: status %d, %v", got.status, err)
	}
}

// Ensure a version of HTTP that does not fit the upstream is refused before anything is served.
func TestProtocolFaultsAreSaid(t *testing.T) {
	for text, want := range map[string]string{
		"upstream: http://a/fhir\nupstream_protocol: h3\n":   "upstream_protocol must be http/1.1, h2 or h2c",
		"upstream: http://a/fhir\nupstream_protocol: h2\n":   "upstream_protocol: h2 needs an upstream whose address begins with https:",
		"upstream: https://a/fhir\nupstream_protocol: h2c\n": "upstream_protocol: h2c needs an upstream whose address begins with http:",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n%v\nwant %q", text, err, want)
		}
	}
}
