package fhir_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"sidecar/exporter/fhir"
)

const (
	clientID     = "sidecar-client"
	clientSecret = "a-secret-of-the-sidecar"
)

// tokens is a token endpoint: it issues tokens with a life, and knows which one is the newest.
type tokens struct {
	life time.Duration
	// judge refuses a request by a status that is not 0. May be nil.
	judge func(*http.Request) (status int, code string)

	mu     sync.Mutex
	issued int
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if s.judge != nil {
		if status, code := s.judge(r); status != 0 {
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, `{"error":%q,"error_description":"sent %s"}`, code, clientSecret)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued++
	_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer","expires_in":%d}`, s.issued, int(s.life.Seconds()))
}

func (s *tokens) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// newest is the header of the last token.
func (s *tokens) newest() string { return fmt.Sprintf("Bearer token-%d", s.count()) }

// direct hands requests to a handler without a network, for bubbles.
type direct struct{ http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// protected answers searches that come with a token which holds.
func protected(holds func(authorization string) bool, asked *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !holds(r.Header.Get("Authorization")) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"resourceType":"Bundle","type":"searchset"}`)
	})
}

// withTokens returns a client whose credentials come from an endpoint.
func withTokens(t *testing.T, endpoint, upstream http.Handler) *fhir.Client {
	t.Helper()
	client, err := fhir.NewClient(fhir.Config{
		BaseURL: upstreamBase, Transport: direct{upstream},
		Credentials: fhir.NewOAuth(fhir.OAuthConfig{
			TokenURL: "https://id.example/token", ClientID: clientID, ClientSecret: clientSecret, Transport: direct{endpoint},
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// ask sends a search and reads it.
func ask(ctx context.Context, client *fhir.Client) error {
	page, err := client.Search(ctx, fhir.Query{Type: "Patient", Count: 1})
	if err != nil {
		return err
	}
	_, err = read(page)
	return err
}

// Ensure each kind of authentication is what a token endpoint of its kind takes, over a real connection.
func TestTokenEndpointIsToldWhoAsks(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var audience string
	seen := map[string]bool{}
	assertion := func(algorithm jose.SignatureAlgorithm, key any) func(*http.Request) (int, string) {
		return func(r *http.Request) (int, string) {
			if err := checkAssertion(r, algorithm, key, audience, seen); err != nil {
				t.Error(err)
				return http.StatusUnauthorized, "invalid_client"
			}
			return 0, ""
		}
	}
	inHeader := func(r *http.Request) bool {
		id, secret, _ := r.BasicAuth()
		return id == clientID && secret == clientSecret
	}
	inForm := func(r *http.Request) bool {
		return r.PostFormValue("client_id") == clientID && r.PostFormValue("client_secret") == clientSecret
	}
	secret := func(sent func(*http.Request) bool) func(*http.Request) (int, string) {
		return func(r *http.Request) (int, string) {
			if !sent(r) {
				return http.StatusUnauthorized, "invalid_client"
			}
			return 0, ""
		}
	}
	for name, test := range map[string]struct {
		key   []byte
		judge func(*http.Request) (int, string)
	}{
		"secret in the header": {nil, secret(inHeader)},
		"secret in the form":   {nil, secret(inForm)},
		"RS384":                {pkcs8(t, rsaKey), assertion(jose.RS384, rsaKey.Public())},
		"ES384":                {pkcs8(t, ecKey), assertion(jose.ES384, ecKey.Public())},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := &tokens{life: time.Minute, judge: func(r *http.Request) (int, string) {
				if r.PostFormValue("grant_type") != "client_credentials" || r.PostFormValue("scope") != "system/*.rs openid" {
					return http.StatusBadRequest, "invalid_request"
				}
				return test.judge(r)
			}}
			endpoint := httptest.NewServer(issuer)
			defer endpoint.Close()
			audience = endpoint.URL + "/token"
			cfg := fhir.OAuthConfig{
				TokenURL: audience, ClientID: clientID, ClientSecret: clientSecret, Scopes: []string{"system/*.rs", "openid"},
				Header: http.Header{"X-Api-Key": {"k"}},
			}
			if test.key != nil {
				if cfg.Signer, err = fhir.NewSigner(test.key, "key-1", ""); err != nil {
					t.Fatal(err)
				}
				cfg.ClientSecret = ""
			}
			credentials := fhir.NewOAuth(cfg)
			for want := range 2 { // twice, because an endpoint refuses an assertion that it has seen
				got, err := credentials.Header(t.Context())
				if err != nil || got.Get("Authorization") != issuer.newest() || got.Get("X-Api-Key") != "k" || issuer.count() != want+1 {
					t.Fatalf("%v, %v after %d tokens", got, err, issuer.count())
				}
				if !credentials.Refused(t.Context(), got, 0) {
					t.Error("there is no other token")
				}
			}
		})
	}
}

// Ensure all who need a token at once wait for one request, and that a request that leaves does not end it for the others.
func TestTokenIsAskedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &tokens{life: time.Hour}
		release := make(chan struct{})
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-release
			issuer.ServeHTTP(w, r)
		})
		var asked atomic.Int64
		client := withTokens(t, slow, protected(func(got string) bool { return got == "Bearer token-1" }, &asked))
		leaving, leave := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() { first <- ask(leaving, client) }()
		synctest.Wait()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if err := ask(t.Context(), client); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		leave()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who has left got %v", err)
		}
		close(release)
		all.Wait()
		if issuer.count() != 1 || asked.Load() != 20 {
			t.Errorf("%d tokens for %d requests", issuer.count(), asked.Load())
		}
	})
}

// Ensure no request waits for a token that is renewed in time, and none carries one that has expired.
func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &tokens{life: 5 * time.Minute}
		ends := map[string]time.Time{}
		var mu sync.Mutex
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(5 * time.Second)
			issuer.ServeHTTP(w, r)
			mu.Lock()
			defer mu.Unlock()
			ends[issuer.newest()] = time.Now().Add(issuer.life)
		})
		var asked atomic.Int64
		client := withTokens(t, slow, protected(func(got string) bool {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Before(ends[got])
		}, &asked))
		if err := ask(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(10 * time.Second) {
			sent := time.Now()
			if err := ask(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(sent); waited != 0 {
				t.Fatalf("a request waited %s", waited)
			}
		}
		if n := issuer.count(); n < 12 || n > 30 {
			t.Errorf("%d tokens in an hour", n)
		}
		if n := asked.Load(); n != 361 {
			t.Errorf("%d requests: one was refused", n)
		}
		time.Sleep(time.Hour) // longer than any token holds
		if err := ask(t.Context(), client); err != nil || asked.Load() != 362 {
			t.Errorf("after a long rest: %v, %d requests", err, asked.Load())
		}
	})
}

// Ensure a token is not used any more shortly before its end: the request could arrive behind it.
func TestTokenIsNotUsedToItsEnd(t *testing.T) {
	for life, rest := range map[time.Duration]time.Duration{time.Hour: 25 * time.Second, time.Minute: 5 * time.Second} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := &tokens{life: life}
				var used string
				var asked atomic.Int64
				client := withTokens(t, issuer, protected(func(got string) bool {
					used = got
					return true
				}, &asked))
				for n := 1; n <= 2; n++ {
					if err := ask(t.Context(), client); err != nil {
						t.Fatal(err)
					}
					if used != issuer.newest() || issuer.count() != n {
						t.Errorf("request %d: sent token %q, the newest of %d is %q", n, used, issuer.count(), issuer.newest())
					}
					time.Sleep(life - rest)
				}
			})
		})
	}
}

// Ensure a token that the upstream takes back is replaced at once, and that an upstream that takes none is asked twice.
func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &tokens{life: time.Hour}
		var asked atomic.Int64
		var none atomic.Bool
		client := withTokens(t, issuer, protected(func(got string) bool { return got == "Bearer token-2" && !none.Load() }, &asked))
		if err := ask(t.Context(), client); err != nil || asked.Load() != 2 || issuer.count() != 2 {
			t.Errorf("%v after %d requests with %d tokens", err, asked.Load(), issuer.count())
		}
		none.Store(true)
		if err := ask(t.Context(), client); fhir.StatusOf(err) != http.StatusUnauthorized || asked.Load() != 4 || issuer.count() != 3 {
			t.Errorf("%v after %d requests with %d tokens", err, asked.Load(), issuer.count())
		}
		if err := client.MaySearch(t.Context(), "Patient", http.Header{"Authorization": {"Bearer client"}}); fhir.StatusOf(err) != http.StatusUnauthorized || asked.Load() != 5 {
			t.Errorf("a client's token: %v after %d requests", err, asked.Load())
		}
	})
}

// Ensure an outage of the token endpoint is felt only when the token has expired, ends by itself, takes bounded time, and is
// no sign of trouble with the upstream.
func TestOutageOfTheTokenEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := &tokens{life: 5 * time.Minute}
		var down atomic.Bool
		var tries, asked atomic.Int64
		endpoint := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if down.Load() {
				tries.Add(1)
				<-r.Context().Done()
				return
			}
			issuer.ServeHTTP(w, r)
		})
		client := withTokens(t, endpoint, protected(func(got string) bool { return strings.HasPrefix(got, "Bearer token-") }, &asked))
		if err := ask(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		down.Store(true)
		began := time.Now()
		for time.Since(began) < 4*time.Minute {
			if err := ask(t.Context(), client); err != nil {
				t.Fatalf("after %s: %v", time.Since(began), err)
			}
			time.Sleep(time.Second)
		}
		if n := tries.Load(); n == 0 || n > 10 {
			t.Errorf("the endpoint was asked %d times while it was away", n)
		}
		time.Sleep(5*time.Minute - time.Since(began))
		before, sent := asked.Load(), time.Now()
		err := ask(t.Context(), client)
		if !errors.Is(err, fhir.ErrCredentials) || !strings.Contains(err.Error(), "cannot be reached: timeout") {
			t.Errorf("without a token: %v", err)
		}
		if waited := time.Since(sent); waited > 15*time.Second || asked.Load() != before {
			t.Errorf("%s, %d requests without a token", waited, asked.Load()-before)
		}
		if fhir.StatusOf(err) != 0 || fhir.TimedOut(err) || fhir.Broken(err) {
			t.Errorf("taken for trouble of the upstream: %v", err)
		}
		down.Store(false)
		if err := ask(t.Context(), client); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

// Ensure what the endpoint says is told in the words of the standard, and nothing that it was sent or that it sends comes
// back with it.
func TestTokenErrorsHoldNoSecret(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"wrong secret": {(&tokens{judge: func(*http.Request) (int, string) { return http.StatusUnauthorized, "invalid_client" }}).ServeHTTP, "answers with status 401 (invalid_client)"},
		"other code":   {(&tokens{judge: func(*http.Request) (int, string) { return http.StatusBadRequest, clientSecret }}).ServeHTTP, "answers with status 400"},
		"error in 200": {(&tokens{judge: func(*http.Request) (int, string) { return http.StatusOK, "invalid_scope" }}).ServeHTTP, "answers with status 200 (invalid_scope)"},
		"page":         {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>"+clientSecret) }, "does not answer with an access token"},
		"no token":     {func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(clientSecret) }, "does not answer with an access token"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, "answers with status 307"},
		"hang-up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "cannot be reached: the connection was closed"},
	} {
		t.Run(name, func(t *testing.T) {
			endpoint := httptest.NewServer(test.answer)
			defer endpoint.Close()
			credentials := fhir.NewOAuth(fhir.OAuthConfig{TokenURL: endpoint.URL + "/token", ClientID: clientID, ClientSecret: clientSecret})
			_, err := credentials.Header(t.Context())
			if !errors.Is(err, fhir.ErrCredentials) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if text := fmt.Sprintf("%+v", err); strings.Contains(text, clientSecret) || strings.Contains(text, endpoint.URL) {
				t.Errorf("the error tells too much: %s", text)
			}
		})
	}
}
