package fhir_test

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// Ensure that no kind of request follows a redirect, and so none takes the credentials to another server.
func TestNoRequestFollowsARedirect(t *testing.T) {
	var led atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	t.Cleanup(elsewhere.Close)
	var status atomic.Int32
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", elsewhere.URL+r.URL.Path)
		w.WriteHeader(int(status.Load()))
	}))
	t.Cleanup(upstream.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: upstream.URL + "/fhir", Credentials: fhir.Static{"Authorization": {"Bearer x"}}})
	if err != nil {
		t.Fatal(err)
	}
	query := fhir.Query{Type: "Patient"}
	for _, code := range []int32{301, 302, 303, 307, 308} {
		status.Store(code)
		for name, ask := range map[string]func() error{
			"search":  func() error { _, err := client.Search(t.Context(), query); return err },
			"history": func() error { _, err := client.History(t.Context(), "Patient", "1", when, 1); return err },
			"page": func() error {
				_, err := client.Follow(t.Context(), "Patient", "searchset", upstream.URL+"/fhir?p=2")
				return err
			},
			"read":     func() error { _, err := client.Read(t.Context(), "Binary", "1"); return err },
			"count":    func() error { _, err := client.Count(t.Context(), query); return err },
			"metadata": func() error { _, err := client.Capabilities(t.Context()); return err },
		} {
			if got := fhir.StatusOf(ask()); got != int(code) {
				t.Errorf("%s: got %d, want the refusal of a %d", name, got, code)
			}
		}
	}
	if n := led.Load(); n != 0 {
		t.Errorf("%d requests went to another server", n)
	}
}

// Ensure that an answer which is small on the wire, or shallow in bytes and deep in brackets, is given up within the
// bounds that hold for any answer.
func TestBombsAreBounded(t *testing.T) {
	const most = 4 << 20
	page := `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"resourceType":"Patient","id":"b","x":`
	deep := page + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}}]}"
	for name, test := range map[string]struct {
		body func() io.Reader
		want error
	}{
		"gzip of one to a thousand": {func() io.Reader { return squeezed(repeated(page+`"`, "x", "", 64<<20, "")) }, fhir.ErrTooLarge},
		"brackets without end":      {func() io.Reader { return repeated(page, "[", "", 64<<20, "") }, fhir.ErrMalformed},
		"objects without end":       {func() io.Reader { return repeated(page, `{"a":`, "", 16<<20, "") }, fhir.ErrMalformed},
		"closed brackets":           {func() io.Reader { return strings.NewReader(deep) }, fhir.ErrMalformed},
		"a number without end":      {func() io.Reader { return repeated(page, "9", "", 64<<20, "") }, fhir.ErrTooLarge},
		"a type of a wrong kind": {func() io.Reader {
			return strings.NewReader(strings.Replace(page, `"Patient"`, `["Patient"]`, 1) + "1}}]}")
		}, fhir.ErrMalformed},
		"a name of a wrong kind": {func() io.Reader { return strings.NewReader(`{"resourceType":7,"type":"searchset"}`) }, fhir.ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			mock := httpmock.NewMockTransport()
			mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
				body := test.body()
				if zipped, ok := body.(*io.PipeReader); ok { // as net/http unpacks what it asked for
					unpacked, err := gzip.NewReader(zipped)
					if err != nil {
						return nil, err
					}
					t.Cleanup(func() { _ = zipped.Close() })
					body = unpacked
				}
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(body), Request: r}, nil
			})
			client, err := fhir.NewClient(fhir.Config{BaseURL: upstreamBase, Transport: mock, Spill: t.TempDir(), MaxPage: 2 * most, MaxResource: most})
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err := client.Search(t.Context(), fhir.Query{Type: "Patient"})
			if err == nil {
				err = got.Each(func(*fhir.Entry) error { return nil })
			}
			runtime.ReadMemStats(&after)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("%d MiB were allocated", grown>>20)
			}
		})
	}
}

// squeezed compresses while it is read.
func squeezed(text io.Reader) *io.PipeReader {
	out, in := io.Pipe()
	go func() {
		packer := gzip.NewWriter(in)
		_, err := io.Copy(packer, text)
		in.CloseWithError(errors.Join(err, packer.Close()))
	}()
	return out
}
