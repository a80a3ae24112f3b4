package proxy_test

import (
	"crypto/tls"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/proxy/fidelity"
)

// Ensure that nobody notices the proxy.
func TestForwardIsNotNoticed(t *testing.T) {
	fidelity.Run(t, fidelity.Subject{Open: func(t *testing.T, server string) string {
		return openFront(t, "http://"+server+"/fhir", nil)
	}})
}

// Ensure that nobody notices it either where all is on that watches requests, and the server speaks TLS, where much is done by other
// code.
func TestForwardIsNotNoticedWithEverythingOn(t *testing.T) {
	certificate, certificates := serverCertificate(t)
	tracing := sdktrace.NewTracerProvider()
	fidelity.Run(t, fidelity.Subject{
		Open: func(t *testing.T, server string) string {
			return openFront(t, "https://"+server+"/fhir", func(c *proxy.Config) {
				c.UpstreamTLS = certificates
				c.Log, c.AccessLog, c.RequestIDHeader = (&logLines{}).logger(), true, "X-Request-ID"
				c.Tracer, c.Live, c.Writes = tracing.Tracer(""), proxy.NewLive(), proxy.NewWrites()
			})
		},
		TLS:            &tls.Config{Certificates: []tls.Certificate{certificate}},
		AddsToRequests: []string{"x-request-id", "traceparent"}, AddsToAnswers: []string{"x-request-id"},
	})
}

// openFront serves a proxy as the sidecar does, and returns its address.
func openFront(t *testing.T, upstream string, edit func(*proxy.Config)) string {
	front := httptest.NewUnstartedServer(newHouse(t, upstream, edit).handler)
	front.Config.DisableGeneralOptionsHandler = true
	front.Start()
	t.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

// serverCertificate is a certificate of a server here, and what makes a proxy trust it.
func serverCertificate(t *testing.T) (tls.Certificate, *fhir.TLS) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	trust, err := fhir.NewTLS(path, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return server.TLS.Certificates[0], trust
}
