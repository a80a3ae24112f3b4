// Package auth says who a client is and what its token lets it read. It hides JOSE and OAuth: nobody else here looks
// into a token.
//
// It promises to fail closed. What cannot be checked now is refused with a status that says so; a token that names
// patients or users, and a scope that it does not understand, grant nothing. No error text and no log line of it holds a
// token or a part of one.
package auth

import (
	"context"
	"net/http"
)

// Mode says who judges the clients of our routes.
type Mode string

const (
	// Upstream asks the FHIR server with the client's own headers.
	Upstream Mode = "upstream"
	// JWT checks tokens by the keys of the identity server that issued them.
	JWT Mode = "jwt"
	// Introspection asks the identity server about each token.
	Introspection Mode = "introspection"
	// None lets everybody in, for closed networks.
	None Mode = "none"
)

// Client is who sent a request.
type Client struct {
	// ID names the client across its tokens, as their client_id, azp or sub does (in this order); empty where nothing
	// names it.
	ID string
	// Scopes bound what it may read; nil leaves that to the FHIR server.
	Scopes Scopes
}

// Authorizer says who sent a request, by its headers alone. It fails with a *Refusal.
type Authorizer interface {
	Authorize(ctx context.Context, header http.Header) (*Client, error)
}

// Refusal says why a request is not answered, in words for the client.
type Refusal struct {
	// Status is 401 where a token is missing or does not hold, 403 where it holds but is not for exports, 503 where it
	// cannot be checked now.
	Status int
	// Code is a code of FHIR's issue-type value set: login, security, expired, forbidden, transient.
	Code string
	Text string
	// Challenge is the WWW-Authenticate header of a 401, empty for the others.
	Challenge string
}

// Error is Text.
func (r *Refusal) Error() string { return r.Text }
