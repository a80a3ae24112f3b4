package fhir_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

const (
	upstreamBase = "http://upstream.example:8080/fhir"
	publicBase   = "https://public.example/r4"
)

// mockClient returns a client whose requests reach the given transport and nothing else.
func mockClient(t testing.TB, transport http.RoundTripper) *fhir.Client {
	t.Helper()
	client, err := fhir.NewClient(fhir.Config{
		BaseURL: upstreamBase, PublicBase: publicBase, Transport: transport,
		Credentials: fhir.Static{"Authorization": {"Bearer secret-token"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// answering returns a client that gets the same answer to every request.
func answering(t testing.TB, status int, body string) *fhir.Client {
	t.Helper()
	mock := httpmock.NewMockTransport()
	mock.RegisterNoResponder(httpmock.NewStringResponder(status, body))
	return mockClient(t, mock)
}

// start runs a server with the personality and returns it with a client.
func start(t *testing.T, p fhirtest.Personality) (*fhirtest.Server, *fhir.Client) {
	t.Helper()
	server := fhirtest.New(p, "/fhir")
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: web.URL + "/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	return server, client
}

// row is what a test compares of an entry.
type row struct {
	Type, ID, Version, Updated, Mode string
	Line                             string
	Deleted                          bool
}

// read reads a whole page.
func read(page *fhir.Page) ([]row, error) {
	var rows []row
	err := page.Each(func(e *fhir.Entry) error {
		r := row{Type: e.Type, ID: e.ID, Version: e.Version, Mode: e.Mode, Line: string(e.Resource), Deleted: e.Deleted}
		if !e.LastUpdated.IsZero() {
			r.Updated = e.LastUpdated.Format(time.RFC3339Nano)
		}
		rows = append(rows, r)
		return nil
	})
	return rows, err
}

// search reads the first page of a search whose answer is body.
func search(t testing.TB, body string) ([]row, *fhir.Page, error) {
	t.Helper()
	page, err := answering(t, http.StatusOK, body).Search(t.Context(), fhir.Query{Type: "Patient"})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := read(page)
	return rows, page, err
}

var when = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
