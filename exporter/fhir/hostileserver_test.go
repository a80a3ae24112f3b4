package fhir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"sidecar/exporter/fhir"
)

// grown tells how much a call allocates in all.
func grown(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// flood sends a text again and again until nobody takes it, or most bytes were sent.
func flood(w io.Writer, text string, most int) (sent int) {
	chunk := strings.Repeat(text, 1+(64<<10)/len(text))
	for sent < most {
		n, err := io.WriteString(w, chunk)
		if sent += n; err != nil {
			break
		}
	}
	return sent
}

// hijack is the bare connection of a request.
func hijack(t *testing.T, w http.ResponseWriter) io.WriteCloser {
	t.Helper()
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
	}
	return conn
}

// Ensure that answers without bounds are given up early over a real connection, with an error that says what is wrong and
// holds nothing of them.
func TestAnswersWithoutBoundsAreGivenUp(t *testing.T) {
	const most = 200 << 20
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter) (sent int)
		ask    func(ctx context.Context, client *fhir.Client) error
		want   func(error) bool
		bound  int // of what is taken
	}{
		"headers without end": {
			func(w http.ResponseWriter) int {
				conn := hijack(t, w)
				defer func() { _ = conn.Close() }()
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
				return flood(conn, "X-Marked: marked-in-a-header\r\n", most)
			}, searchOne, fhir.Broken, 8 << 20,
		},
		"one header of megabytes": {
			func(w http.ResponseWriter) int {
				w.Header().Set("X-Marked", strings.Repeat("marked-in-a-header", 200_000))
				_, _ = io.WriteString(w, searchset())
				return 0
			}, searchOne, fhir.Broken, 0,
		},
		"interim answers without end": {
			func(w http.ResponseWriter) int {
				conn := hijack(t, w)
				defer func() { _ = conn.Close() }()
				return flood(conn, "HTTP/1.1 103 Early Hints\r\nX-Marked: marked-in-a-header\r\n\r\n", most)
			}, searchOne, fhir.Broken, 8 << 20,
		},
		"a CapabilityStatement of 200 MB": {
			func(w http.ResponseWriter) int {
				_, _ = io.WriteString(w, `{"resourceType":"CapabilityStatement","description":"`)
				return flood(w, "marked-in-a-body ", most)
			}, readStatement, func(err error) bool { return errors.Is(err, fhir.ErrMalformed) }, 80 << 20,
		},
		"an OperationOutcome of 200 MB": {
			func(w http.ResponseWriter) int {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"resourceType":"OperationOutcome","issue":[{"diagnostics":"`)
				return flood(w, "marked-in-a-body ", most)
			}, searchOne, func(err error) bool { return fhir.StatusOf(err) == http.StatusBadRequest }, 16 << 20,
		},
		"a Group of 200 MB": {
			func(w http.ResponseWriter) int {
				_, _ = io.WriteString(w, `{"resourceType":"Group","member":[`)
				return flood(w, `{"entity":{"reference":"marked-in-a-body"}},`, most)
			}, readGroup, func(err error) bool { return errors.Is(err, fhir.ErrMalformed) }, 80 << 20,
		},
		"XML, though JSON was asked for": {
			func(w http.ResponseWriter) int {
				w.Header().Set("Content-Type", "application/fhir+xml")
				return flood(w, "<Bundle>marked-in-a-body</Bundle>", 1)
			}, searchOne, func(err error) bool { return errors.Is(err, fhir.ErrMalformed) }, 1 << 20,
		},
		"bytes that are called a Bundle": {
			func(w http.ResponseWriter) int {
				w.Header().Set("Content-Type", "application/fhir+json")
				return flood(w, "\x00\xff\x7fELF", 1)
			}, searchOne, func(err error) bool { return errors.Is(err, fhir.ErrMalformed) }, 1 << 20,
		},
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan int, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { sent <- test.answer(w) }))
			defer server.Close()
			client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir", Spill: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			if n := grown(func() { err = test.ask(t.Context(), client) }); n > 400<<20 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
			if !test.want(err) || strings.Contains(err.Error(), "marked") {
				t.Errorf("got %v", err)
			}
			if n := <-sent; n > test.bound {
				t.Errorf("%d MiB were taken", n>>20)
			}
		})
	}
}

