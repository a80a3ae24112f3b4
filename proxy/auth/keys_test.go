package auth_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sidecar/proxy/auth"
)

// rotate gives the issuer another key, and returns how tokens are signed by it.
func rotate(t *testing.T, s *issuer, kid string) func() string {
	t.Helper()
	key := newKey(t)
	s.with(func() { s.keys = []jose.JSONWebKey{{Key: key.Public(), KeyID: kid}} })
	return func() string {
		return "Bearer " + sign(t, jose.ES384, jose.JSONWebKey{Key: key, KeyID: kid}, s.said(nil), nil)
	}
}

func TestKeysAreFetchedAgainForATokenOfANewOne(t *testing.T) {
	for _, kid := range []string{"two", "one", ""} { // a new name, the name of the old one, none
		s := newIssuer(t)
		authorizer := s.authorizer(t, nil)
		if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != http.StatusOK {
			t.Fatalf("before: got %d", got)
		}
		token := rotate(t, s, kid)
		if _, got := authorize(t, authorizer, token()); got != http.StatusUnauthorized || s.count("/jwks") != 1 {
			t.Errorf("kid %q at once: got %d, keys fetched %d times", kid, got, s.count("/jwks"))
		}
		s.later(5 * time.Second)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, got := authorize(t, authorizer, token()); got != http.StatusOK {
					t.Errorf("kid %q later: got %d", kid, got)
				}
			})
		}
		all.Wait()
		if got := s.count("/jwks"); got != 2 {
			t.Errorf("kid %q: keys were fetched %d times", kid, got)
		}
		if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != http.StatusUnauthorized {
			t.Errorf("kid %q: the old key still holds: got %d", kid, got)
		}
	}
}

func TestKeysAreKeptAsLongAsTheIssuerSays(t *testing.T) {
	for cache, lifetime := range map[string]time.Duration{
		"":                                5 * time.Minute,
		"private":                         5 * time.Minute,
		"public, max-age=90":              90 * time.Second,
		`Max-Age="90"`:                    90 * time.Second,
		"max-age=99999999":                time.Hour,
		"max-age=99999999999999999999":    5 * time.Second,
		"no-store":                        5 * time.Second, // the pause between two attempts
		"max-age=600, must-revalidate":    10 * time.Minute,
		"max-age=600, no-cache, no-store": 5 * time.Second,
	} {
		s := newIssuer(t)
		s.cache = cache
		authorizer := s.authorizer(t, nil)
		ask := func(want int) {
			t.Helper()
			if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != http.StatusOK {
				t.Errorf("%q: got %d", cache, got)
			}
			if got := s.count("/jwks"); got != want {
				t.Errorf("%q: the keys were fetched %d times, want %d", cache, got, want)
			}
		}
		ask(1)
		s.later(lifetime - time.Second)
		ask(1)
		s.later(time.Second)
		ask(2)
	}
}

func TestKeysGoOnBeingUsedWhileTheIdentityServerIsAway(t *testing.T) {
	s := newIssuer(t)
	authorizer := s.authorizer(t, nil)
	s.with(func() { s.status = http.StatusInternalServerError })
	ask := func(when string, want int) {
		t.Helper()
		if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != want {
			t.Errorf("%s: got %d, want %d", when, got, want)
		}
	}
	ask("before it was ever there", http.StatusServiceUnavailable)
	s.with(func() { s.status = http.StatusOK })
	ask("within the pause", http.StatusServiceUnavailable)
	s.later(5 * time.Second)
	ask("when it has come", http.StatusOK)
	s.with(func() { s.status = http.StatusInternalServerError })
	s.later(23 * time.Hour)
	ask("away", http.StatusOK)
	unknown := "Bearer " + sign(t, jose.ES384, jose.JSONWebKey{Key: s.key, KeyID: "two"}, s.said(nil), nil)
	if _, got := authorize(t, authorizer, unknown); got != http.StatusServiceUnavailable {
		t.Errorf("a key that it may have: got %d, want 503", got)
	}
	s.later(time.Hour)
	ask("away for a day", http.StatusServiceUnavailable)
	s.with(func() { s.status = http.StatusOK })
	s.later(5 * time.Second)
	ask("back", http.StatusOK)
}

// Ensure an identity server that takes connections and says nothing holds up no request for longer than the client waits,
// and that it is not asked again for each of them.
func TestKeysDoNotWaitForASilentIdentityServer(t *testing.T) {
	t.Parallel() // it waits
	s := newIssuer(t)
	silent := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-silent:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(silent) })
	authorizer := s.authorizer(t, func(c *auth.Config) { c.JWKSURL = server.URL })
	began := time.Now()
	if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503", got)
	}
	if took := time.Since(began); took < 4*time.Second || took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	began = time.Now()
	if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != http.StatusServiceUnavailable {
		t.Errorf("again: got %d, want 503", got)
	}
	if took := time.Since(began); took >= 4*time.Second { // it has not waited again
		t.Errorf("again: it took %s", took)
	}
}

func TestKeysComeFromTheIssuerAlone(t *testing.T) {
	s := newIssuer(t)
	redirecting := httptest.NewServer(http.RedirectHandler(s.URL+"/jwks", http.StatusFound))
	t.Cleanup(redirecting.Close)
	token := "Bearer " + s.token(t, nil)
	if _, got := authorize(t, s.authorizer(t, func(c *auth.Config) { c.JWKSURL = redirecting.URL }), token); got != http.StatusServiceUnavailable {
		t.Errorf("behind a redirect: got %d", got)
	}
	if _, got := authorize(t, s.authorizer(t, func(c *auth.Config) { c.Issuer = s.URL + "/" }), token); got != http.StatusServiceUnavailable {
		t.Errorf("discovery of another issuer: got %d", got)
	}
	s.with(func() { s.keys = nil })
	if _, got := authorize(t, s.authorizer(t, nil), token); got != http.StatusServiceUnavailable {
		t.Errorf("no keys: got %d", got)
	}
}

func TestCheckAsksAsForClients(t *testing.T) {
	s := newIssuer(t)
	byKeys, byAsking := s.authorizer(t, nil), s.introspection(t, nil)
	for authorizer, want := range map[auth.Authorizer]string{byKeys: "1 keys of the issuer, kept for 5m0s", byAsking: "it says of a made-up token that it does not hold"} {
		if got, err := auth.Check(t.Context(), authorizer); err != nil || got != want {
			t.Errorf("got %q, %v", got, err)
		}
	}
	s.with(func() { s.status = http.StatusUnauthorized })
	for _, authorizer := range []auth.Authorizer{byKeys, byAsking} {
		if _, err := auth.Check(t.Context(), authorizer); err == nil || !strings.Contains(err.Error(), "status 401") || strings.Contains(err.Error(), s.URL) {
			t.Errorf("got %v", err)
		}
	}
}

func TestKeysNeedACertificateThatIsTrusted(t *testing.T) {
	s := newIssuer(t)
	secured := httptest.NewTLSServer(s)
	t.Cleanup(secured.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secured.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for ca, want := range map[string]int{"": http.StatusServiceUnavailable, file: http.StatusOK} {
		authorizer := s.authorizer(t, func(c *auth.Config) { c.CAFile, c.JWKSURL = ca, secured.URL+"/jwks" })
		if _, got := authorize(t, authorizer, "Bearer "+s.token(t, nil)); got != want {
			t.Errorf("ca_file %q: got %d, want %d", ca, got, want)
		}
	}
}
