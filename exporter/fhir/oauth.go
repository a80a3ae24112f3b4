package fhir

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/sync/singleflight"
)

const (
	// tokenTimeout bounds one request to the token endpoint.
	tokenTimeout = 10 * time.Second
	// tokenReserve is how long before its end a token is not used any more: a request takes its time, and clocks differ. Of
	// a short-lived token it is a tenth of its life. Half of what is left before that is for getting the next one.
	tokenReserve = 30 * time.Second
	// tokenPause is how long the token endpoint is left alone after a failure while there is still a token to use.
	tokenPause = 5 * time.Second
)

// OAuthConfig says how the sidecar gets access tokens: by the grant client_credentials (RFC 6749, section 4.4), with a secret
// or, as SMART Backend Services have it, with an assertion that it signs (RFC 7523).
type OAuthConfig struct {
	// TokenURL is the token endpoint.
	TokenURL string
	ClientID string
	// ClientSecret is sent as the endpoint likes it: by HTTP basic authentication, or in the form.
	ClientSecret string
	// Signer makes the assertions; nil where there is a secret.
	Signer *Signer
	// Scopes are asked for; none leaves it to the server.
	Scopes []string
	// Header are further headers of each request to the upstream, such as an API key.
	Header http.Header
	// TLS says which certificates are trusted, nil for the system's. The token endpoint is not shown the sidecar's own.
	TLS *TLS
	// Transport sends the requests to the token endpoint; nil means one of its own.
	Transport http.RoundTripper
}

// OAuth are credentials that a token endpoint issues. A token is renewed behind the requests that go on using it, and once
// more where the upstream refuses it.
type OAuth struct {
	fetch  func(context.Context) (*oauth2.Token, error)
	extra  http.Header
	client *http.Client
	flight singleflight.Group

	mu     sync.Mutex
	header http.Header // nil where there is no token
	// due is when the token is to be renewed, end when it is not used any more; zero for one without an end.
	due, end time.Time
	// worked tells that there was a token once: what is refused afterwards may be accepted again, as while keys are changed.
	worked bool
}

// NewOAuth returns credentials of cfg. The token endpoint is asked when they are needed.
func NewOAuth(cfg OAuthConfig) *OAuth {
	transport := cfg.Transport
	if transport == nil {
		transport = newTokenTransport(cfg.TLS)
	}
	o := &OAuth{extra: cfg.Header, client: &http.Client{
		Transport: transport,
		// The secret is for one address.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	grant := &clientcredentials.Config{ClientID: cfg.ClientID, ClientSecret: cfg.ClientSecret, TokenURL: cfg.TokenURL, Scopes: cfg.Scopes}
	o.fetch = grant.Token
	if cfg.Signer != nil {
		o.fetch = func(ctx context.Context) (*oauth2.Token, error) {
			assertion, err := cfg.Signer.assertion(cfg.ClientID, cfg.TokenURL)
			if err != nil {
				return nil, err
			}
			signed := &clientcredentials.Config{TokenURL: cfg.TokenURL, Scopes: cfg.Scopes, AuthStyle: oauth2.AuthStyleInParams, EndpointParams: url.Values{
				"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
				"client_assertion":      {assertion},
			}}
			return signed.Token(ctx)
		}
	}
	return o
}

func newTokenTransport(certificates *TLS) *http.Transport {
	transport := &http.Transport{
		// Tokens are minutes apart, and servers close what is idle for some seconds: a request that arrives at that moment is lost.
		Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	if certificates != nil {
		certificates.ApplyTrust(transport)
	}
	return transport
}

// Header returns the header of the token. It waits for the token endpoint only where there is no token that holds.
func (o *OAuth) Header(ctx context.Context) (http.Header, error) {
	o.mu.Lock()
	now := time.Now()
	header := o.header
	if header != nil && !o.end.IsZero() && !now.Before(o.end) {
		header = nil
	}
	renew := header == nil || !o.due.IsZero() && !now.Before(o.due)
	o.mu.Unlock()
	if !renew {
		return header, nil
	}
	// One request for all who need a token; it does not end with the first of them.
	renewed := o.flight.DoChan("", func() (any, error) { return o.renew(context.WithoutCancel(ctx)) })
	if header != nil {
		return header, nil
	}
	select {
	case got := <-renewed:
		if got.Err != nil {
			return nil, got.Err
		}
		return got.Val.(http.Header), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Refused forgets the token, if it is still that one. A second one that is refused says that no token helps.
func (o *OAuth) Refused(_ context.Context, header http.Header, before int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.header != nil && o.header.Get("Authorization") == header.Get("Authorization") {
		o.header = nil
	}
	return before == 0
}

// renew gets a token and keeps it.
func (o *OAuth) renew(ctx context.Context) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	asked := time.Now()
	token, err := o.fetch(context.WithValue(ctx, oauth2.HTTPClient, o.client))
	if err == nil && !httpguts.ValidHeaderFieldValue(token.Type()+" "+token.AccessToken) {
		err = errors.New("the access token cannot be sent")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		if !o.due.IsZero() {
			o.due = time.Now().Add(tokenPause)
		}
		kind := ErrCredentials
		if !o.worked && refusesClient(err) {
			kind = ErrClientRefused
		}
		return nil, fmt.Errorf("%w: the token endpoint %s", kind, tokenCause(err))
	}
	o.worked = true
	header := http.Header{}
	maps.Copy(header, o.extra)
	header.Set("Authorization", token.Type()+" "+token.AccessToken)
	o.header, o.due, o.end = header, time.Time{}, time.Time{}
	if !token.Expiry.IsZero() {
		life := token.Expiry.Sub(asked)
		o.end = token.Expiry.Add(-min(tokenReserve, life/10))
		o.due = asked.Add(o.end.Sub(asked) / 2)
	}
	return header, nil
}

// refusesClient tells whether the endpoint does not take who asks, or what is asked for (RFC 6749, section 5.2).
func refusesClient(err error) bool {
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.Response == nil {
		return false
	}
	if status := refused.Response.StatusCode; status != http.StatusBadRequest && status != http.StatusUnauthorized && status != http.StatusForbidden {
		return false
	}
	switch refused.ErrorCode {
	case "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
		return true
	}
	return false
}

// tokenCause says why there is no token, without what the endpoint wrote: that may repeat what it was sent.
func tokenCause(err error) string {
	var refused *oauth2.RetrieveError
	var address *url.Error
	switch {
	case errors.As(err, &refused):
		code := ""
		switch refused.ErrorCode { // the codes of RFC 6749, section 5.2
		case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
			code = " (" + refused.ErrorCode + ")"
		}
		if refused.Response == nil {
			return "refuses" + code
		}
		return fmt.Sprintf("answers with status %d%s", refused.Response.StatusCode, code)
	case errors.Is(err, errAssertion):
		return "was not asked: " + errAssertion.Error()
	case errors.As(err, &address):
		return "cannot be reached: " + Cause(address.Err)
	}
	return "does not answer with an access token"
}
