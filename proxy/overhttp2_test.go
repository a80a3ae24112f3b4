package proxy_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"

	"sidecar/exporter/fhir"
)

// Ensure that what package fidelity asks for where both sides speak HTTP/1.1 holds for HTTP/2 too, on either side or both.
func TestForwardOverHTTP2IsNotNoticed(t *testing.T) {
	for _, front := range []fhir.Protocol{fhir.HTTP1, fhir.HTTP2, fhir.H2C} {
		for _, back := range []fhir.Protocol{fhir.HTTP1, fhir.HTTP2, fhir.H2C} {
			if front == fhir.HTTP1 && back == fhir.HTTP1 {
				continue
			}
			t.Run(strings.ReplaceAll(string(front+" to "+back), "/", ""), func(t *testing.T) {
				s := &scripted{arrived: make(chan struct{}, 1), left: make(chan error, 1)}
				client, base := spokenTo(t, front, back, s)
				client.Transport.(*http.Transport).ExpectContinueTimeout = patience
				client.Transport.(*http.Transport).DisableCompression = true
				checkInterim(t, client, base)
				checkBodiless(t, client, base)
				checkExpect(t, client, base, front)
				checkTargets(t, client, base, front)
				checkClientLeaves(t, client, base, s)
				checkAborts(t, client, base, front)
			})
		}
	}
}

// scripted is a server that does what the path says.
type scripted struct {
	// arrived is told of the first part of a request, left how its body ended.
	arrived chan struct{}
	left    chan error
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	switch r.URL.Path {
	case "/fhir/hints":
		for _, link := range []string{"<a>", "<b>"} {
			header.Set("Link", link)
			w.WriteHeader(http.StatusEarlyHints)
		}
		header.Del("Link")
		_, _ = io.WriteString(w, "final") // the client looks at it
	case "/fhir/head":
		header["Content-Type"], header["Content-Length"], header["Etag"] = []string{"a/b"}, []string{"12345"}, []string{`"x"`}
	case "/fhir/204":
		header.Set("Etag", `"x"`)
		w.WriteHeader(http.StatusNoContent)
	case "/fhir/304":
		header.Set("Etag", `"x"`)
		w.WriteHeader(http.StatusNotModified)
	case "/fhir/refuse":
		w.WriteHeader(http.StatusExpectationFailed)
	case "/fhir/accept":
		_, _ = io.Copy(w, r.Body)
	case "/fhir/upload":
		_, _ = io.ReadFull(r.Body, make([]byte, 4))
		s.arrived <- struct{}{}
		_, err := io.Copy(io.Discard, r.Body)
		s.left <- err
	case "/fhir/abort", "/fhir/abort/length":
		if strings.HasSuffix(r.URL.Path, "length") {
			header.Set("Content-Length", "10")
		}
		_, _ = io.WriteString(w, "part")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	default:
		header.Set("Got-Target", r.RequestURI)
	}
}

// answerOf sends a request and reads its answer; body may be nil.
func answerOf(t *testing.T, ctx context.Context, client *http.Client, method, address string, body io.Reader, header ...string) (answer, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(header, 2) {
		request.Header.Add(pair[0], pair[1])
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	delete(response.Header, "Date")
	return answer{response.StatusCode, response.Header, string(read)}, err
}

func checkInterim(t *testing.T, client *http.Client, base string) {
	t.Helper()
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(status int, header textproto.MIMEHeader) error {
		if status == http.StatusEarlyHints {
			hints = append(hints, header.Get("Link"))
		}
		return nil
	}})
	got, err := answerOf(t, ctx, client, http.MethodGet, base+"/hints", nil)
	if err != nil || got.body != "final" || got.header.Get("Link") != "" || !slices.Equal(hints, []string{"<a>", "<b>"}) {
		t.Errorf("interim answers: got %q, then %v, %v", hints, got, err)
	}
}

// checkBodiless looks at answers that have no body: they have the header that the server gave them, and nothing else.
func checkBodiless(t *testing.T, client *http.Client, base string) {
	t.Helper()
	for _, test := range []struct {
		method, path string
		status       int
		want         http.Header
	}{
		{http.MethodHead, "/head", 200, http.Header{"Content-Type": {"a/b"}, "Content-Length": {"12345"}, "Etag": {`"x"`}}},
		{http.MethodDelete, "/204", 204, http.Header{"Etag": {`"x"`}}},
		{http.MethodGet, "/304", 304, http.Header{"Etag": {`"x"`}}},
	} {
		got, err := answerOf(t, t.Context(), client, test.method, base+test.path, nil)
		if err != nil || got.status != test.status || got.body != "" || !maps.EqualFunc(got.header, test.want, slices.Equal) {
			t.Errorf("%s: got %v, %v", test.path, got, err)
		}
	}
}