func searchOne(ctx context.Context, client *fhir.Client) error {
	page, err := client.Search(ctx, fhir.Query{Type: "Patient", Count: 1})
	if err == nil {
		err = page.Each(func(*fhir.Entry) error { return nil })
	}
	return err
}

func readStatement(ctx context.Context, client *fhir.Client) error {
	_, err := client.Capabilities(ctx)
	return err
}

func readGroup(ctx context.Context, client *fhir.Client) error {
	_, err := client.Read(ctx, "Group", "g")
	return err
}

// Ensure that what the server calls a type or an id stays one segment of a path below the base, or is not asked for at all.
func TestNamesOfTheServerStayInTheirPlace(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.RequestURI)
		if r.URL.Path == "/fhir/metadata" {
			var types bytes.Buffer
			for _, typ := range []string{"Patient", "../Secret", "Patient/1", "Patient?x=", "", ".", "patient", "A b", strings.Repeat("A", 65)} {
				_, _ = fmt.Fprintf(&types, `,{"type":%q,"interaction":[{"code":"search-type"}]}`, typ)
			}
			_, _ = fmt.Fprintf(w, `{"resourceType":"CapabilityStatement","rest":[{"mode":"server","resource":[%s]}]}`, types.String()[1:])
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(server.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir", Credentials: fhir.Static{"Authorization": {"Bearer x"}}})
	if err != nil {
		t.Fatal(err)
	}
	known, err := client.Capabilities(t.Context())
	if err != nil || len(known.Types) != 1 || known.Types[0] != "Patient" {
		t.Errorf("types: got %q, %v", known.Types, err)
	}
	for id, path := range map[string]string{
		"..": "", ".": "", "../Secret/1": "", `..\Secret`: "", "..;x": "", "a/../../b": "",
		"a/b": "a%2Fb", "a?b": "a%3Fb", "a#b": "a%23b", "%2e%2e": "%252e%252e", "a b": "a%20b", "a\r\nX: y": "a%0D%0AX:%20y", "a\x00": "a%00", "-.": "-.",
	} {
		for way, ask := range map[string]struct {
			do   func() error
			path string
		}{
			"read":    {func() error { _, err := client.Read(t.Context(), "Patient", id); return err }, "/fhir/Patient/" + path},
			"row":     {func() error { _, err := client.ReadEntry(t.Context(), "Patient", id); return err }, "/fhir/Patient/" + path},
			"version": {func() error { _, err := client.VRead(t.Context(), "Patient", "1", id); return err }, "/fhir/Patient/1/_history/" + path},
			"history": {func() error { _, err := client.History(t.Context(), "Patient", id, when, 1); return err }, "/fhir/Patient/" + path + "/_history"},
			"compartment": {func() error {
				_, err := client.Search(t.Context(), fhir.Query{Type: "Condition", Patient: id})
				return err
			}, "/fhir/Patient/" + path + "/Condition"},
			"as a client":  {func() error { _, err := client.MayRead(t.Context(), "Patient", id, nil); return err }, "/fhir/Patient/" + path},
			"with a value": {func() error { return valueOf(t, client, id) }, "/fhir/Patient"},
		} {
			mu.Lock()
			asked = nil
			mu.Unlock()
			if got := fhir.StatusOf(ask.do()); got != http.StatusNotFound {
				t.Errorf("%s of %q: got %d", way, id, got)
			}
			mu.Lock()
			got := strings.Join(asked, " ")
			mu.Unlock()
			got, _, _ = strings.Cut(got, "?")
			if want := ask.path; got != want && (path != "" || got != "" || way == "with a value") {
				t.Errorf("%s of %q: the server is asked for %q, want %q", way, id, got, want)
			}
		}
	}
}

// valueOf puts an id where values stand.
func valueOf(t *testing.T, client *fhir.Client, id string) error {
	t.Helper()
	_, err := client.Search(t.Context(), fhir.Query{Type: "Patient"}.With(fhir.QueryParam{Name: "_id", Value: id}))
	return err
}
