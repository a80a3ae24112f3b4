package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/proxy/auth"
)

// upstreamAuthConfig are the credentials that the sidecar has of its own.
type upstreamAuthConfig struct {
	Header struct {
		Name  string `yaml:"name"`
		Value secret `yaml:"value"`
	} `yaml:"header"`
	Basic struct {
		Username string `yaml:"username"`
		Password secret `yaml:"password"`
	} `yaml:"basic"`
	OAuth2 oauth2Config `yaml:"oauth2"`
}

// oauth2Config says where the sidecar gets access tokens.
type oauth2Config struct {
	TokenURL       string `yaml:"token_url"`
	ClientID       string `yaml:"client_id"`
	ClientSecret   secret `yaml:"client_secret"`
	PrivateKey     secret `yaml:"private_key"`
	PrivateKeyFile string `yaml:"private_key_file"`
	KeyID          string `yaml:"key_id"`
	Algorithm      string `yaml:"algorithm"`
	Scope          string `yaml:"scope"`
}

// upstreamTLSConfig are certificates for the connection to the upstream.
type upstreamTLSConfig struct {
	CAFile          string `yaml:"ca_file"`
	CertificateFile string `yaml:"certificate_file"`
	KeyFile         string `yaml:"key_file"`
}

func (a *upstreamAuthConfig) validate(found *faultList) {
	switch {
	case found.found("upstream_auth.header.name") || found.found("upstream_auth.header.value"):
	case (a.Header.Name == "") != (a.Header.Value == ""):
		found.add("upstream_auth.header", " needs both name and value")
	}
	if a.Basic.Username == "" && a.Basic.Password != "" && !found.found("upstream_auth.basic.username") {
		found.add("upstream_auth.basic", " has a password but no username")
	}
	var kinds []string
	if strings.EqualFold(a.Header.Name, "Authorization") {
		kinds = append(kinds, "an Authorization header")
	}
	if a.Basic.Username != "" {
		kinds = append(kinds, "basic")
	}
	if a.OAuth2 != (oauth2Config{}) {
		kinds = append(kinds, "oauth2")
		a.OAuth2.validate(found)
	}
	if len(kinds) > 1 {
		found.add("upstream_auth", ": %s exclude each other", strings.Join(kinds, " and "))
	}
}

func (o *oauth2Config) validate(found *faultList) {
	const key = "upstream_auth.oauth2"
	for _, setting := range []struct{ name, value string }{{".token_url", o.TokenURL}, {".client_id", o.ClientID}} {
		if setting.value == "" {
			found.add(key+setting.name, " is missing")
		}
	}
	if o.TokenURL != "" && !isWebAddress(o.TokenURL) {
		found.add(key+".token_url", " must be an address such as https://id.example.org/realms/fhir/token")
	}
	ways := 0
	for _, value := range []string{string(o.ClientSecret), string(o.PrivateKey), o.PrivateKeyFile} {
		if value != "" {
			ways++
		}
	}
	switch {
	case found.found(key+".client_secret") || found.found(key+".private_key") || found.found(key+".private_key_file"):
	case ways != 1:
		found.add(key, " needs one of client_secret, private_key and private_key_file")
	case o.ClientSecret != "" && (o.KeyID != "" || o.Algorithm != ""):
		found.add(key, ": key_id and algorithm are for a private key, not for a client_secret")
	case o.ClientSecret != "":
	case o.KeyID == "":
		found.add(key+".key_id", " is missing: it is how the key is called in the JWKS that the identity server knows")
	case o.Algorithm != "" && o.Algorithm != "RS384" && o.Algorithm != "ES384":
		found.add(key+".algorithm", " must be RS384 or ES384")
	default:
		if _, err := o.signer(); err != nil {
			found.add(key, ": %w", err)
		}
	}
}

// signer is what signs for the sidecar, nil where it has a secret.
func (o *oauth2Config) signer() (*fhir.Signer, error) {
	if o.ClientSecret != "" {
		return nil, nil
	}
	key := []byte(o.PrivateKey)
	if o.PrivateKeyFile != "" {
		var err error
		if key, err = os.ReadFile(o.PrivateKeyFile); err != nil {
			return nil, err
		}
	}
	return fhir.NewSigner(key, o.KeyID, o.Algorithm)
}

