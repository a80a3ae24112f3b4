package fhir

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// dialTimeout bounds the making of a connection, its handshake included.
const dialTimeout = 10 * time.Second

// TLS are the files of the certificates with which the upstream is spoken to. They are looked at for each new connection, so
// that certificates may be renewed without a restart; while what stands there does not fit together, the last ones hold.
type TLS struct {
	// ca, certificate and key are the names of the files, empty for none.
	ca, certificate, key string

	mu sync.Mutex
	// read is what stood in the files, parsed what it says.
	read   [3][]byte
	parsed *tls.Config
}

// NewTLS reads the certificates: those of ca are trusted beside the system's, certificate and key are the sidecar's own. A
// name may be empty.
func NewTLS(ca, certificate, key string) (*TLS, error) {
	t := &TLS{ca: ca, certificate: certificate, key: key}
	if err := t.load(); err != nil {
		return nil, err
	}
	return t, nil
}

// Apply makes a transport use the certificates.
func (t *TLS) Apply(transport *http.Transport) { t.apply(transport, true) }

// apply is Apply, or without the sidecar's own certificate for a server that is not the upstream.
func (t *TLS) apply(transport *http.Transport, own bool) {
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		config := t.current()
		if !own {
			config.Certificates = nil
		}
		if transport.Protocols != nil && transport.Protocols.HTTP2() {
			config.NextProtos = []string{"h2"}
		}
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}, Config: config}
		return dialer.DialContext(ctx, network, address)
	}
}

// current is what holds now.
func (t *TLS) current() *tls.Config {
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.load() // half of a renewal: what was read before goes on holding, and the next connection looks again
	return t.parsed.Clone()
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
