package conformance

import (
	"crypto/x509"
	"strings"
)

// Server is a server under test and what the suite may do there. Only Base must be given.
type Server struct {
	// Base is the FHIR base, without a slash at the end.
	Base string
	// Parallel is how many exports the suite may have under way at once, 0 for one.
	Parallel int
	// Token gives a bearer token; nil where the server asks for none. Two calls give two tokens.
	Token func(Grant) string
	// DeniedGroup is the id of a Group that is there and that no client may export; empty where there is none.
	DeniedGroup string
	// Writable tells that the suite may create, update and delete resources at Base. It deletes them in the end.
	Writable bool
	// Secure is Base behind TLS; empty where there is none. Base itself counts where it begins with https.
	Secure string
	// Roots are the authorities that Secure's certificate is checked with; nil for those of the machine.
	Roots *x509.CertPool
	// Fail makes the FHIR server behind refuse what exports read of a type with a status until it is mended. An empty
	// type means whatever it is asked, by clients too. Nil where the suite cannot do that.
	Fail func(typ string, status int) (mend func())
	// Hold makes the FHIR server behind answer exports' reads of a type only when it is let go by all who hold it; release
	// may be called again. Nil where the suite cannot do that.
	Hold func(typ string) (release func())
	// TokenFiles is the FHIR base of an installation over the same data whose files need a token, as the status does; empty
	// where there is none, or where those at Base do.
	TokenFiles string
	// ShortLived is the FHIR base of an installation over the same data whose exports expire within some seconds; empty
	// where there is none.
	ShortLived string
}

// Grant is what a token is for. The zero Grant is the first client with all rights.
type Grant struct {
	// Other tells that a second client is meant.
	Other bool
	// Scopes are SMART scopes, such as system/Patient.rs; empty means all.
	Scopes string
	// Expired tells that the token is no longer good.
	Expired bool
}

// What a row may need.
const (
	needsTokens     = "tokens"
	needsWrites     = "the right to write"
	needsTLS        = "an address behind TLS"
	needsFail       = "a hand on the FHIR server behind"
	needsShortLived = "an installation with a short retention"
	needsDenied     = "a Group that is denied"
)

// has tells whether the suite has an access.
func (s *Server) has(access string) bool {
	switch access {
	case needsTokens:
		return s.Token != nil
	case needsWrites:
		return s.Writable
	case needsTLS:
		return s.secure() != ""
	case needsFail:
		return s.Fail != nil && s.Hold != nil
	case needsShortLived:
		return s.ShortLived != ""
	case needsDenied:
		return s.DeniedGroup != ""
	}
	return false
}

// secure is the address behind TLS.
func (s *Server) secure() string {
	if s.Secure == "" && strings.HasPrefix(s.Base, "https://") {
		return s.Base
	}
	return s.Secure
}
