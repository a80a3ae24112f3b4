package fhir_test

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// slowly answers a search with a Bundle whose second half comes when its request has waited for pause.
func slowly(pause time.Duration) http.RoundTripper {
	mock := httpmock.NewMockTransport()
	mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
		reader, writer := io.Pipe()
		go func() {
			_, err := io.WriteString(writer, `{"resourceType":"Bundle","type":"searchset",`)
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				err = r.Context().Err()
			}
			if err == nil {
				_, err = io.WriteString(writer, `"entry":[{"resource":{"resourceType":"Patient","id":"a"}}]}`)
			}
			_ = writer.CloseWithError(err) // a pipe's Close does not fail
		}()
		return &http.Response{StatusCode: http.StatusOK, Body: reader, Request: r}, nil
	})
	return mock
}

// Ensure an answer that stands still ends as a timeout of the server, and one that waits for its reader does not: a page that is
// asked for ahead may lie there while a file is stored.
func TestAnswerThatStandsStill(t *testing.T) {
	for name, test := range map[string]struct {
		server, reader time.Duration
		late           bool
	}{
		"server pauses":   {server: 50 * time.Second},
		"server is gone":  {server: 70 * time.Second, late: true},
		"reader is away":  {reader: time.Hour},
		"reader, then no": {reader: time.Hour, server: time.Hour + 70*time.Second, late: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				page, err := mockClient(t, slowly(test.server)).Search(t.Context(), fhir.Query{Type: "Patient"})
				if err != nil {
					t.Fatal(err)
				}
				<-time.After(test.reader)
				err = page.Each(func(*fhir.Entry) error { return nil })
				if fhir.TimedOut(err) != test.late || !test.late && err != nil {
					t.Errorf("got %v, want a timeout: %v", err, test.late)
				}
			})
		})
	}
}
