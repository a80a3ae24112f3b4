package auth_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sidecar/proxy/auth"
)

func TestJWTLetsInWhoHoldsATokenOfTheIssuer(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.authorizer(t, nil)
	for name, change := range map[string]claims{
		"as it is":                nil,
		"audience in a list":      {"aud": []string{"https://other", audience}},
		"scope in a list":         {"scope": []string{"system/Patient.rs", "system/Observation.rs"}},
		"scp":                     {"scope": nil, "scp": []string{"system/Patient.rs", "system/Observation.rs"}},
		"expired within leeway":   {"exp": s.now().Add(-50 * time.Second).Unix()},
		"not yet within leeway":   {"nbf": s.now().Add(50 * time.Second).Unix()},
		"issued within leeway":    {"iat": s.now().Add(50 * time.Second).Unix()},
		"no iat":                  {"iat": nil},
		"time with a fraction":    {"exp": float64(s.now().Unix()) + 60.5},
		"azp beside the client":   {"azp": "other"},
		"scopes that nobody asks": {"scope": "launch fhirUser system/Patient.rs system/Observation.rs system/Group.rs?x=y"},
	} {
		client, status := authorize(t, authorizer, "Bearer "+s.token(t, change))
		if status != http.StatusOK {
			t.Errorf("%s: got %d", name, status)
			continue
		}
		if client.ID != "warehouse" || !client.Scopes.Allow("Patient") || !client.Scopes.Allow("Observation") || client.Scopes.Allow("Group") {
			t.Errorf("%s: got %+v", name, client)
		}
	}
	for want, change := range map[string]claims{"account-7": {"client_id": nil}, "party": {"client_id": nil, "azp": "party"}} {
		if client, status := authorize(t, authorizer, "bEARER  "+s.token(t, change)+" "); status != http.StatusOK || client.ID != want {
			t.Errorf("got %+v, %d, want %s", client, status, want)
		}
	}
	if got := s.count("/jwks"); got != 1 {
		t.Errorf("the keys were fetched %d times", got)
	}
}

func encoded(value any) string {
	raw, _ := json.Marshal(value)
	return base64.RawURLEncoding.EncodeToString(raw)
}