func (t *upstreamTLSConfig) validate(found *faultList, upstream string) {
	switch {
	case *t == (upstreamTLSConfig{}):
	case strings.HasPrefix(upstream, "http:"):
		found.add("upstream_tls", " has no meaning for an upstream whose address begins with http:")
	case (t.CertificateFile == "") != (t.KeyFile == ""):
		found.add("upstream_tls", " needs both certificate_file and key_file, or neither")
	default:
		if _, err := t.open(nil); err != nil {
			found.add("upstream_tls", ": %w", err)
		}
	}
}

func (c *config) validateProtocol(found *faultList) {
	switch {
	case c.Protocol != fhir.HTTP1 && c.Protocol != fhir.HTTP2 && c.Protocol != fhir.H2C:
		found.add("upstream_protocol", " must be http/1.1, h2 or h2c")
	case c.Protocol == fhir.HTTP2 && strings.HasPrefix(c.Upstream, "http:"):
		found.add("upstream_protocol", ": h2 needs an upstream whose address begins with https:, the others have h2c")
	case c.Protocol == fhir.H2C && strings.HasPrefix(c.Upstream, "https:"):
		found.add("upstream_protocol", ": h2c needs an upstream whose address begins with http:, the others have h2")
	}
}

// crawlAs says with whose credentials exports are read.
type crawlAs string

const (
	// asSidecar reads with those of upstream_auth.
	asSidecar crawlAs = "sidecar"
	// asClient reads with those of the client whose export it is.
	asClient crawlAs = "client"
)

func (c *config) validateCrawlAs(found *faultList) {
	switch {
	case c.CrawlAs == asSidecar:
	case c.CrawlAs != asClient:
		found.add("crawl_as", " must be sidecar or client")
	case c.Auth.Mode == auth.None:
		found.add("crawl_as", ": client needs clients that are known, so another auth.mode than none")
	case c.Ledger:
		found.add("crawl_as", ": client and ledger exclude each other, since a ledger is of what all clients see alike")
	}
}

// attachments says how Binary resources are read. Only with credentials of its own the sidecar can read them by a link.
func (c *config) attachments() exporter.Attachments {
	if c.CrawlAs == asClient {
		return exporter.ServerAttachments
	}
	return c.Attachments
}

// open reads the certificates, nil where there are none.
func (t *upstreamTLSConfig) open(log *slog.Logger) (*fhir.TLS, error) {
	if *t == (upstreamTLSConfig{}) {
		return nil, nil
	}
	return fhir.NewTLS(t.CAFile, t.CertificateFile, t.KeyFile, log)
}

// credentials are the sidecar's own.
func (a *upstreamAuthConfig) credentials(certificates *fhir.TLS) (fhir.Credentials, error) {
	header := http.Header{}
	if a.Header.Name != "" {
		header.Set(a.Header.Name, string(a.Header.Value))
	}
	if a.Basic.Username != "" {
		maps.Copy(header, fhir.Basic(a.Basic.Username, string(a.Basic.Password)))
	}
	o := &a.OAuth2
	if o.TokenURL == "" {
		return fhir.Static(header), nil
	}
	signer, err := o.signer()
	if err != nil {
		return nil, fmt.Errorf("upstream_auth.oauth2: %w", err)
	}
	return fhir.NewOAuth(fhir.OAuthConfig{
		TokenURL: o.TokenURL, ClientID: o.ClientID, ClientSecret: string(o.ClientSecret), Signer: signer,
		Scopes: strings.Fields(o.Scope), Header: header, TLS: certificates,
	}), nil
}

func newClient(c *config, log *slog.Logger, observe func(string, int, time.Duration), tracer trace.Tracer) (*fhir.Client, error) {
	certificates, err := c.UpstreamTLS.open(log)
	if err != nil {
		return nil, fmt.Errorf("upstream_tls: %w", err)
	}
	credentials, err := c.UpstreamAuth.credentials(certificates)
	if err != nil {
		return nil, err
	}
	if c.CrawlAs == asClient {
		credentials = fhir.NewLoans(credentials)
	}
	return fhir.NewClient(fhir.Config{
		BaseURL: c.Upstream, PublicBase: c.PublicURL, Host: c.UpstreamHost, Credentials: credentials, TLS: certificates, Protocol: c.Protocol, Observe: observe, Tracer: tracer,
		Spill: filepath.Join(c.Data, "spool"),
	})
}
