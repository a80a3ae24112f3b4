package main

import (
	"log/slog"

	"sidecar/exporter/fhir"
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
func (t *tlsConfig) open(log *slog.Logger) (*fhir.TLS, error) {
	if *t == (tlsConfig{}) {
		return nil, nil
	}
	return fhir.NewTLS("", t.CertificateFile, t.KeyFile, log)
}