func TestJWTRefusesTokensByTheirSignature(t *testing.T) {
	s := newIssuer(t)
	weak, strong, other := newRSA(t, 1024), newRSA(t, 2048), newKey(t)
	public, err := x509.MarshalPKIXPublicKey(strong.Public())
	if err != nil {
		t.Fatal(err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	secret := []byte("a secret that the issuer has put among its keys by mistake, long enough")
	s.keys = append(s.keys, jose.JSONWebKey{Key: strong.Public(), KeyID: "rsa"}, jose.JSONWebKey{Key: weak.Public(), KeyID: "weak"},
		jose.JSONWebKey{Key: other.Public(), KeyID: "for encryption", Use: "enc"})
	s.extra = []any{
		map[string]string{"kty": "oct", "kid": "secret", "k": base64.RawURLEncoding.EncodeToString(secret)},
		map[string]string{"kty": "unknown", "kid": "unknown"},
	}
	hostile := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("an address in a token is asked") }))
	t.Cleanup(hostile.Close)
	one := jose.JSONWebKey{Key: s.key, KeyID: "one"}
	header := func(fields map[jose.HeaderKey]any) string {
		return "Bearer " + sign(t, jose.ES384, jose.JSONWebKey{Key: other, KeyID: "one"}, s.said(nil), fields)
	}
	embedding, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES384, Key: other}, &jose.SignerOptions{EmbedJWK: true})
	if err != nil {
		t.Fatal(err)
	}
	right := s.token(t, nil)
	parts := strings.Split(right, ".")
	authorizer := s.authorizer(t, nil)
	for name, authorization := range map[string]string{
		"signature cut off":           "Bearer " + parts[0] + "." + parts[1] + ".",
		"claims of another":           "Bearer " + parts[0] + "." + encoded(s.said(claims{"client_id": "x"})) + "." + parts[2],
		"alg none":                    "Bearer " + encoded(claims{"alg": "none"}) + "." + parts[1] + ".",
		"alg None with a signature":   "Bearer " + encoded(claims{"alg": "None", "kid": "one"}) + "." + parts[1] + "." + parts[2],
		"no alg":                      "Bearer " + encoded(claims{"kid": "one"}) + "." + parts[1] + "." + parts[2],
		"wrong key":                   header(nil),
		"wrong key, no kid":           "Bearer " + sign(t, jose.ES384, other, s.said(nil), nil),
		"unknown kid":                 "Bearer " + sign(t, jose.ES384, jose.JSONWebKey{Key: s.key, KeyID: "two"}, s.said(nil), nil),
		"key for encryption":          "Bearer " + sign(t, jose.ES384, jose.JSONWebKey{Key: other, KeyID: "for encryption"}, s.said(nil), nil),
		"weak key":                    "Bearer " + sign(t, jose.RS256, jose.JSONWebKey{Key: weak, KeyID: "weak"}, s.said(nil), nil),
		"public key as a secret":      "Bearer " + sign(t, jose.HS256, jose.JSONWebKey{Key: asPEM, KeyID: "rsa"}, s.said(nil), nil),
		"public key as a secret, DER": "Bearer " + sign(t, jose.HS512, jose.JSONWebKey{Key: public, KeyID: "rsa"}, s.said(nil), nil),
		"secret of the keys":          "Bearer " + sign(t, jose.HS256, jose.JSONWebKey{Key: secret, KeyID: "secret"}, s.said(nil), nil),
		"alg of another kind of key":  "Bearer " + encoded(claims{"alg": "RS256", "kid": "one"}) + "." + parts[1] + "." + parts[2],
		"jku":                         header(map[jose.HeaderKey]any{"jku": hostile.URL}),
		"x5u":                         header(map[jose.HeaderKey]any{"x5u": hostile.URL}),
		"jwk":                         "Bearer " + signed(t, embedding, s.said(nil)),
		"crit":                        "Bearer " + sign(t, jose.ES384, one, s.said(nil), map[jose.HeaderKey]any{"crit": []string{"x"}, "x": 1}),
		"crit b64":                    "Bearer " + sign(t, jose.ES384, one, s.said(nil), map[jose.HeaderKey]any{"crit": []string{"b64"}, "b64": true}),
		"claims that are no object":   "Bearer " + sign(t, jose.ES384, one, nil, nil),
	} {
		if _, got := authorize(t, authorizer, authorization); got != http.StatusUnauthorized {
			t.Errorf("%s: got %d, want 401", name, got)
		}
	}
	if _, got := authorize(t, authorizer, "Bearer "+right); got != http.StatusOK {
		t.Errorf("the right token: got %d", got)
	}
	if got := s.count("/jwks"); got != 1 {
		t.Errorf("the keys were fetched %d times for the wrong tokens of one moment", got)
	}
	if _, got := authorize(t, authorizer, "Bearer "+sign(t, jose.RS256, jose.JSONWebKey{Key: strong, KeyID: "rsa"}, s.said(nil), nil)); got != http.StatusOK {
		t.Errorf("by RSA: got %d", got)
	}
	pinned := s.authorizer(t, func(c *auth.Config) { c.Algorithms = []string{"ES384"} })
	if _, got := authorize(t, pinned, "Bearer "+sign(t, jose.RS256, jose.JSONWebKey{Key: strong, KeyID: "rsa"}, s.said(nil), nil)); got != 401 {
		t.Errorf("by RSA where it is not allowed: got %d", got)
	}
}

func TestJWTRefusesWhatIsNoToken(t *testing.T) {
	s := newIssuer(t)
	right, authorizer := s.token(t, nil), s.authorizer(t, nil)
	for name, authorization := range map[string][]string{
		"none":                   nil,
		"empty":                  {""},
		"scheme alone":           {"Bearer"},
		"scheme and blanks":      {"Bearer   "},
		"another scheme":         {"Basic dTpw"},
		"token without a scheme": {right},
		"two tokens":             {"Bearer " + right + " " + right},
		"two headers":            {"Bearer " + right, "Bearer " + right},
		"a list":                 {"Bearer " + right + ", Bearer " + right},
		"garbage":                {"Bearer garbage"},
		"dots":                   {"Bearer .."},
		"control characters":     {"Bearer a\x00b"},
		"endless":                {"Bearer " + right + strings.Repeat("A", 1<<15)},
		"five parts":             {"Bearer " + right + ".x.y"},
	} {
		if _, got := authorize(t, authorizer, authorization...); got != http.StatusUnauthorized {
			t.Errorf("%s: got %d, want 401", name, got)
		}
	}
	if got := s.count("/jwks"); got != 0 {
		t.Errorf("the keys were fetched %d times for what is no token", got)
	}
}

