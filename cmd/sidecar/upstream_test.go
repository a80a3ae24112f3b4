package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure faults of the sidecar's own credentials and certificates are said with their lines, and without their values.
func TestUpstreamFaultsAreSaid(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"upstream_auth: {oauth2: {client_id: a, client_secret: hunter2}}":                                                                         "upstream_auth.oauth2.token_url is missing",
		"upstream_auth: {oauth2: {token_url: id/token, client_id: a, client_secret: hunter2}}":                                                    "upstream_auth.oauth2.token_url must be an address",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_secret: hunter2}}":                                                        "upstream_auth.oauth2.client_id is missing",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a}}":                                                                  "line 2: upstream_auth.oauth2 needs one of client_secret, private_key and private_key_file",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, private_key: hunter2, client_secret: hunter2}}":                    "line 2: upstream_auth.oauth2 needs one of",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, client_secret: hunter2, key_id: k}}":                               "key_id and algorithm are for a private key",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, private_key: hunter2}}":                                            "upstream_auth.oauth2.key_id is missing",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, private_key: hunter2, key_id: k}}":                                 "there is no private key in PEM form",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, private_key: hunter2, key_id: k, algorithm: RS256}}":               "line 2: upstream_auth.oauth2.algorithm must be RS384 or ES384",
		"upstream_auth: {oauth2: {token_url: 'https://id/token', client_id: a, private_key_file: " + key + ", key_id: k}}":                        "there is no private key in PEM form",
		"upstream_auth: {basic: {username: u, password: hunter2}, oauth2: {token_url: 'https://id/token', client_id: a, client_secret: hunter2}}": "line 2: upstream_auth: basic and oauth2 exclude each other",
		"upstream_auth: {basic: {username: u, password: hunter2}, header: {name: authorization, value: hunter2}}":                                 "an Authorization header and basic exclude each other",
		"upstream_tls: {certificate_file: " + key + "}":                                                                                           "line 2: upstream_tls needs both certificate_file and key_file",
		"upstream_tls: {ca_file: " + key + "}":                                                                                                    "line 2: upstream_tls: the CA file holds no certificate",
		"upstream_tls: {ca_file: /nowhere/at/all}":                                                                                                "line 2: upstream_tls: open /nowhere/at/all",
		"upstream_tls: {certificate_file: " + key + ", key_file: " + key + "}":                                                                    "line 2: upstream_tls: certificate and key:",
	} {
		_, err := load(t, "upstream: https://a/fhir\n"+text+"\n")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s:\n%v\nwant %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"crawl_as: nobody":                     "crawl_as must be sidecar or client",
		"crawl_as: client\nledger: true":       "client and ledger exclude each other",
		"crawl_as: client\nauth: {mode: none}": "client needs clients that are known",
	} {
		if _, err := load(t, "upstream: https://a/fhir\n"+text+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := load(t, "upstream: http://a/fhir\nupstream_tls: {ca_file: "+key+"}\n"); err == nil || !strings.Contains(err.Error(), "begins with http:") {
		t.Errorf("certificates without TLS: %v", err)
	}
	if _, err := load(t, "upstream: https://a/fhir\nupstream_auth: {header: {name: X-Key, value: v}, oauth2: {token_url: 'https://id/token', client_id: a, client_secret: b}}\n"); err != nil {
		t.Errorf("an API key beside a token: %v", err)
	}
}

// Ensure check tells a wrong secret from an upstream that does not answer.
func TestCheckNamesAWrongSecret(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if _, secret, _ := r.BasicAuth(); secret != "right" {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
			return
		}
		_, _ = io.WriteString(w, `{"access_token":"good","token_type":"Bearer","expires_in":300}`)
	}))
	defer endpoint.Close()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		if r.Header.Get("Authorization") != "Bearer good" {
			return nil
		}
		return &fhirtest.Access{}
	}
	for secret, want := range map[string]string{
		"wrong": "FAULT upstream_auth.oauth2: read CapabilityStatement: no credentials now: the client_id, secret, key or scope of the sidecar is refused: the token endpoint answers with status 401 (invalid_client): check token_url",
		"right": "ok    asked ",
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		text := fmt.Sprintf("upstream: %s\nupstream_auth: {oauth2: {token_url: '%s/token', client_id: sidecar, client_secret: %s}}\n", upstream, endpoint.URL, secret)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := checked(t, "-config", file, "-data", t.TempDir())
		if (err == nil) != (secret == "right") || secret == "wrong" && !errors.Is(err, errCheck) || !strings.Contains(got, want) {
			t.Errorf("%s: %v, no line %q in\n%s", secret, err, want, got)
		}
	}
}

// authority makes certificates for a test.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.certificate, a.key = a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "authority"}})
	return a
}

// issue makes a certificate, signed by itself where there is no authority yet.
func (a *authority) issue(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.serial++
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(a.serial), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.certificate, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, key
}

