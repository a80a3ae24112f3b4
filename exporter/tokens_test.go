package exporter_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// shortTokens is a token endpoint whose tokens live for seconds, and the FHIR server that takes them.
type shortTokens struct {
	life time.Duration

	mu     sync.Mutex
	ends   map[string]time.Time
	away   bool
	unsure bool // it says that it does not know who asks
	denied int
	missed int
}

// RoundTrip issues a token.
func (s *shortTokens) RoundTrip(*http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := httptest.NewRecorder()
	if s.away {
		s.missed++
		w.WriteHeader(http.StatusServiceUnavailable)
		return w.Result(), nil
	}
	if s.unsure {
		s.missed++
		w.WriteHeader(http.StatusUnauthorized)
		_, err := w.WriteString(`{"error":"invalid_client"}`)
		return w.Result(), err
	}
	token := fmt.Sprintf("token-%d", len(s.ends)+1)
	s.ends["Bearer "+token] = time.Now().Add(s.life)
	w.Header().Set("Content-Type", "application/json")
	_, err := fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":%d}`, token, int(s.life.Seconds()))
	return w.Result(), err
}

// admit lets in who has a token that holds.
func (s *shortTokens) admit(r *http.Request) *fhirtest.Access {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := s.ends[r.Header.Get("Authorization")]; !time.Now().Before(end) {
		s.denied++
		return nil
	}
	return &fhirtest.Access{}
}

// revoke ends all tokens at once.
func (s *shortTokens) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token := range s.ends {
		s.ends[token] = time.Time{}
	}
}

func (s *shortTokens) setAway(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func (s *shortTokens) setUnsure(unsure bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsure = unsure
}

// withTokensOf makes the engine read with tokens of an issuer.
func (b *bubble) withTokensOf(t *testing.T, issuer *shortTokens) {
	b.stop()
	before := b.edit
	b.edit = func(c *exporter.Config) {
		before(c)
		client, err := fhir.NewClient(fhir.Config{
			BaseURL: b.upstream, Transport: b.link,
			Credentials: fhir.NewOAuth(fhir.OAuthConfig{TokenURL: "https://id.example/token", ClientID: "c", ClientSecret: "s", Transport: issuer}),
		})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	}
	b.start()
}

// Ensure an export with a wrong secret fails at once and says why, and does not wait as for a server that is away.
func TestWrongSecretFailsAtOnce(t *testing.T) {
	issuer := &shortTokens{life: time.Hour, ends: map[string]time.Time{}, unsure: true}
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.withTokensOf(t, issuer)
		job := b.finish(b.kickOff(system()))
		if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "secret, key or scope of the sidecar is refused") || !strings.Contains(job.Failure.Text, "invalid_client") {
			t.Errorf("%s: %+v", job.Status, job.Failure)
		}
		if took := job.Finished.Sub(job.Accepted); took > time.Minute {
			t.Errorf("it took %s", took)
		}
		issuer.setUnsure(false)
		same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
	})
}

// Ensure an export outlives its tokens: those that expire, those that the server takes back, and a token endpoint that is away for
// longer than a token holds.
func TestExportOutlivesItsTokens(t *testing.T) {
	for name, test := range map[string]struct {
		life time.Duration
		// trouble begins at a request in the middle.
		trouble func(*shortTokens)
		denied  bool
	}{
		"expiry":     {life: 10 * time.Second},
		"revocation": {life: time.Hour, trouble: (*shortTokens).revoke, denied: true},
		"outage": {life: 10 * time.Second, trouble: func(s *shortTokens) {
			s.setAway(true)
			go func() {
				time.Sleep(5 * time.Minute)
				s.setAway(false)
			}()
		}},
		"keys are changed": {life: 10 * time.Second, trouble: func(s *shortTokens) {
			s.setUnsure(true)
			go func() {
				time.Sleep(5 * time.Minute)
				s.setUnsure(false)
			}()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := &shortTokens{life: test.life, ends: map[string]time.Time{}}
			fill := func(sample *fhirtest.Server) {
				thirtyRows(t)(sample)
				sample.Gate = issuer.admit
			}
			inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
				b.withTokensOf(t, issuer)
				var pages atomic.Int64
				b.link.hook = func(r *http.Request) {
					if isRowPage(r) && pages.Add(1) == 2 && test.trouble != nil {
						test.trouble(issuer)
					}
				}
				same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
				issuer.mu.Lock()
				defer issuer.mu.Unlock()
				if n := len(issuer.ends); n < 2 || test.denied != (issuer.denied > 0) {
					t.Errorf("%d tokens, %d requests denied, %d misses at the endpoint", n, issuer.denied, issuer.missed)
				}
			})
		})
	}
}
