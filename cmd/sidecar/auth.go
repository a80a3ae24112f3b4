package main

import (
	"context"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"sidecar/proxy"
	"sidecar/proxy/auth"
)

// authConfig says who may export.
type authConfig struct {
	Mode auth.Mode `yaml:"mode"`

	Issuer     string        `yaml:"issuer"`
	JWKSURL    string        `yaml:"jwks_url"`
	Audience   string        `yaml:"audience"`
	Algorithms []string      `yaml:"algorithms"`
	Leeway     time.Duration `yaml:"leeway"`

	IntrospectionURL string `yaml:"introspection_url"`
	ClientID         string `yaml:"client_id"`
	ClientSecret     secret `yaml:"client_secret"`

	CAFile string `yaml:"ca_file"`

	Clients []clientConfig `yaml:"clients"`
}

// clientConfig are the rules for one client.
type clientConfig struct {
	ID     string `yaml:"id"`
	Groups struct {
		Allow []string `yaml:"allow"`
		Deny  []string `yaml:"deny"`
	} `yaml:"groups"`
}

// asksIdentityServer tells whether the mode needs one.
func (a *authConfig) asksIdentityServer() bool {
	return a.Mode == auth.JWT || a.Mode == auth.Introspection
}

// validate finds what is wrong with the settings. A setting that the mode does not use is a fault: whoever has written it
// believes that it protects something.
func (a *authConfig) validate(found *faultList) {
	modes := []string{string(auth.Upstream), string(auth.JWT), string(auth.Introspection), string(auth.None)}
	if !slices.Contains(modes, string(a.Mode)) {
		found.add("auth.mode", " must be one of %s", strings.Join(modes, ", "))
		return
	}
	for _, setting := range []struct {
		key, value string
		// needed and taken are the modes in which there must be a value, and in which there may be one besides.
		needed, taken []auth.Mode
		address       bool
	}{
		{"auth.issuer", a.Issuer, []auth.Mode{auth.JWT}, []auth.Mode{auth.Introspection}, true},
		{"auth.jwks_url", a.JWKSURL, nil, []auth.Mode{auth.JWT}, true},
		{"auth.audience", a.Audience, []auth.Mode{auth.JWT}, []auth.Mode{auth.Introspection}, false},
		{"auth.algorithms", strings.Join(a.Algorithms, " "), nil, []auth.Mode{auth.JWT}, false},
		{"auth.introspection_url", a.IntrospectionURL, []auth.Mode{auth.Introspection}, nil, true},
		{"auth.client_id", a.ClientID, []auth.Mode{auth.Introspection}, nil, false},
		{"auth.client_secret", string(a.ClientSecret), []auth.Mode{auth.Introspection}, nil, false},
		{"auth.ca_file", a.CAFile, nil, []auth.Mode{auth.JWT, auth.Introspection}, false},
	} {
		needed := slices.Contains(setting.needed, a.Mode)
		switch {
		case setting.value == "" && needed:
			found.add(setting.key, " is missing: the mode %s needs it", a.Mode)
		case setting.value != "" && !needed && !slices.Contains(setting.taken, a.Mode):
			found.add(setting.key, " has no meaning in the mode %s", a.Mode)
		case setting.value != "" && setting.address && !isWebAddress(setting.value):
			found.add(setting.key, " must be an address such as https://id.example.org/realms/fhir")
		}
	}
	for _, name := range a.Algorithms {
		if !slices.Contains(auth.Algorithms(), name) {
			found.add("auth.algorithms", " must be among %s", strings.Join(auth.Algorithms(), ", "))
		}
	}
	seen := map[string]bool{}
	for _, client := range a.Clients {
		if client.ID == "" || seen[client.ID] {
			found.add("auth.clients", " must each have an id of their own")
		}
		seen[client.ID] = true
	}
}

// isWebAddress tells whether something can be asked over HTTP at the address.
func isWebAddress(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && u.User == nil && u.Fragment == ""
}

// groupRules are the rules for clients by their names.
func (a *authConfig) groupRules() map[string]proxy.GroupRule {
	rules := map[string]proxy.GroupRule{}
	for _, client := range a.Clients {
		rules[client.ID] = proxy.GroupRule{Allow: client.Groups.Allow, Deny: client.Groups.Deny}
	}
	return rules
}

// newAuthorizer returns who judges clients, nil where that is the FHIR server or nobody, and says aloud what is risky.
func newAuthorizer(ctx context.Context, c *config, log *slog.Logger) (auth.Authorizer, error) {
	a := &c.Auth
	if a.Mode == auth.None && c.Intercept {
		log.WarnContext(ctx, "auth.mode is none: whoever reaches the sidecar may export everything that it can read")
	}
	if !a.asksIdentityServer() {
		return nil, nil
	}
	for _, address := range []string{a.Issuer, a.JWKSURL, a.IntrospectionURL} {
		if strings.HasPrefix(address, "http:") {
			log.WarnContext(ctx, "the identity server is asked without TLS: whoever is between can let anybody in")
			break
		}
	}
	return auth.New(auth.Config{
		Mode: a.Mode, Issuer: a.Issuer, JWKSURL: a.JWKSURL, Audience: a.Audience, Algorithms: a.Algorithms, Leeway: a.Leeway,
		IntrospectionURL: a.IntrospectionURL, ClientID: a.ClientID, ClientSecret: string(a.ClientSecret), CAFile: a.CAFile, Log: log,
	})
}
