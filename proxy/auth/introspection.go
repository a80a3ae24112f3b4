package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// knownLifetime is how long an answer about a token holds at most: for that long a token that was revoked goes on.
	knownLifetime = time.Minute
	// maxKnown bounds how many answers are kept.
	maxKnown = 10_000
)

// tokenHash stands for a token: the cache must not hold what could be used.
type tokenHash = [sha256.Size]byte

// introspected is an answer about a token that holds.
type introspected struct {
	client *Client
	until  time.Time
}

// introspector asks the identity server about each token (RFC 7662).
type introspector struct {
	rules
	server              *identityServer
	address, id, secret string
	log                 *slog.Logger
	flight              singleflight.Group

	mu sync.Mutex
	// known holds only tokens that hold: those that are made up could drive the others out.
	known map[tokenHash]introspected
}

// Authorize asks whether the token is active, and holds what the identity server says of it against the same rules as the
// claims of a JWT.
func (i *introspector) Authorize(ctx context.Context, header http.Header) (*Client, error) {
	token, err := bearer(header)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256([]byte(token))
	if client := i.recall(hash); client != nil {
		return client, nil
	}
	done := i.flight.DoChan(string(hash[:]), func() (any, error) {
		return i.ask(context.WithoutCancel(ctx), token, hash) // others wait for the answer too
	})
	select {
	case answer := <-done:
		client, _ := answer.Val.(*Client)
		return client, answer.Err
	case <-ctx.Done():
		return nil, unavailable()
	}
}

func (i *introspector) ask(ctx context.Context, token string, hash tokenHash) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	asked := i.now()
	said, err := i.introspect(ctx, token)
	if err != nil {
		i.log.WarnContext(ctx, "the identity server cannot be asked about a token", "error", err)
		return nil, unavailable()
	}
	if !said.Active {
		return nil, invalid("the access token does not hold, or not any more")
	}
	if err := i.check(&said.claims); err != nil {
		return nil, err
	}
	client, err := said.exporting()
	if err != nil {
		return nil, err
	}
	i.remember(hash, introspected{client, until(asked, &said.claims)})
	return client, nil
}

// introspection is what the identity server says of a token.
type introspection struct {
	claims
	Active bool `json:"active"`
}

func (i *introspector) introspect(ctx context.Context, token string) (*introspection, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, i.address, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errors.New("the address cannot be asked")
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(url.QueryEscape(i.id), url.QueryEscape(i.secret)) // RFC 6749, section 2.3.1
	// A question that changes nothing is asked again where the server was just closing an idle connection. Without a value the
	// field tells net/http, and is not sent.
	request.Header["Idempotency-Key"] = nil
	var said introspection
	if _, err := i.server.ask(request, &said); err != nil {
		return nil, err
	}
	return &said, nil
}

// until is when the answer about a token has to be asked for again.
func until(asked time.Time, said *claims) time.Time {
	at := asked.Add(knownLifetime)
	if said.Expiry != nil && said.Expiry.Time().Before(at) {
		at = said.Expiry.Time()
	}
	return at
}

func (i *introspector) recall(hash tokenHash) *Client {
	i.mu.Lock()
	defer i.mu.Unlock()
	if found, ok := i.known[hash]; ok && i.now().Before(found.until) {
		return found.client
	}
	return nil
}

func (i *introspector) remember(hash tokenHash, answer introspected) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.known) >= maxKnown {
		i.makeRoom()
	}
	i.known[hash] = answer
}

// makeRoom drops what holds no more, and where that is nothing, any one answer.
func (i *introspector) makeRoom() {
	now, before := i.now(), len(i.known)
	for hash, answer := range i.known {
		if !now.Before(answer.until) {
			delete(i.known, hash)
		}
	}
	for hash := range i.known {
		if len(i.known) < before {
			return
		}
		delete(i.known, hash)
	}
}
