package proxy

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// DefaultRequestIDHeader is the header of the id in answers of our own where none is configured (FHIR, http.html, "Custom Headers").
const DefaultRequestIDHeader = "X-Request-Id"

// requestIDForm is what is believed as the id of a request: it has to be one of a resource, because OperationOutcomes carry it.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)

// RequestID returns the id of the request to which ctx belongs, empty where it has none.
func RequestID(ctx context.Context) string {
	if x := exchangeOf(ctx); x != nil {
		return x.id
	}
	return ""
}

// requestID is the id that a trusted hop has given a request, else a new one: that of an untrusted client could tell of a person,
// or be another request's.
func (p *Proxy) requestID(r *http.Request) string {
	if given := r.Header[p.RequestIDHeader]; len(given) == 1 && requestIDForm.MatchString(given[0]) && p.trusted(r.RemoteAddr) {
		return given[0]
	}
	return rand.Text()
}

// keepField has a field of ours go on although the client names it among those that end with its connection (RFC 9110, section 7.6.1):
// it means one of its own.
func keepField(header http.Header, name string) {
	connection := header["Connection"]
	if connection == nil || !named(connection, name) {
		return
	}
	options := strings.Split(strings.Join(connection, ","), ",")
	header["Connection"] = slices.DeleteFunc(options, func(option string) bool { return strings.EqualFold(strings.TrimSpace(option), name) })
}

// watchedAnswer is an answer of which the exchange notes when it begins and how long it gets, and which carries the id.
type watchedAnswer struct {
	countedAnswer
	exchange *exchange
}

// WriteHeader adds the id.
func (a *watchedAnswer) WriteHeader(status int) {
	if status >= http.StatusOK {
		a.exchange.begun()
		a.exchange.addID(a.Header())
	}
	a.countedAnswer.WriteHeader(status)
}

// addID adds the id to the head of an answer, unless the server has given one of its own.
func (x *exchange) addID(header http.Header) {
	if name := x.proxy.RequestIDHeader; name != "" && header[name] == nil {
		header[name] = []string{x.id}
	}
}

// Write begins the answer where nobody has.
func (a *watchedAnswer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.countedAnswer.Write(b)
}

// ReadFrom does so, too.
func (a *watchedAnswer) ReadFrom(from io.Reader) (int64, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.countedAnswer.ReadFrom(from)
}
