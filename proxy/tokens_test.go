package proxy_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy/auth"
)

// authority is an identity server: its keys check tokens, and it answers questions about them.
type authority struct {
	url string
	key *rsa.PrivateKey
	// authorization has the Authorization headers of the matrix by the names of its columns.
	authorization map[string]string
	// active are the claims of the tokens that the authority says hold, by token.
	active map[string]map[string]any
}

// newAuthority makes one, and a token for each column of the matrix. Tokens are made by hand, since no library makes most of
// these.
func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: rsaKey(t), authorization: map[string]string{"none": "", "empty": "Bearer"}, active: map[string]map[string]any{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL
	for _, token := range []struct {
		name   string
		header map[string]any
		said   map[string]any
		sign   func(text []byte) []byte
		active bool
	}{
		{name: "right", active: true},
		{name: "other", said: map[string]any{"client_id": "laboratory"}, active: true},
		{name: "narrow", said: map[string]any{"scope": "system/Patient.rs"}, active: true},
		{name: "patient", said: map[string]any{"scope": "patient/*.rs system/*.rs"}, active: true},
		{name: "issuer", said: map[string]any{"iss": "https://id.example.org"}, active: true},
		{name: "expired", said: map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, active: true},
		{name: "early", said: map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}, active: true},
		{name: "key", sign: signer(t, rsaKey(t))},
		{name: "alg:none", header: map[string]any{"alg": "none"}, sign: func([]byte) []byte { return nil }},
		{name: "RS/HS", header: map[string]any{"alg": "HS256"}, sign: a.signByPublicKey(t)},
	} {
		header, said := map[string]any{"alg": "RS256", "kid": "one", "typ": "JWT"}, map[string]any{
			"iss": a.url, "aud": audience, "exp": time.Now().Add(time.Hour).Unix(), "client_id": "warehouse", "sub": "warehouse", "scope": "system/*.rs",
		}
		maps.Copy(header, token.header)
		maps.Copy(said, token.said)
		if token.sign == nil {
			token.sign = signer(t, a.key)
		}
		text := encoded(t, header) + "." + encoded(t, said)
		compact := text + "." + base64.RawURLEncoding.EncodeToString(token.sign([]byte(text)))
		a.authorization[token.name] = "Bearer " + compact
		if token.active {
			said["active"] = true
			a.active[compact] = said
		}
	}
	return a
}

// audience is the aud of the authority's tokens.
const audience = "https://fhir.example.org/fhir"

// ServeHTTP answers for the keys, and introspects.
func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any = map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "one",
		"n": base64.RawURLEncoding.EncodeToString(a.key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(a.key.E)).Bytes()),
	}}}
	if r.URL.Path == "/introspect" {
		answer = map[string]bool{"active": false}
		if said, active := a.active[r.PostFormValue("token")]; active {
			answer = said
		}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// authorizer judges by this authority; nil where the mode needs none.
func (a *authority) authorizer(t *testing.T, mode auth.Mode) auth.Authorizer {
	t.Helper()
	if mode != auth.JWT && mode != auth.Introspection {
		return nil
	}
	authorizer, err := auth.New(auth.Config{
		Mode: mode, Issuer: a.url, Audience: audience, JWKSURL: a.url + "/jwks", Leeway: time.Minute,
		IntrospectionURL: a.url + "/introspect", ClientID: "sidecar", ClientSecret: "secret",
	})
	if err != nil {
		t.Fatal(err)
	}
	return authorizer
}

// gate is what a FHIR server with this authority lets a client read. It knows the sidecar, too.
func (a *authority) gate(r *http.Request) *fhirtest.Access {
	switch authorization := r.Header.Get("Authorization"); {
	case authorization == "Basic sidecar", slices.Contains([]string{a.authorization["right"], a.authorization["other"], a.authorization["patient"]}, authorization):
		return &fhirtest.Access{}
	case authorization == a.authorization["narrow"]:
		return &fhirtest.Access{Types: []string{"Patient"}}
	}
	return nil
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signer signs as RS256 says.
func signer(t *testing.T, key *rsa.PrivateKey) func([]byte) []byte {
	return func(text []byte) []byte {
		digest := sha256.Sum256(text)
		signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
}

// signByPublicKey signs as HS256 says with what everybody knows: whoever takes the algorithm from the token is fooled by it.
func (a *authority) signByPublicKey(t *testing.T) func([]byte) []byte {
	return func(text []byte) []byte {
		public, err := x509.MarshalPKIXPublicKey(a.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
		mac.Write(text)
		return mac.Sum(nil)
	}
}

func encoded(t *testing.T, part map[string]any) string {
	t.Helper()
	text, err := json.Marshal(part)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}