// write issues a certificate for a name and writes it as the files name.crt and name.key of a folder.
func (a *authority) write(t *testing.T, folder, name string) {
	t.Helper()
	certificate, key := a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(folder, name+".crt"), "CERTIFICATE", certificate.Raw)
	writePEM(t, filepath.Join(folder, name+".key"), "PRIVATE KEY", der)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// guarded is a FHIR server that only speaks TLS with clients which have a certificate.
type guarded struct {
	*httptest.Server
	config atomic.Pointer[tls.Config]
	// client is the name in the certificate of the last one.
	client atomic.Pointer[string]
}

// trust makes new connections need certificates of the authority; the server's own is in a folder.
func (g *guarded) trust(t *testing.T, a *authority, folder string) {
	t.Helper()
	a.write(t, folder, "server")
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, "server.crt"), filepath.Join(folder, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	g.config.Store(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MinVersion: tls.VersionTLS12})
	g.CloseClientConnections()
}

func newGuarded(t *testing.T, handler http.Handler) *guarded {
	t.Helper()
	g := &guarded{}
	g.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.client.Store(&r.TLS.PeerCertificates[0].Subject.CommonName)
		handler.ServeHTTP(w, r)
	}))
	g.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return g.config.Load(), nil
	}}
	g.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug) // handshakes fail on purpose
	g.StartTLS()
	t.Cleanup(g.Close)
	return g
}

// Ensure exports and forwarded requests show the sidecar's certificate, and that certificates which are renewed on disk are used
// without a restart, but not by halves.
func TestMutualTLSWithTheUpstream(t *testing.T) {
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	for _, resource := range fhirtest.Generate(1, 2) {
		if err := sample.Put(resource); err != nil {
			t.Fatal(err)
		}
	}
	old, folder := newAuthority(t), t.TempDir()
	g := newGuarded(t, sample)
	g.trust(t, old, folder)
	old.write(t, folder, "client")
	ca := filepath.Join(folder, "ca.crt")
	writePEM(t, ca, "CERTIFICATE", old.certificate.Raw)
	s := startSidecar(t, g.URL+"/fhir", func(c *config) {
		c.UpstreamTLS = upstreamTLSConfig{CAFile: ca, CertificateFile: filepath.Join(folder, "client.crt"), KeyFile: filepath.Join(folder, "client.key")}
	})
	s.base = "http://" + s.config.Listen + "/fhir"
	forwards := func(want string) {
		t.Helper()
		if got := ask(t, http.MethodGet, s.base+"/Patient?_summary=count"); got.status != http.StatusOK {
			t.Fatalf("forwarded: status %d", got.status)
		}
		if got := *g.client.Load(); got != want {
			t.Errorf("the certificate is %q, want %q", got, want)
		}
	}
	forwards("client")
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))

	renewed, other := newAuthority(t), t.TempDir()
	renewed.write(t, other, "client-2")
	copyFile(t, filepath.Join(other, "client-2.crt"), filepath.Join(folder, "client.crt"))
	g.CloseClientConnections()
	forwards("client") // half of a renewal

	copyFile(t, filepath.Join(other, "client-2.key"), filepath.Join(folder, "client.key"))
	writePEM(t, ca, "CERTIFICATE", renewed.certificate.Raw)
	g.trust(t, renewed, folder)
	forwards("client-2")
	_, manifest = s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))

	g.trust(t, old, folder) // an impostor, as far as the sidecar knows
	if got := ask(t, http.MethodGet, s.base+"/Patient"); got.status != http.StatusBadGateway {
		t.Errorf("to a server with a certificate of another authority: status %d", got.status)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Ensure an export that is read as its client waits for a token of it, also behind a restart, and takes none from others.
func TestServeReadsAsTheClient(t *testing.T) {
	sample, upstream := newSample(t, fhirtest.Plain(), 3)
	var good atomic.Pointer[string]
	one, two := "Bearer one", "Bearer two"
	good.Store(&one)
	var asked atomic.Int64
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		if asked.Add(1) == 40 { // in the middle
			good.Store(&two)
		}
		if r.Header.Get("Authorization") != *good.Load() {
			return nil
		}
		return &fhirtest.Access{}
	}
	s := startSidecar(t, upstream, func(c *config) { c.CrawlAs = asClient })
	status := s.begin("/$export?_type=Patient", "Authorization", one).header.Get("Content-Location")
	until(t, "the export waits", func() bool {
		got := ask(t, http.MethodGet, status, "Authorization", one)
		return good.Load() == &two && strings.Contains(got.header.Get("X-Progress"), "waiting for a token of its client")
	})
	s.stop()
	s.start()
	for _, other := range []string{"", "Bearer other"} {
		if got := ask(t, http.MethodGet, status, "Authorization", other); got.status != http.StatusUnauthorized {
			t.Errorf("%q: status %d", other, got.status)
		}
	}
	var manifest state.Manifest
	if got := s.finish(status, "Authorization", two); got.status != http.StatusOK || json.Unmarshal([]byte(got.body), &manifest) != nil {
		t.Fatalf("export: %d %s", got.status, got.body)
	}
	if len(manifest.Output) != 1 || manifest.Output[0].Count != 3 {
		t.Errorf("files: %+v", manifest.Output)
	}
}
