package auth

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json" // refuses members that are said twice, and tells "SUB" from "sub"
	"github.com/go-jose/go-jose/v4/jwt"
)

// identity is who a token names and what it is for.
type identity struct {
	ClientID string `json:"client_id"`
	// AuthorizedParty is how OpenID Connect calls the client.
	AuthorizedParty string `json:"azp"`
	Subject         string `json:"sub"`
	Scope           words  `json:"scope"`
	// SCP is how some identity servers call the scope.
	SCP words `json:"scp"`
}

// claims are what a token says, or what the identity server says of it (RFC 7662 uses the same names).
type claims struct {
	identity
	Issuer    string           `json:"iss"`
	Audience  jwt.Audience     `json:"aud"`
	Expiry    *jwt.NumericDate `json:"exp"`
	NotBefore *jwt.NumericDate `json:"nbf"`
	IssuedAt  *jwt.NumericDate `json:"iat"`
}

// words are written as one text with blanks between them, or as a list of texts.
type words string

// UnmarshalJSON reads either form.
func (w *words) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		*w = words(text)
		return nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return errors.New("neither a text nor a list of texts")
	}
	*w = words(strings.Join(list, " "))
	return nil
}

// rules are what claims are held against.
type rules struct {
	issuer, audience string
	leeway           time.Duration
	now              func() time.Time
}

// check judges claims. All but the expiry are held against what they are there for; whoever calls knows whether there has to
// be one.
func (r *rules) check(c *claims) error {
	now := r.now()
	switch {
	case r.issuer != "" && c.Issuer != r.issuer:
		return invalid("the access token is of another issuer")
	case r.audience != "" && !c.Audience.Contains(r.audience):
		return invalid("the access token is for another audience")
	case c.Expiry != nil && !now.Before(c.Expiry.Time().Add(r.leeway)):
		return expired()
	case c.NotBefore != nil && now.Add(r.leeway).Before(c.NotBefore.Time()):
		return invalid("the access token does not hold yet")
	case c.IssuedAt != nil && now.Add(r.leeway).Before(c.IssuedAt.Time()):
		return invalid("the access token was issued in the future")
	}
	return nil
}

// client is who the token was issued to and what it may read by its scopes. An export reads whole types for a system; a
// token that is for one patient, or for what one user may see, cannot stand for that, whatever else it grants.
func (i *identity) client() (*Client, error) {
	scope := string(i.Scope + " " + i.SCP)
	for one := range strings.FieldsSeq(scope) {
		if strings.HasPrefix(one, "patient/") || strings.HasPrefix(one, "user/") {
			return nil, forbidden("exports need scopes for systems alone: the access token has one for a patient or a user")
		}
	}
	client := &Client{Scopes: ParseScopes(scope)}
	for _, name := range []string{i.ClientID, i.AuthorizedParty, i.Subject} {
		if name != "" {
			client.ID = name
			break
		}
	}
	return client, nil
}

// exporting is client for one whom nobody else judges: it must have a name, which jobs belong to, and a scope.
func (i *identity) exporting() (*Client, error) {
	client, err := i.client()
	switch {
	case err != nil:
		return nil, err
	case client.ID == "":
		return nil, invalid("the access token names no client")
	case len(client.Scopes) == 0:
		return nil, forbidden("the access token has no scope for exports, such as system/Patient.rs or system/*.read")
	}
	return client, nil
}

// isObject tells whether a part of a token is a JSON object, as the header of a JWT is.
func isObject(part string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(raw, &map[string]json.RawMessage{}) == nil
}

// Accepted reads who sent a request from a token that the FHIR server has accepted; nothing of it is checked here. Where it
// says nothing, because there is none or it is not a JWT, the client has no ID. What the client may read is the server's to
// say: Scopes is nil. It fails with a *Refusal where the token is for a patient or a user.
func Accepted(header http.Header) (*Client, error) {
	token, err := bearer(header)
	var refused *Refusal
	if errors.As(err, &refused) && refused.Challenge == challenge { // there is none: the server has accepted something else
		return &Client{}, nil
	}
	if err != nil { // which of two headers it has looked at, nobody knows
		return nil, err
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 || !isObject(parts[0]) {
		return &Client{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var said identity
	if err != nil || json.Unmarshal(raw, &said) != nil {
		return nil, forbidden("what the access token says of its client and its scopes cannot be read")
	}
	client, err := said.client()
	if err != nil {
		return nil, err
	}
	client.Scopes = nil
	return client, nil
}
