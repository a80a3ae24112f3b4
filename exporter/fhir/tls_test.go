package fhir_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
)

// Ensure that a file that does not hold any more is told to the log once, that what it held before goes on, and that the next
// time it is told again.
func TestRenewalThatFailsIsLogged(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	file, right := filepath.Join(t.TempDir(), "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(right)
	var log bytes.Buffer
	certificates, err := fhir.NewTLS(file, "", "", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	certificates.ApplyTrust(transport)
	client := &http.Client{Transport: transport}
	get := func() {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
	}
	get()
	for _, content := range [][]byte{[]byte("half"), right, []byte("half again")} {
		write(content)
		get()
		get()
	}
	if n := strings.Count(log.String(), "certificates cannot be renewed"); n != 2 {
		t.Errorf("it is told %d times, want 2:\n%s", n, log.String())
	}
}

// Ensure that certificates are trusted also where the connection goes through a proxy.
func TestCertificatesAreTrustedBehindAProxy(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	proxy := httptest.NewServer(&tunnel{to: server.Listener.Addr().String()})
	t.Cleanup(proxy.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	certificates, err := fhir.NewTLS(file, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	by, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(by)}
	certificates.ApplyTrust(transport)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
}

// tunnel is a proxy that connects to one address, whatever it is asked for.
type tunnel struct{ to string }

func (p *tunnel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	there, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", p.to)
	if err != nil || r.Method != http.MethodConnect {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(there, here)
		_ = there.Close()
	}()
	_, _ = io.Copy(here, there)
	_ = here.Close()
}

// Ensure that the sidecar's own certificate is for the upstream alone: other servers, such as a token endpoint, do not see it.
func TestOwnCertificateIsForTheUpstreamAlone(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Shown", strconv.Itoa(len(r.TLS.PeerCertificates)))
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	t.Cleanup(server.Close)
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	certificateFile, keyFile := filepath.Join(folder, "tls.crt"), filepath.Join(folder, "tls.key")
	for file, block := range map[string]*pem.Block{
		certificateFile: {Type: "CERTIFICATE", Bytes: server.Certificate().Raw}, keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificates, err := fhir.NewTLS(certificateFile, certificateFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	for want, apply := range map[string]func(*http.Transport){"1": certificates.Apply, "0": certificates.ApplyTrust} {
		transport := &http.Transport{DisableKeepAlives: true}
		apply(transport)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("X-Shown"); got != want {
			t.Errorf("%s certificates were shown, want %s", got, want)
		}
	}
}