// watchedReader is a body that knows whether somebody has wanted it.
type watchedReader struct {
	io.Reader
	wanted atomic.Bool
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.wanted.Store(true)
	return r.Reader.Read(p)
}

// checkExpect holds bodies back until the server wants them. Of one that comes over HTTP/2 a handler of net/http is not told that it is
// held back: there the proxy asks for it.
func checkExpect(t *testing.T, client *http.Client, base string, front fhir.Protocol) {
	t.Helper()
	body := &watchedReader{Reader: strings.NewReader("body")}
	got, err := answerOf(t, t.Context(), client, http.MethodPost, base+"/refuse", body, "Expect", "100-continue")
	if err != nil || got.status != http.StatusExpectationFailed || front == fhir.HTTP1 && body.wanted.Load() {
		t.Errorf("refused: got %d, body wanted: %t, %v", got.status, body.wanted.Load(), err)
	}
	body = &watchedReader{Reader: strings.NewReader("body")}
	got, err = answerOf(t, t.Context(), client, http.MethodPost, base+"/accept", body, "Expect", "100-continue")
	if err != nil || got.body != "body" {
		t.Errorf("accepted: got %v, %v", got, err)
	}
}

// checkTargets sends targets that Go would write anew, with a body of unknown length and without.
func checkTargets(t *testing.T, client *http.Client, base string, front fhir.Protocol) {
	t.Helper()
	host := strings.TrimSuffix(base, "/fhir")
	for _, path := range []string{"/fhir/Patient/a|b?c|d;e", "//fhir/a|b?c|d", "//fhir//%2F", "/fhir/../a"} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			var body io.Reader
			if method == http.MethodPost {
				body = io.MultiReader(strings.NewReader("body"))
			}
			request, err := http.NewRequestWithContext(t.Context(), method, host, body)
			if err != nil {
				t.Fatal(err)
			}
			request.URL.Opaque, request.URL.RawQuery, _ = strings.Cut(path, "?")
			if strings.HasPrefix(path, "//") {
				if front == fhir.HTTP1 && strings.Contains(path, "|") {
					continue // this client cannot
				}
				request.URL.Opaque = "//" + request.URL.Host + request.URL.Opaque
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if got := response.Header.Get("Got-Target"); got != path {
				t.Errorf("%s %s: the server is asked for %q", method, path, got)
			}
		}
	}
}

// checkClientLeaves ends a request in the midst of its body.
func checkClientLeaves(t *testing.T, client *http.Client, base string, s *scripted) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	from, to := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := answerOf(t, ctx, client, http.MethodPost, base+"/upload", from)
		ended <- err
	}()
	if _, err := io.WriteString(to, "part"); err != nil {
		t.Fatal(err)
	}
	await(t, "the first part at the server", s.arrived)
	leave()
	if err := await(t, "end of the request at the server", s.left); err == nil {
		t.Error("half a request looks whole")
	}
	_ = to.Close() // or this client of HTTP/1.1 waits for it
	if err := await(t, "end of the request", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("the client's request ended with %v", err)
	}
}

// checkAborts has the server leave in the midst of an answer. In HTTP/2 that ends the one stream and not the connection, which other
// requests have as well.
func checkAborts(t *testing.T, client *http.Client, base string, front fhir.Protocol) {
	t.Helper()
	for _, path := range []string{"/abort", "/abort/length"} {
		got, err := answerOf(t, t.Context(), client, http.MethodGet, base+path, nil)
		var reset http2.StreamError
		if got.body != "part" || front == fhir.HTTP1 && !errors.Is(err, io.ErrUnexpectedEOF) || front != fhir.HTTP1 && !errors.As(err, &reset) {
			t.Errorf("%s: got %q, %v", path, got.body, err)
		}
		reused := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { reused = got.Reused }})
		if _, err := answerOf(t, ctx, client, http.MethodGet, base+"/behind", nil); err != nil || reused != (front != fhir.HTTP1) {
			t.Errorf("behind %s: %v, over the same connection: %t", path, err, reused)
		}
	}
}
