package fhir_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// private is what no error text may show: a patient's id, a search value, a token, content and addresses.
var private = []string{"p-4711", "Miller", "secret-token", "upstream.example", "http:", "://", "/fhir", "2024-05-01"}

func wantPrivate(t *testing.T, name string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", name)
		return
	}
	for _, word := range private {
		if strings.Contains(err.Error(), word) {
			t.Errorf("%s: %q shows %q", name, err, word)
		}
	}
}

// timeout is the error of net/http for an answer that does not come: it is also context.DeadlineExceeded.
type timeout struct{}

func (timeout) Error() string        { return "net/http: timeout awaiting response headers" }
func (timeout) Timeout() bool        { return true }
func (timeout) Is(target error) bool { return target == context.DeadlineExceeded }

func TestErrorTextsHoldNoIDValueOrAddress(t *testing.T) {
	outcome := `{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"not-found","diagnostics":"Patient/p-4711 Miller"},
		{"code":"p-4711 is no code"}]}`
	for _, test := range []struct {
		name    string
		respond httpmock.Responder
	}{
		{"refusal", httpmock.NewStringResponder(http.StatusNotFound, outcome)},
		{"HTML", httpmock.NewStringResponder(http.StatusOK, "<html>Miller</html>")},
		{"cut", httpmock.NewStringResponder(http.StatusOK, `{"resourceType":"Bundle","entry":[{"resource":{"id":"p-4711`)},
		{"bad escape", httpmock.NewStringResponder(http.StatusOK, `{"Miller\x":1}`)},
		{"connection refused", httpmock.NewErrorResponder(&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")})},
		{"no answer in time", httpmock.NewErrorResponder(timeout{})},
		{"cancelled", httpmock.NewErrorResponder(context.Canceled)},
	} {
		mock := httpmock.NewMockTransport()
		mock.RegisterNoResponder(test.respond)
		client := mockClient(t, mock)
		page, err := client.Search(t.Context(), fhir.Query{
			Type: "Patient", From: when, Criteria: []fhir.QueryParam{{Name: "name", Value: "Miller"}, {Name: "_id", Value: "p-4711"}},
		})
		if err == nil {
			_, err = read(page)
		}
		wantPrivate(t, test.name+", search", err)
		_, err = client.Read(t.Context(), "Patient", "p-4711")
		wantPrivate(t, test.name+", read", err)
		_, err = client.Count(t.Context(), fhir.Query{Type: "Patient", Criteria: []fhir.QueryParam{{Name: "_id", Value: "p-4711"}}})
		wantPrivate(t, test.name+", count", err)
		page, err = client.History(t.Context(), "Patient", "p-4711", when, 1)
		if err == nil {
			_, err = read(page)
		}
		wantPrivate(t, test.name+", history", err)
	}
}

func TestTroubleWithTheConnectionKeepsItsCause(t *testing.T) {
	for _, test := range []struct {
		cause error
		want  string
	}{
		{context.Canceled, "search Patient: context canceled"},
		{timeout{}, "search Patient: no answer in time"},
		{syscall.ECONNRESET, "search Patient: connection failed: connection reset by peer"},
		{errors.New("odd answer: secret"), "search Patient: connection failed: no valid HTTP answer"},
	} {
		mock := httpmock.NewMockTransport()
		mock.RegisterNoResponder(httpmock.NewErrorResponder(test.cause))
		_, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
		if !errors.Is(err, test.cause) || err.Error() != test.want {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}

func TestResponseErrorTellsWhatItMeans(t *testing.T) {
	for status, want := range map[int]struct{ temporary, notOffered bool }{
		400: {}, 401: {}, 403: {}, 404: {notOffered: true}, 405: {notOffered: true}, 408: {temporary: true}, 410: {},
		429: {temporary: true}, 500: {}, 501: {notOffered: true}, 502: {temporary: true}, 503: {temporary: true}, 504: {temporary: true},
		302: {}, 202: {}, 204: {},
	} {
		_, err := answering(t, status, "").Search(t.Context(), fhir.Query{Type: "Patient"})
		var got *fhir.ResponseError
		if !errors.As(err, &got) || got.StatusCode != status || got.Op != "search Patient" {
			t.Errorf("%d: %v", status, err)
			continue
		}
		if got.Temporary() != want.temporary || got.NotOffered() != want.notOffered {
			t.Errorf("%d: temporary %v, not offered %v", status, got.Temporary(), got.NotOffered())
		}
	}
	if got := fhir.StatusOf(errors.New("x")); got != 0 {
		t.Errorf("status of another error is %d", got)
	}
}

func TestRetryAfterIsReadInAllItsForms(t *testing.T) {
	date := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for _, test := range []struct {
		name   string
		header http.Header
		least  time.Duration
		most   time.Duration
	}{
		{"none", http.Header{}, 0, 0},
		{"seconds", http.Header{"Retry-After": {"7"}}, 7 * time.Second, 7 * time.Second},
		{"date", http.Header{"Retry-After": {date(time.Minute)}}, 50 * time.Second, time.Minute},
		{"date in the past", http.Header{"Retry-After": {date(-time.Minute)}}, 0, 0},
		{"date by a clock that is an hour behind", http.Header{"Date": {date(-time.Hour)}, "Retry-After": {date(-59 * time.Minute)}}, 59 * time.Second, 61 * time.Second},
		{"zero", http.Header{"Retry-After": {"0"}}, 0, 0},
		{"negative", http.Header{"Retry-After": {"-5"}}, 0, 0},
		{"text", http.Header{"Retry-After": {"soon"}}, 0, 0},
		{"a number that would overflow", http.Header{"Retry-After": {"99999999999999"}}, 24 * time.Hour, 24 * time.Hour},
		{"a date in a hundred years", http.Header{"Retry-After": {date(100 * 365 * 24 * time.Hour)}}, 24 * time.Hour, 24 * time.Hour},
		{"Microsoft's milliseconds first", http.Header{"Retry-After": {"1"}, "X-Ms-Retry-After-Ms": {"250"}}, 250 * time.Millisecond, 250 * time.Millisecond},
		{"Microsoft's, damaged", http.Header{"Retry-After": {"2"}, "X-Ms-Retry-After-Ms": {"x"}}, 2 * time.Second, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			mock := httpmock.NewMockTransport()
			mock.RegisterNoResponder(httpmock.NewStringResponder(http.StatusTooManyRequests, "").HeaderSet(test.header))
			_, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
			var got *fhir.ResponseError
			if !errors.As(err, &got) || got.RetryAfter < test.least || got.RetryAfter > test.most {
				t.Errorf("got %+v, want from %v to %v", got, test.least, test.most)
			}
		})
	}
}
