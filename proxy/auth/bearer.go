package auth

import (
	"net/http"
	"regexp"
	"strings"
)

// challenge is the WWW-Authenticate header of a 401 (RFC 6750, section 3).
const challenge = `Bearer realm="fhir"`

// maxToken is the length of the longest token that is looked at.
const maxToken = 16 << 10

// token68 is the form of a Bearer token (RFC 6750, section 2.1).
var token68 = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// bearer returns the token of a request. "Bearer" with nothing behind it is what some clients send who have none.
func bearer(header http.Header) (string, error) {
	values := header.Values("Authorization")
	if len(values) > 1 {
		return "", invalid("the request has several Authorization headers")
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(header.Get("Authorization")), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", &Refusal{http.StatusUnauthorized, "login", "this request needs an access token: Authorization: Bearer", challenge}
	}
	if len(token) > maxToken || !token68.MatchString(token) {
		return "", invalid("what stands behind Bearer is not an access token")
	}
	return token, nil
}

// invalid refuses a token that does not hold.
func invalid(text string) *Refusal {
	return &Refusal{http.StatusUnauthorized, "login", text, challenge + `, error="invalid_token"`}
}

// expired refuses a token that held once.
func expired() *Refusal {
	return &Refusal{http.StatusUnauthorized, "expired", "the access token has expired", challenge + `, error="invalid_token"`}
}

// forbidden refuses a token that holds, but is not for exports.
func forbidden(text string) *Refusal {
	return &Refusal{Status: http.StatusForbidden, Code: "forbidden", Text: text}
}

// unavailable refuses a token that cannot be checked now.
func unavailable() *Refusal {
	return &Refusal{Status: http.StatusServiceUnavailable, Code: "transient", Text: "the access token cannot be checked now: the identity server does not answer"}
}
