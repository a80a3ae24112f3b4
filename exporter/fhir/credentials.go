package fhir

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
)

// ErrCredentials is returned for a request that was not sent because the sidecar's own credentials could not be had. It says
// nothing about the upstream, and passes when whoever issues them answers again.
var ErrCredentials = errors.New("no credentials now")

// ErrClientRefused is returned where whoever issues credentials does not take the sidecar's own secret or key, or does not let it
// have what it asks for, and has not since the start. That is a fault of the configuration: it does not pass by itself.
var ErrClientRefused = fmt.Errorf("%w: the client_id, secret, key or scope of the sidecar is refused", ErrCredentials)

// Credentials say who asks the upstream. Their methods may be called from any goroutine.
type Credentials interface {
	// Header returns the headers of one request. It may ask an identity server, in bounded time, and fails with
	// ErrCredentials. The caller does not change them.
	Header(ctx context.Context) (http.Header, error)
	// Refused is told that the upstream has answered these headers with 401, and how many before them in the same request; it
	// tells whether to ask again with what Header has now.
	Refused(ctx context.Context, header http.Header, before int) bool
}

// Static are credentials that stay as they are; the zero value is none.
type Static http.Header

// Header returns them.
func (s Static) Header(context.Context) (http.Header, error) { return http.Header(s), nil }

// Refused says that there are no others.
func (Static) Refused(context.Context, http.Header, int) bool { return false }

// Basic returns the header of HTTP basic authentication (RFC 7617).
func Basic(username, password string) http.Header {
	pair := base64.StdEncoding.EncodeToString([]byte(username + ":" + password))
	return http.Header{"Authorization": {"Basic " + pair}}
}
