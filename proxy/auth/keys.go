package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"golang.org/x/sync/singleflight"
)

const (
	// keysLifetime is how long keys are taken for the issuer's when it does not say, maxKeysLifetime whatever it says: a key
	// that it has withdrawn must not hold for weeks.
	keysLifetime    = 5 * time.Minute
	maxKeysLifetime = time.Hour
	// keysOutage is how long they go on being used while the identity server cannot be asked.
	keysOutage = 24 * time.Hour
	// keysPause is the least time between two attempts to fetch keys: tokens with a made-up key must not become a load.
	keysPause = 5 * time.Second
	// minRSA is the least size in bits of an RSA key (RFC 7518, section 3.3).
	minRSA = 2048
)

// keySet are the issuer's keys.
type keySet struct {
	server  *identityServer
	issuer  string
	address string // empty means that discovery says it
	log     *slog.Logger
	now     func() time.Time
	flight  singleflight.Group

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // when keys came
	fresh   time.Time // until when they need no question
	asked   time.Time // when the last attempt began
	failed  bool      // whether it failed
}

// find returns the keys with which a signature can have been made. A token without kid may be of any.
func (s *keySet) find(kid, algorithm string) []any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.now().Before(s.fetched.Add(keysOutage)) {
		return nil
	}
	var found []any
	for _, key := range s.keys {
		if (kid == "" || key.KeyID == kid) && (key.Algorithm == "" || key.Algorithm == algorithm) && fits(key.Key, algorithm) {
			found = append(found, key.Key)
		}
	}
	return found
}

// fits tells whether a key is of the kind that the algorithm needs. Secrets (kty oct) are of no kind.
func fits(key any, algorithm string) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return (strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")) && key.N.BitLen() >= minRSA
	case *ecdsa.PublicKey:
		return strings.HasPrefix(algorithm, "ES")
	case ed25519.PublicKey:
		return algorithm == string(jose.EdDSA)
	}
	return false
}

// away tells whether the last attempt to fetch keys failed.
func (s *keySet) away() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// due tells whether keys are to be fetched: they are old or do not fit, and the last attempt was not just now.
func (s *keySet) due(unfit bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	return (unfit || !now.Before(s.fresh)) && !now.Before(s.asked.Add(keysPause))
}

// renew fetches keys where that is due, once for all who wait. The attempt goes on when the request that began it has left,
// because others wait for it too.
func (s *keySet) renew(ctx context.Context, unfit bool) {
	if !s.due(unfit) {
		return
	}
	done := s.flight.DoChan("", func() (any, error) {
		if s.due(unfit) { // nobody has done it between the two
			s.fetch(context.WithoutCancel(ctx))
		}
		return nil, nil
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (s *keySet) fetch(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	began := s.now()
	keys, lifetime, err := s.download(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "the keys of the identity server cannot be fetched", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.failed = s.now(), err != nil
	if err == nil {
		s.keys, s.fetched, s.fresh = keys, began, began.Add(lifetime)
	}
}

// download reads the issuer's keys, and how long they may be kept.
func (s *keySet) download(ctx context.Context) ([]jose.JSONWebKey, time.Duration, error) {
	address := s.address
	if address == "" {
		var found struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		if _, err := s.server.get(ctx, strings.TrimRight(s.issuer, "/")+"/.well-known/openid-configuration", &found); err != nil {
			return nil, 0, fmt.Errorf("discovery: %w", err)
		}
		if found.Issuer != s.issuer { // OpenID Connect Discovery 1.0, section 4.3
			return nil, 0, errors.New("discovery: the document is of another issuer than the setting auth.issuer")
		}
		if strings.HasPrefix(s.issuer, "https:") && !strings.HasPrefix(found.JWKSURI, "https:") {
			return nil, 0, errors.New("discovery: jwks_uri is not https")
		}
		address = found.JWKSURI
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	header, err := s.server.get(ctx, address, &set)
	if err != nil {
		return nil, 0, fmt.Errorf("keys: %w", err)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys { // one by one: a kind that is not known here must not hide the others
		var key jose.JSONWebKey
		if json.Unmarshal(raw, &key) == nil && (key.Use == "" || key.Use == "sig") && key.IsPublic() {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, 0, errors.New("keys: there is none for signatures")
	}
	return keys, lifetime(header), nil
}

// lifetime is how long an answer may be kept by its Cache-Control, less the time that it was kept by others on its way.
func lifetime(header http.Header) time.Duration {
	kept := keysLifetime
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.ToLower(strings.TrimSpace(directive)), "=")
		switch name {
		case "no-store", "no-cache":
			return 0
		case "max-age":
			seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
			if err != nil {
				return 0
			}
			kept = time.Duration(seconds) * time.Second
		}
	}
	if age, err := strconv.ParseUint(header.Get("Age"), 10, 31); err == nil {
		kept -= time.Duration(age) * time.Second
	}
	return max(0, min(kept, maxKeysLifetime))
}
