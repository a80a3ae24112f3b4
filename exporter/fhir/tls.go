package fhir

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// dialTimeout bounds the making of a connection, its handshake included.
const dialTimeout = 10 * time.Second

// TLS are files of certificates, those with which a server is spoken to or those that clients are shown. They are looked at for
// each new connection, so that certificates may be renewed without a restart; while what stands there does not fit together, the
// last ones hold.
type TLS struct {
	// ca, certificate and key are the names of the files, empty for none.
	ca, certificate, key string
	log                  *slog.Logger

	mu sync.Mutex
	// read is what stood in the files, parsed what it says.
	read      [3][]byte
	parsed    *tls.Config
	complains bool // that the files do not hold
}

// NewTLS reads the certificates: those of ca are trusted beside the system's, certificate and key are the sidecar's own. A
// name may be empty. The log hears of renewals that do not hold; nil means that nobody does.
func NewTLS(ca, certificate, key string, log *slog.Logger) (*TLS, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &TLS{ca: ca, certificate: certificate, key: key, log: log}
	if err := t.load(); err != nil {
		return nil, err
	}
	return t, nil
}

// Apply makes a transport use the certificates.
func (t *TLS) Apply(transport *http.Transport) { t.apply(transport, true) }

// ApplyTrust makes a transport trust those of ca, and show none: it is for servers other than the upstream. Behind an HTTPS_PROXY
// net/http makes the connections itself: a renewal of ca is seen there after a restart.
func (t *TLS) ApplyTrust(transport *http.Transport) {
	t.apply(transport, false)
	transport.TLSClientConfig = t.config(false)
}

func (t *TLS) apply(transport *http.Transport, own bool) {
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		config := t.config(own)
		if transport.Protocols != nil && transport.Protocols.HTTP2() {
			config.NextProtos = []string{"h2"}
		}
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}, Config: config}
		return dialer.DialContext(ctx, network, address)
	}
}

// config is what holds now for one connection to a server, with or without the sidecar's own certificate.
func (t *TLS) config(own bool) *tls.Config {
	config := t.current().Clone()
	if !own {
		config.Certificates = nil
	}
	return config
}

// Server is how a port that shows the certificates speaks TLS, with HTTP/2 for those who know it.
func (t *TLS) Server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &t.current().Certificates[0], nil
	}}
}

// current is what holds now. It is not to be changed.
func (t *TLS) current() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.load() // an error may be half of a renewal: the next connection looks again
	if err != nil && !t.complains {
		t.log.Error("certificates cannot be renewed: those before go on being used", "error", err)
	}
	t.complains = err != nil
	return t.parsed
}

// load reads the files, and parses them if they have changed.
func (t *TLS) load() error {
	var read [3][]byte
	for i, name := range []string{t.ca, t.certificate, t.key} {
		if name == "" {
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		read[i] = raw
	}
	if t.parsed != nil && bytes.Equal(read[0], t.read[0]) && bytes.Equal(read[1], t.read[1]) && bytes.Equal(read[2], t.read[2]) {
		return nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.ca != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return fmt.Errorf("read the system's certificates: %w", err)
		}
		if !roots.AppendCertsFromPEM(read[0]) {
			return errors.New("the CA file holds no certificate")
		}
		config.RootCAs = roots
	}
	if t.certificate != "" {
		pair, err := tls.X509KeyPair(read[1], read[2])
		if err != nil {
			return fmt.Errorf("certificate and key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	t.read, t.parsed = read, config
	return nil
}
