package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// tlsConfig is the certificate that clients are shown.
type tlsConfig struct {
	CertificateFile string `yaml:"certificate_file"`
	KeyFile         string `yaml:"key_file"`
}

func (t *tlsConfig) validate(found *faultList) {
	switch {
	case *t == (tlsConfig{}):
	case t.CertificateFile == "" || t.KeyFile == "":
		found.add("tls", " needs both certificate_file and key_file")
	default:
		if _, err := t.open(nil); err != nil {
			found.add("tls", ": %w", err)
		}
	}
}

// open reads the certificate, nil where there is none.
func (t *tlsConfig) open(log *slog.Logger) (*frontCertificate, error) {
	if *t == (tlsConfig{}) {
		return nil, nil
	}
	f := &frontCertificate{files: *t, log: log}
	return f, f.load()
}

// frontCertificate is the certificate of the port for clients. Its files are looked at for each new connection, so that one
// that is renewed on disk is used without a restart.
type frontCertificate struct {
	files tlsConfig
	log   *slog.Logger

	mu        sync.Mutex
	read      [2][]byte
	pair      *tls.Certificate
	complains bool // that the files do not hold
}

// config is how the port speaks TLS, with HTTP/2 for those who know it.
func (f *frontCertificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: f.current}
}

// current is the certificate that holds now. While its files do not fit each other, as in the middle of a renewal, the last one
// that did goes on being used.
func (f *frontCertificate) current(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.load()
	if err != nil && !f.complains {
		f.log.ErrorContext(hello.Context(), "certificate for clients cannot be renewed: the one before goes on being used", "error", err)
	}
	f.complains = err != nil
	return f.pair, nil
}

// load reads the files, and parses them if they have changed.
func (f *frontCertificate) load() error {
	var read [2][]byte
	for i, name := range []string{f.files.CertificateFile, f.files.KeyFile} {
		raw, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		read[i] = raw
	}
	if f.pair != nil && bytes.Equal(read[0], f.read[0]) && bytes.Equal(read[1], f.read[1]) {
		return nil
	}
	pair, err := tls.X509KeyPair(read[0], read[1])
	if err != nil {
		return fmt.Errorf("certificate and key: %w", err)
	}
	f.read, f.pair = read, &pair
	return nil
}