func TestJWTRefusesTokensByTheirClaims(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.authorizer(t, nil)
	for name, row := range map[string]struct {
		change claims
		want   int
	}{
		"wrong issuer":                    {claims{"iss": s.URL + "/"}, 401},
		"no issuer":                       {claims{"iss": nil}, 401},
		"wrong audience":                  {claims{"aud": audience + "/"}, 401},
		"no audience":                     {claims{"aud": nil}, 401},
		"audience that is no text":        {claims{"aud": []any{1, audience}}, 401},
		"expired":                         {claims{"exp": s.now().Add(-time.Minute).Unix()}, 401},
		"never expires":                   {claims{"exp": nil}, 401},
		"expires in words":                {claims{"exp": "tomorrow"}, 401},
		"expires beyond all numbers":      {claims{"exp": json.RawMessage("1e300")}, 401},
		"not yet":                         {claims{"nbf": s.now().Add(61 * time.Second).Unix()}, 401},
		"issued in the future":            {claims{"iat": s.now().Add(61 * time.Second).Unix()}, 401},
		"nobody":                          {claims{"client_id": nil, "sub": nil}, 401},
		"scope that is no text":           {claims{"scope": 7}, 401},
		"no scope":                        {claims{"scope": nil}, 403},
		"no scope for exports":            {claims{"scope": "openid system/Patient.r system/Patient.cud"}, 403},
		"a patient's":                     {claims{"scope": "system/*.rs patient/*.rs"}, 403},
		"a user's":                        {claims{"scope": "system/*.rs user/Patient.read"}, 403},
		"a user's in scp":                 {claims{"scp": []string{"user/Patient.read"}}, 403},
		"a scope that has a query behind": {claims{"scope": "system/Observation.rs?category=laboratory"}, 403},
	} {
		if _, got := authorize(t, authorizer, "Bearer "+s.token(t, row.change)); got != row.want {
			t.Errorf("%s: got %d, want %d", name, got, row.want)
		}
	}
}

func TestNewRefusesWhatCannotBeChecked(t *testing.T) {
	right := auth.Config{Mode: auth.JWT, Issuer: "https://id.example.org", Audience: audience}
	asked := auth.Config{Mode: auth.Introspection, IntrospectionURL: "https://id.example.org/i", ClientID: "a", ClientSecret: "b"}
	for name, change := range map[string]func(c, i *auth.Config){
		"no issuer":     func(c, _ *auth.Config) { c.Issuer = "" },
		"no audience":   func(c, _ *auth.Config) { c.Audience = "" },
		"alg none":      func(c, _ *auth.Config) { c.Algorithms = []string{"RS256", "none"} },
		"HS256":         func(c, _ *auth.Config) { c.Algorithms = []string{"HS256"} },
		"mode":          func(c, _ *auth.Config) { c.Mode = auth.Upstream },
		"CA file":       func(c, _ *auth.Config) { c.CAFile = "/nowhere" },
		"no CA in file": func(c, _ *auth.Config) { c.CAFile = "jwt_test.go" },
		"no address":    func(_, i *auth.Config) { i.IntrospectionURL = "" },
		"no client":     func(_, i *auth.Config) { i.ClientID = "" },
		"no secret":     func(_, i *auth.Config) { i.ClientSecret = "" },
	} {
		byKeys, byAsking := right, asked
		change(&byKeys, &byAsking)
		_, err := auth.New(byKeys)
		_, other := auth.New(byAsking)
		if (err == nil) == (other == nil) {
			t.Errorf("%s: got %v and %v", name, err, other)
		}
	}
}
