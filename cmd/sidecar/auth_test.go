package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure all that is wrong with who may export is said at once, with its lines.
func TestAuthFaultsAreFoundTogether(t *testing.T) {
	for text, want := range map[string]string{
		"mode: open":                         "line 3: auth.mode must be one of upstream, jwt, introspection, none",
		"mode: jwt":                          "auth.issuer is missing: the mode jwt needs it\nauth.audience is missing: the mode jwt needs it",
		"mode: introspection":                "auth.introspection_url is missing: the mode introspection needs it\nauth.client_id is missing: the mode introspection needs it\nauth.client_secret is missing: the mode introspection needs it",
		"mode: none\n  leeway: 6m":           "line 4: auth.leeway must be from 0s to 5m0s",
		"audience: fhir\n  client_secret: x": "line 3: auth.audience has no meaning in the mode upstream\nline 4: auth.client_secret has no meaning in the mode upstream",
		"mode: jwt\n  issuer: id.example.org\n  audience: fhir\n  jwks_url: https://u:p@id/keys\n  algorithms: [RS256, HS256, none]": "line 4: auth.issuer must be an address such as https://id.example.org/realms/fhir\n" +
			"line 6: auth.jwks_url must be an address such as https://id.example.org/realms/fhir\n" +
			"line 7: auth.algorithms must be among RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA",
		"clients: [{id: a}, {groups: {deny: [x]}}]": "line 3: auth.clients must each have an id of their own",
		"clients: [{id: a}, {id: a}]":               "line 3: auth.clients must each have an id of their own",
		"secret: x":                                 "line 3: there is no setting secret",
	} {
		_, err := load(t, "upstream: http://a/fhir\nauth:\n  "+text+"\n")
		if err == nil {
			t.Errorf("%q is taken", text)
			continue
		}
		_, lines, _ := strings.Cut(err.Error(), "\n")
		got := strings.ReplaceAll(strings.TrimSpace(lines), "\n  ", "\n")
		for line := range strings.SplitSeq(want, "\n") {
			if !strings.Contains("\n"+got+"\n", "\n"+line+"\n") {
				t.Errorf("%q:\ngot  %q\nwant %q", text, got, line)
			}
		}
		if strings.Count(got, "\n") != strings.Count(want, "\n") {
			t.Errorf("%q: more or less than %q:\n%s", text, want, got)
		}
	}
	for _, text := range []string{
		"mode: none",
		"mode: jwt\n  issuer: https://id/realm\n  audience: fhir\n  algorithms: [ES384]\n  leeway: 0s\n  clients: [{id: a, groups: {allow: [g]}}, {id: '*'}]",
		"mode: introspection\n  introspection_url: https://id/introspect\n  client_id: sidecar\n  client_secret: x\n  audience: fhir\n  issuer: https://id/realm",
	} {
		if _, err := load(t, "upstream: http://a/fhir\nauth:\n  "+text+"\n"); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Ensure check asks the identity server for what the mode needs, and says where to look when it does not get it.
func TestCheckAsksTheIdentityServer(t *testing.T) {
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := map[string]string{ // the key is that of RFC 8037
			"/keys":       `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
			"/introspect": `{"active":false}`,
		}[r.URL.Path]
		if answer == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(answer))
	}))
	t.Cleanup(issuer.Close)
	_, upstream := newSample(t, fhirtest.Plain(), 5)
	for settings, want := range map[string]string{
		"mode: jwt\n  issuer: ISSUER\n  audience: fhir\n  jwks_url: ISSUER/keys":                             "ok    identity server: 1 keys of the issuer, kept for 5m0s\n",
		"mode: jwt\n  issuer: ISSUER\n  audience: fhir":                                                      "FAULT identity server: discovery: status 404: check the settings under auth\n",
		"mode: introspection\n  introspection_url: ISSUER/introspect\n  client_id: a\n  client_secret: b":    "ok    identity server: it says of a made-up token that it does not hold\n",
		"mode: introspection\n  introspection_url: ISSUER/introspection\n  client_id: a\n  client_secret: b": "FAULT identity server: status 404: check the settings under auth\n",
		"mode: jwt\n  issuer: ISSUER\n  audience: fhir\n  jwks_url: ISSUER/keys\n  ca_file: /nowhere/at/all": "FAULT identity server: auth.ca_file: open /nowhere/at/all: no such file or directory: check the settings under auth\n",
	} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		text := "upstream: " + upstream + "\nauth:\n  " + strings.ReplaceAll(settings, "ISSUER", issuer.URL) + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := checked(t, "-config", file, "-data", t.TempDir())
		if !strings.Contains(got, want) || errors.Is(err, errCheck) != strings.HasPrefix(want, "FAULT") {
			t.Errorf("%q: %v, no line %q in\n%s", settings, err, want, got)
		}
	}
}
