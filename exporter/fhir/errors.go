package fhir

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ErrMalformed is returned when an answer of status 200 is not what was asked for: a login page, a Bundle of another
// kind, JSON that is cut. It says nothing about the data, so the request may be repeated.
var ErrMalformed = errors.New("malformed answer")

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

// unreachable hides the text of a network error, which may hold a URL with search values, behind its kind.
func unreachable(op string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", op, err)
	default:
		return &connectionError{op: op, err: err}
	}
}

// connectionError is a request without an answer. It unwraps to its cause, which is not printed.
type connectionError struct {
	op  string
	err error
}

func (e *connectionError) Error() string {
	var op interface{ Timeout() bool }
	if errors.As(e.err, &op) && op.Timeout() {
		return e.op + ": no answer in time"
	}
	return e.op + ": connection failed: " + innermost(e.err)
}

func (e *connectionError) Unwrap() error { return e.err }

// innermost gives the text of the last error in a chain: "connection refused", not the URL around it.
func innermost(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// retryAfter reads the pause from Retry-After (seconds or a date) or Microsoft's x-ms-retry-after-ms.
func retryAfter(header http.Header, now time.Time) time.Duration {
	if ms, err := strconv.Atoi(header.Get("X-Ms-Retry-After-Ms")); err == nil && ms > 0 {
		return time.Duration(ms) * time.Millisecond
	}
	value := header.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}
