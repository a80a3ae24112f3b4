package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// DefaultLeeway is how far the identity server's clock may be from ours.
const DefaultLeeway = time.Minute

// Config is what New needs.
type Config struct {
	// Mode is JWT or Introspection: only these need an Authorizer.
	Mode Mode
	// Issuer is the iss that tokens must have: needed for JWT, and where it is given, introspected tokens must have it too.
	Issuer string
	// JWKSURL is where the issuer's keys are; empty asks its discovery document, /.well-known/openid-configuration.
	JWKSURL string
	// Audience must be in the aud of tokens: needed for JWT, and held against introspected tokens where it is given.
	Audience string
	// Algorithms are the signatures that hold; empty means all of Algorithms().
	Algorithms []string
	// Leeway is how far clocks may differ; 0 means not at all.
	Leeway time.Duration

	// IntrospectionURL, ClientID and ClientSecret are needed for Introspection.
	IntrospectionURL, ClientID, ClientSecret string

	// CAFile holds certificates (PEM) that may have signed the identity server's beside those of the system. It is looked at
	// for each new connection.
	CAFile string
	// Log hears of an identity server that does not answer; nil means nobody does.
	Log *slog.Logger
}

// asymmetric are the signatures that only the issuer can make: with a shared secret, or none, whoever can check a token
// could make one.
var asymmetric = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Algorithms are the names of the signatures that can be allowed.
func Algorithms() []string {
	var names []string
	for _, algorithm := range asymmetric {
		names = append(names, string(algorithm))
	}
	return names
}

// New returns the Authorizer of a mode. It asks nobody yet. It fails when a part of cfg is missing or wrong.
func New(cfg Config) (Authorizer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	server, err := newIdentityServer(cfg.CAFile, cfg.Log)
	if err != nil {
		return nil, err
	}
	rules := rules{issuer: cfg.Issuer, audience: cfg.Audience, leeway: cfg.Leeway, now: time.Now}
	switch {
	case cfg.Mode == JWT && cfg.Issuer != "" && cfg.Audience != "":
		allowed, err := allowedAlgorithms(cfg.Algorithms)
		if err != nil {
			return nil, err
		}
		keys := &keySet{server: server, issuer: cfg.Issuer, address: cfg.JWKSURL, log: cfg.Log, now: time.Now}
		return &verifier{rules: rules, algorithms: allowed, keys: keys}, nil
	case cfg.Mode == Introspection && cfg.IntrospectionURL != "" && cfg.ClientID != "" && cfg.ClientSecret != "":
		return &introspector{
			rules: rules, server: server, address: cfg.IntrospectionURL, id: cfg.ClientID, secret: cfg.ClientSecret, log: cfg.Log,
			known: map[tokenHash]introspected{},
		}, nil
	}
	return nil, errors.New("auth: configuration is incomplete")
}

func allowedAlgorithms(names []string) ([]jose.SignatureAlgorithm, error) {
	if len(names) == 0 {
		return asymmetric, nil
	}
	var allowed []jose.SignatureAlgorithm
	for _, name := range names {
		algorithm := jose.SignatureAlgorithm(name)
		if !slices.Contains(asymmetric, algorithm) {
			return nil, fmt.Errorf("auth: %q is not an asymmetric signature algorithm", name)
		}
		allowed = append(allowed, algorithm)
	}
	return allowed, nil
}
