package fhir_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

func TestNewClientRefusesAddressesThatAreNoBase(t *testing.T) {
	for _, base := range []string{
		"", "localhost:8080/fhir", "ftp://x/fhir", "http://", "http://x/fhir?a=b", "http://x/fhir#f",
		"http://user:secret@x/fhir", "http://x/%zz",
	} {
		client, err := fhir.NewClient(fhir.Config{BaseURL: base})
		if err == nil || client != nil {
			t.Errorf("%q: accepted", base)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	client, err := fhir.NewClient(fhir.Config{BaseURL: "http://x/fhir//", PublicBase: "https://y/r4/"})
	if err != nil || client.Base() != "http://x/fhir" {
		t.Fatalf("%v, %v", client, err)
	}
	if got := strings.Join(client.Bases(), " "); got != "http://x/fhir https://y/r4" {
		t.Errorf("bases %q", got)
	}
}

// recorded answers every request with body and keeps the last one.
func recorded(body string) (*httpmock.MockTransport, **http.Request) {
	mock, last := httpmock.NewMockTransport(), new(*http.Request)
	mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
		*last = r
		return httpmock.NewStringResponse(http.StatusOK, body), nil
	})
	return mock, last
}

func TestSearchSendsTheSidecarsOwnHeaders(t *testing.T) {
	mock, last := recorded(searchset())
	client, err := fhir.NewClient(fhir.Config{
		BaseURL: upstreamBase, PublicBase: publicBase, Host: "tenant.example", Transport: mock,
		Credentials: fhir.Static{"Authorization": {"Bearer own"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := client.Search(t.Context(), fhir.Query{Type: "Patient", Count: 5})
	if err != nil {
		t.Fatal(err)
	}
	if err := page.Close(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]string{
		"Accept": "application/fhir+json", "Authorization": "Bearer own", "Cache-Control": "no-cache",
		"Prefer": "handling=strict", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "public.example",
		"X-Forwarded-Prefix": "",
	} {
		if got := (*last).Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if (*last).Host != "tenant.example" || (*last).URL.Host != "upstream.example:8080" {
		t.Errorf("host %q at %q", (*last).Host, (*last).URL.Host)
	}
	if want := upstreamBase + "/Patient?_count=5"; (*last).URL.String() != want {
		t.Errorf("address %q, want %q", (*last).URL, want)
	}
}

// Ensure a check in a client's name carries that client's credentials, and never the sidecar's.
func TestAccessIsAskedWithTheClientsCredentialsAlone(t *testing.T) {
	mock, last := recorded(`{"resourceType":"Bundle","type":"searchset"}`)
	client := mockClient(t, mock)
	for _, test := range []struct {
		header http.Header
		want   string
	}{{http.Header{"Authorization": {"Bearer theirs"}}, "Bearer theirs"}, {http.Header{}, ""}, {nil, ""}} {
		if err := client.MaySearch(t.Context(), "Patient", test.header); err != nil {
			t.Fatal(err)
		}
		if got := (*last).Header.Get("Authorization"); got != test.want {
			t.Errorf("sent %q, want %q", got, test.want)
		}
		if _, err := client.MayRead(t.Context(), "Group", "g", test.header); !errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("MayRead took a Bundle for a Group: %v", err)
		}
		if got := (*last).Header.Get("Authorization"); got != test.want {
			t.Errorf("read sent %q, want %q", got, test.want)
		}
		if len(test.header) > 1 {
			t.Errorf("the caller's header was changed: %v", test.header)
		}
	}
	if err := answering(t, http.StatusForbidden, "").MaySearch(t.Context(), "Patient", nil); fhir.StatusOf(err) != http.StatusForbidden {
		t.Errorf("got %v, want the 403", err)
	}
	if err := answering(t, http.StatusOK, "<html>").MaySearch(t.Context(), "Patient", nil); !errors.Is(err, fhir.ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
}

func TestReadReturnsOneLineOfTheServersBytes(t *testing.T) {
	client := answering(t, http.StatusOK, "{ \"resourceType\" : \"Group\",\n \"quantity\": 1.10 }\n")
	got, err := client.Read(t.Context(), "Group", "a/b?c")
	if want := `{"resourceType":"Group","quantity":1.10}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	if _, err := client.Read(t.Context(), "Patient", "1"); !errors.Is(err, fhir.ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed for another type", err)
	}
}

func TestVReadAsksForOneVersion(t *testing.T) {
	mock, last := recorded(`{"resourceType":"Patient","id":"1"}`)
	got, err := mockClient(t, mock).VRead(t.Context(), "Patient", "a/b", "2 3")
	if err != nil || string(got) != `{"resourceType":"Patient","id":"1"}` {
		t.Errorf("got %s, %v", got, err)
	}
	if got := (*last).URL.EscapedPath(); got != "/fhir/Patient/a%2Fb/_history/2%203" {
		t.Errorf("asked %s", got)
	}
}

// Ensure a client that was told so counts by _total=accurate.
func TestCountSpeaksAsTheProfileSays(t *testing.T) {
	mock, last := recorded(`{"resourceType":"Bundle","type":"searchset","total":3}`)
	client := mockClient(t, mock)
	client.Adopt(&fhir.Profile{CountMethod: fhir.CountTotal})
	if n, err := client.Count(t.Context(), fhir.Query{Type: "Patient", Count: 50}); n != 3 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if got, want := (*last).URL.RawQuery, "_total=accurate&_count=1"; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestCountNeedsATotal(t *testing.T) {
	n, err := answering(t, http.StatusOK, `{"resourceType":"Bundle","type":"searchset","total":7}`).Count(t.Context(), fhir.Query{Type: "Patient"})
	if n != 7 || err != nil {
		t.Errorf("got %d, %v; want 7", n, err)
	}
	if _, err := answering(t, http.StatusOK, searchset()).Count(t.Context(), fhir.Query{Type: "Patient"}); !errors.Is(err, fhir.ErrMalformed) {
		t.Errorf("got %v, want ErrMalformed", err)
	}
}

func TestCountLeavesTheCallersQueryAlone(t *testing.T) {
	criteria := make([]fhir.QueryParam, 1, 4)
	criteria[0] = fhir.QueryParam{Name: "patient", Value: "1"}
	q := fhir.Query{Type: "Observation", Criteria: criteria, Sort: "_lastUpdated", Count: 9}
	mock, last := recorded(`{"resourceType":"Bundle","type":"searchset","total":0}`)
	if _, err := mockClient(t, mock).Count(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if got, want := (*last).URL.RawQuery, "patient=1&_summary=count"; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
	if got := criteria[:2][1]; got != (fhir.QueryParam{}) {
		t.Errorf("wrote %v behind the caller's criteria", got)
	}
}

func TestNowIsTheServersClock(t *testing.T) {
	const bundle = `{"resourceType":"Bundle","meta":{"lastUpdated":"2024-05-01T12:00:00.5Z"}}`
	for _, test := range []struct {
		name, date, body string
		want             time.Time // zero: ours
	}{
		{"Date", "Wed, 01 May 2024 12:00:00 GMT", `{}`, when},
		{"Date before the Bundle's", "Wed, 01 May 2024 12:00:00 GMT", bundle, when},
		{"Bundle without Date (Firely)", "", bundle, when.Add(500 * time.Millisecond)},
		{"damaged Date", "yesterday", bundle, when.Add(500 * time.Millisecond)},
		{"neither", "", `{}`, time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			mock := httpmock.NewMockTransport()
			responder := httpmock.NewStringResponder(http.StatusOK, test.body)
			if test.date != "" {
				responder = responder.HeaderSet(http.Header{"Date": {test.date}})
			}
			mock.RegisterNoResponder(responder)
			began := time.Now()
			got, err := mockClient(t, mock).Now(t.Context(), "Patient")
			if err != nil {
				t.Fatal(err)
			}
			if test.want.IsZero() && got.Before(began) || !test.want.IsZero() && !got.Equal(test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// still is a body that gives its bytes and then nothing until the request ends.
type still struct {
	text *strings.Reader
	done <-chan struct{}
}

func (s *still) Read(p []byte) (int, error) {
	if s.text.Len() > 0 {
		return s.text.Read(p)
	}
	<-s.done
	return 0, context.Canceled
}

func (*still) Close() error { return nil }

// Ensure a body that stands still ends, as trouble of the connection and not as if the caller had cancelled.
func TestStalledBodyEndsAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mock := httpmock.NewMockTransport()
		mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
			body := &still{strings.NewReader(searchset()[:60]), r.Context().Done()}
			return &http.Response{StatusCode: http.StatusOK, Body: body, Request: r}, nil
		})
		page, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = read(page)
		if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("got %v, want trouble with the connection", err)
		}
		if got := time.Since(began); got != time.Minute {
			t.Errorf("after %v, want a minute", got)
		}
	})
}

// Ensure a slow body that moves is read to its end.
func TestSlowBodyIsNotStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mock := httpmock.NewMockTransport()
		mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
			reader, writer := io.Pipe()
			go func() {
				for _, c := range []byte(searchset()) {
					time.Sleep(50 * time.Second) // fake time of the bubble
					_, _ = writer.Write([]byte{c})
				}
				_ = writer.Close()
			}()
			return &http.Response{StatusCode: http.StatusOK, Body: reader, Request: r}, nil
		})
		page, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read(page); err != nil {
			t.Error(err)
		}
	})
}

func TestCancelEndsAHangingRequest(t *testing.T) {
	server, client := start(t, fhirtest.Plain())
	ctx, cancel := context.WithCancel(t.Context())
	server.Fail(fhirtest.Fault{Hang: true, Do: func(*http.Request) { cancel() }})
	if _, err := client.Search(ctx, fhir.Query{Type: "Patient"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cancellation", err)
	}
}

func TestDamagedAnswersOfARealConnectionAreMalformed(t *testing.T) {
	server, client := start(t, fhirtest.Plain())
	if err := server.Put([]byte(`{"resourceType":"Patient","id":"1","text":"` + strings.Repeat("x", 10_000) + `"}`)); err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]fhirtest.Fault{
		"cut": {CutBody: true}, "cut, chunked": {CutBody: true, Chunked: true}, "HTML": {HTML: true},
	} {
		server.Fail(fault)
		page, err := client.Search(t.Context(), fhir.Query{Type: "Patient"})
		if err == nil {
			_, err = read(page)
		}
		if !errors.Is(err, fhir.ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}

func TestObserveIsToldEveryRequest(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	var got []string
	client, err := fhir.NewClient(fhir.Config{BaseURL: web.URL, Observe: func(asked string, status int, took time.Duration) {
		got = append(got, fmt.Sprint(asked, " ", status, " ", took > 0))
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, first := client.Search(t.Context(), fhir.Query{Type: "Patient"})
	web.Close()
	_, second := client.Search(t.Context(), fhir.Query{Type: "Patient"})
	if want := []string{"search 404 true", "search 0 true"}; first == nil || second == nil || !slices.Equal(got, want) {
		t.Errorf("told %q (%v, %v), want %q", got, first, second, want)
	}
}

// Ensure HAPI is asked in its own dialect, once its statement is known.
func TestHAPIIsAskedInItsDialect(t *testing.T) {
	server, client := start(t, fhirtest.HAPI())
	if _, err := client.Capabilities(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		query       fhir.Query
		cache, want string
	}{
		{fhir.Query{Count: 500}, "no-store, max-results=500", "_count=500&_pretty=false"},
		{fhir.Query{Count: 1001}, "no-cache", "_count=1001&_pretty=false"},
		{fhir.Query{Count: 500, ServerPages: true}, "no-cache", "_count=500&_pretty=false"},
		{fhir.Query{}, "no-cache", "_pretty=false"},
	} {
		test.query.Type = "Patient"
		server.ResetRequests()
		page, err := client.Search(t.Context(), test.query)
		if err != nil {
			t.Fatal(err)
		}
		if err := page.Close(); err != nil {
			t.Error(err)
		}
		got := server.Requests()[0]
		if got.Header.Get("Cache-Control") != test.cache || got.RawQuery != test.want {
			t.Errorf("%+v: asked %q with %q", test.query, got.RawQuery, got.Header.Get("Cache-Control"))
		}
	}
}
