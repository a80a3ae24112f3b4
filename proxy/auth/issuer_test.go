package auth_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sidecar/proxy/auth"
)

// audience is that of the tokens that hold.
const audience = "https://fhir.example.org"

// issuer is an identity server with a clock that stands still until a test moves it.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey

	mu    sync.Mutex
	at    time.Time
	keys  []jose.JSONWebKey
	extra []any // keys that the library cannot make
	// cache is the Cache-Control of the keys, status that of all answers.
	cache  string
	status int
	// cut ends the connection of the next request without an answer.
	cut   bool
	asked map[string]int
	// tokens are the answers to introspections, the last one in forms.
	tokens map[string]any
	posts  []*http.Request
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	s := &issuer{
		key: newKey(t), at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), status: http.StatusOK, asked: map[string]int{}, tokens: map[string]any{},
	}
	s.keys = []jose.JSONWebKey{{Key: s.key.Public(), KeyID: "one", Algorithm: "ES384", Use: "sig"}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[r.URL.Path]++
	if s.cut {
		s.cut = false
		panic(http.ErrAbortHandler)
	}
	if s.status != http.StatusOK {
		w.WriteHeader(s.status)
		return
	}
	var answer any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		answer = map[string]string{"issuer": s.URL, "jwks_uri": s.URL + "/jwks"}
	case "/jwks":
		if s.cache != "" {
			w.Header().Set("Cache-Control", s.cache)
		}
		all := append([]any{}, s.extra...)
		for _, key := range s.keys {
			all = append(all, key)
		}
		answer = map[string]any{"keys": all}
	case "/introspect":
		if err := r.ParseForm(); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.posts = append(s.posts, r)
		if answer = s.tokens[r.PostForm.Get("token")]; answer == nil {
			answer = map[string]bool{"active": false}
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// with changes the issuer while nobody is asking it.
func (s *issuer) with(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *issuer) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *issuer) later(span time.Duration) { s.with(func() { s.at = s.at.Add(span) }) }

func (s *issuer) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

// authorizer returns one on the issuer's clock.
func (s *issuer) authorizer(t *testing.T, change func(*auth.Config)) auth.Authorizer {
	t.Helper()
	cfg := auth.Config{Mode: auth.JWT, Issuer: s.URL, Audience: audience, Leeway: auth.DefaultLeeway}
	if change != nil {
		change(&cfg)
	}
	authorizer, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	auth.SetNow(authorizer, s.now)
	return authorizer
}

type claims = map[string]any

// said are the claims of a token that holds, with some changed; nil takes one away.
func (s *issuer) said(change claims) claims {
	all := claims{
		"iss": s.URL, "aud": audience, "exp": s.now().Add(5 * time.Minute).Unix(), "iat": s.now().Unix(),
		"client_id": "warehouse", "sub": "account-7", "scope": "openid system/Patient.rs system/Observation.read",
	}
	for name, value := range change {
		all[name] = value
		if value == nil {
			delete(all, name)
		}
	}
	return all
}

// token is one by the issuer's first key.
func (s *issuer) token(t *testing.T, change claims) string {
	t.Helper()
	return sign(t, jose.ES384, jose.JSONWebKey{Key: s.key, KeyID: "one"}, s.said(change), nil)
}

// sign makes a token with any key and more header fields.
func sign(t *testing.T, algorithm jose.SignatureAlgorithm, key any, said claims, header map[jose.HeaderKey]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, &jose.SignerOptions{ExtraHeaders: header})
	if err != nil {
		t.Fatal(err)
	}
	return signed(t, signer, said)
}

func signed(t *testing.T, signer jose.Signer, said claims) string {
	t.Helper()
	payload, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	object, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := object.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newRSA(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authorize asks with the headers, and returns the client and the status, 200 where it is let in.
func authorize(t *testing.T, authorizer auth.Authorizer, authorization ...string) (*auth.Client, int) {
	t.Helper()
	client, err := authorizer.Authorize(t.Context(), http.Header{"Authorization": authorization})
	if err == nil {
		if client == nil || client.ID == "" || client.Scopes == nil {
			t.Fatalf("let in as %+v", client)
		}
		return client, http.StatusOK
	}
	var refusal *auth.Refusal
	if !errors.As(err, &refusal) || client != nil {
		t.Fatalf("got %+v, %v, want a refusal", client, err)
	}
	if (refusal.Status == http.StatusUnauthorized) != strings.HasPrefix(refusal.Challenge, "Bearer") {
		t.Errorf("status %d with the challenge %q", refusal.Status, refusal.Challenge)
	}
	for _, one := range authorization {
		if token := strings.TrimSpace(one[min(len(one), len("Bearer")):]); token != "" && strings.Contains(refusal.Text+refusal.Challenge, token) {
			t.Errorf("the refusal holds the token: %v", refusal)
		}
	}
	return nil, refusal.Status
}
