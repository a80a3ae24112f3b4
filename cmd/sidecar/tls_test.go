package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// over asks by a client and reads the answer to its end.
func over(t *testing.T, client *http.Client, method, address string) (*http.Response, string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
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
		response, _, err := over(t, encrypted(t, a, version), http.MethodGet, base+"/metadata")
		if (err == nil) != works {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil && (response.ProtoMajor != 2 || response.TLS.Version != version) {
			t.Errorf("%s: got %s by %s", tls.VersionName(version), response.Proto, tls.VersionName(response.TLS.Version))
		}
	}
	client := encrypted(t, a, 0)
	_, direct, err := over(t, http.DefaultClient, http.MethodGet, upstream+"/Patient?_count=2&_sort=_id")
	if err != nil {
		t.Fatal(err)
	}
	if _, forwarded, err := over(t, client, http.MethodGet, base+"/Patient?_count=2&_sort=_id"); err != nil || len(forwarded) != len(direct) {
		t.Errorf("forwarded: %d bytes, want %d: %v", len(forwarded), len(direct), err)
	}
	var got *http.Response
	until(t, "kick-off", func() bool {
		got, _, err = over(t, client, http.MethodGet, base+"/$export")
		return err != nil || got.StatusCode == http.StatusAccepted
	})
	status := got.Header.Get("Content-Location")
	if !strings.HasPrefix(status, base+"/$export-status/") {
		t.Fatalf("status address %q", status)
	}
	var body string
	until(t, "export", func() bool {
		got, body, err = over(t, client, http.MethodGet, status)
		return err != nil || got.StatusCode != http.StatusAccepted
	})
	var manifest state.Manifest
	if err := json.Unmarshal([]byte(body), &manifest); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for _, file := range manifest.Output {
		if !strings.HasPrefix(file.URL, base) {
			t.Errorf("a link leads to %.8s", file.URL)
		}
		_, rows, err := over(t, client, http.MethodGet, file.URL)
		if err != nil {
			t.Error(err)
		}
		lines += strings.Count(rows, "\n")
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
		defer connection.Close()
		return connection.ConnectionState().PeerCertificates[0].SerialNumber.String()
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
