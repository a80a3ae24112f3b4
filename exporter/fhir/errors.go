package fhir

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrMalformed is returned when an answer of status 200 is not what was asked for: a login page, a Bundle of another
// kind, JSON that is cut. It says nothing about the data, so the request may be repeated.
var ErrMalformed = errors.New("malformed answer")

// ErrNotApplied is returned when the self link of a page lacks a parameter of Query.Filter: the server tells by it which
// parameters it has applied (FHIR, section "Self link"), so that its rows are more than was asked for.
var ErrNotApplied = errors.New("search parameter was not applied")

// ErrTooLarge is returned for a page or a resource above the limit of its size. The same request finds it again.
var ErrTooLarge = errors.New("too large")

// ErrForeignLink is returned when a next link leaves the server. It is never followed.
var ErrForeignLink = errors.New("next link leaves the server")

// ResponseError is an answer of the upstream that is not a success.
type ResponseError struct {
	// Op is the request's method and the FHIR type or interaction, without ids and values: "search Observation".
	Op         string
	StatusCode int
	// Codes are the issue codes of the OperationOutcome, if there was one.
	Codes []string
	// RetryAfter is the pause that the server asked for, 0 if none.
	RetryAfter time.Duration
	// Challenge are the WWW-Authenticate headers: how the server wants to be told who asks.
	Challenge []string
}

// Error names the request, the status and the issue codes; the outcome's text may hold values and is left out.
func (e *ResponseError) Error() string {
	if len(e.Codes) == 0 {
		return fmt.Sprintf("%s: status %d", e.Op, e.StatusCode)
	}
	return fmt.Sprintf("%s: status %d (%s)", e.Op, e.StatusCode, strings.Join(e.Codes, ", "))
}

// Temporary tells whether the same request may succeed later by itself.
func (e *ResponseError) Temporary() bool {
	switch e.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return true
	}
	return false
}

// NotOffered tells whether the server does not know the interaction at all.
func (e *ResponseError) NotOffered() bool {
	switch e.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// StatusOf returns the HTTP status of a ResponseError, 0 for any other error.
func StatusOf(err error) int {
	var response *ResponseError
	if errors.As(err, &response) {
		return response.StatusCode
	}
	return 0
}

// TimedOut tells whether the server took too long: no answer in time, an answer that stands still, 408, or a 504 of what
// stands in front of it.
func TimedOut(err error) bool {
	var timeout net.Error
	switch status := StatusOf(err); {
	case status == http.StatusRequestTimeout, status == http.StatusGatewayTimeout, errors.Is(err, errStalled):
		return true
	case errors.Is(err, context.Canceled):
		return false
	}
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Broken tells whether a request ended without a whole answer, and not by its sender: refused, reset, cut, late.
func Broken(err error) bool {
	var connection *connectionError
	return errors.As(err, &connection) && !errors.Is(err, context.Canceled)
}

// unreachable hides the text of a network error, which may hold a URL with search values, behind its kind.
func unreachable(op string, err error) error { return &connectionError{op: op, err: err} }

// connectionError is a request without an answer. It unwraps to its cause, which is not printed.
type connectionError struct {
	op  string
	err error
}

func (e *connectionError) Error() string {
	var op interface{ Timeout() bool }
	switch {
	case errors.Is(e.err, context.Canceled):
		return e.op + ": " + context.Canceled.Error()
	case errors.As(e.err, &op) && op.Timeout():
		return e.op + ": no answer in time"
	}
	return e.op + ": connection failed: " + Cause(e.err)
}

func (e *connectionError) Unwrap() error { return e.err }

// Cause names a network error for logs and messages. Only kinds whose text is the system's own are quoted: that of the others may
// hold the URL or a piece of what the server sent.
func Cause(err error) string {
	var errno syscall.Errno
	var lookup *net.DNSError
	var certificate *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.Is(err, errStalled):
		return errStalled.Error()
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &lookup):
		return "the host name cannot be looked up"
	case errors.As(err, &certificate):
		return "the certificate is not trusted"
	case errors.Is(err, context.Canceled):
		return context.Canceled.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed before the end of the answer"
	}
	return "no valid HTTP answer"
}

// maxRetryAfter bounds what a server can ask for, so that a nonsensical number does not overflow.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads the pause from Retry-After (seconds or a date) or Microsoft's x-ms-retry-after-ms.
func retryAfter(header http.Header, now time.Time) time.Duration {
	for _, row := range []struct {
		name string
		unit time.Duration
	}{{"X-Ms-Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		if n, err := strconv.ParseInt(header.Get(row.name), 10, 64); err == nil && n > 0 {
			return time.Duration(min(n, int64(maxRetryAfter/row.unit))) * row.unit
		}
	}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date // the clock that the server counts by
	}
	if at, err := http.ParseTime(header.Get("Retry-After")); err == nil && at.After(now) {
		return min(at.Sub(now), maxRetryAfter)
	}
	return 0
}
