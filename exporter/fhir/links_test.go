package fhir_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// onlyUpstream answers at the upstream's base and fails the test for any request elsewhere.
func onlyUpstream(t *testing.T, body string) (*httpmock.MockTransport, *[]string) {
	mock, asked := httpmock.NewMockTransport(), new([]string)
	mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme+"://"+r.URL.Host != "http://upstream.example:8080" || !strings.HasPrefix(r.URL.EscapedPath(), "/fhir") {
			t.Errorf("request to %s", r.URL)
		}
		*asked = append(*asked, r.URL.String())
		return httpmock.NewStringResponse(http.StatusOK, body), nil
	})
	return mock, asked
}

func TestNextLinkIsRebasedOntoTheUpstream(t *testing.T) {
	const base = upstreamBase
	for _, test := range []struct{ name, self, next, want string }{
		{"of the upstream's base", "", base + "/Patient?_page=2", base + "/Patient?_page=2"},
		{"of the public base", "", publicBase + "/Patient?_page=2", base + "/Patient?_page=2"},
		{"of the base in the self link", "http://internal.example/x/Patient?a=b", "http://internal.example/x/Patient?ct=1", base + "/Patient?ct=1"},
		{"of that base itself", "http://internal.example/x/Patient?a=b", "http://internal.example/x?ct=1", base + "?ct=1"},
		{"of a base path with a capital", "http://i.example/FHIR/R4/Patient?a=b", "http://i.example/FHIR/R4/Patient?p=2", base + "/Patient?p=2"},
		{"of a page token with a capital", "http://i.example/Patient/__page/ABC", "http://i.example/Patient/__page/DEF", base + "/Patient/__page/DEF"},
		{"of an id with a capital", "http://i.example/Patient/X1/_history", "http://i.example/Patient/X1/_history?p=2", base + "/Patient/X1/_history?p=2"},
		{"with a doubled port", "http://i.example:80:80/fhir/Patient?a=b", "http://i.example:80:80/fhir/Patient?p=2", base + "/Patient?p=2"},
		{"of HAPI, on a base that it believes in", "", "http://localhost:8080/?_getpages=u-1&_getpagesoffset=20", base + "?_getpages=u-1&_getpagesoffset=20"},
		{"of HAPI, without its host", "", "?_getpages=u-1", base + "?_getpages=u-1"},
		{"path with the base path", "", "/fhir/Patient?page=2", base + "/Patient?page=2"},
		{"path without the base path", "", "/Patient?page=2", base + "/Patient?page=2"},
		{"the base path alone", "", "/fhir?page=2", base + "?page=2"},
		{"path that only begins like the base path", "", "/fhirX/Patient", base + "/fhirX/Patient"},
		{"relative path", "", "Patient?page=2", base + "/Patient?page=2"},
		{"query alone", "", "?ct=abc==", base + "?ct=abc=="},
		{"no scheme", "i.example/fhir/Patient?a=b", "i.example/fhir/Patient?_skip=2", base + "/Patient?_skip=2"},
		{"query of odd bytes", "", base + "/Patient?page=a+b%20c==&_count=1&_count=2&d=../x", base + "/Patient?page=a+b%20c==&_count=1&_count=2&d=../x"},
		{"query with a blank", "", base + "/Patient?page=a b", base + "/Patient?page=a%20b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mock, asked := onlyUpstream(t, linked(test.self, test.next))
			client := mockClient(t, mock)
			page, err := client.Search(t.Context(), fhir.Query{Type: "Patient"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := read(page); err != nil {
				t.Fatal(err)
			}
			next, err := page.Next()
			if err != nil || next != test.want {
				t.Fatalf("got %q, %v; want %q", next, err, test.want)
			}
			if page, err = client.Follow(t.Context(), "Patient", "searchset", next); err != nil {
				t.Fatal(err)
			}
			if err := page.Close(); err != nil {
				t.Error(err)
			}
			if got := (*asked)[1]; got != test.want {
				t.Errorf("sent %q, want %q", got, test.want)
			}
		})
	}
}

func TestNextLinkThatLeavesTheServerIsRefused(t *testing.T) {
	for _, test := range []struct{ name, self, next string }{
		{"another host", "", "http://evil.example/fhir/Patient?page=2"},
		{"another host than the self link's", "http://i.example/fhir/Patient", "http://evil.example/fhir/Patient"},
		{"another port", "", "http://upstream.example:9/fhir/Patient"},
		{"no scheme, two slashes", "", "//evil.example/fhir/Patient"},
		{"longer host", "", "http://upstream.example:80801/fhir/Patient"},
		{"host behind an at sign", "", "http://upstream.example:8080@evil.example/fhir"},
		{"self link ends in the host", "http://i.example/Patient", "http://i.example.evil.example/Patient"},
		{"base as the beginning of a longer name", "", upstreamBase + "X/Patient"},
		{"dot segments behind the base", "", upstreamBase + "/../admin"},
		{"dot segments at the end", "", upstreamBase + "/Patient/.."},
		{"escaped dot segments", "", upstreamBase + "/%2e%2E/admin"},
		{"escaped slash", "", upstreamBase + "/..%2fadmin"},
		{"backslash", "", upstreamBase + `/..\admin`},
		{"dots with a path parameter", "", upstreamBase + "/..;x=1/admin"},
		{"dot segments behind the self link's base", "http://i.example/Patient", "http://i.example/../admin"},
		{"relative dot segments", "", "../admin"},
		{"dot segments behind the base path", "", "/fhir/../admin"},
		{"other scheme", "", "file:///etc/passwd"},
		{"opaque", "", "mailto:x"},
		{"no address", "", "http://[::1"},
		{"bad escape", "", "/Patient/%zz"},
	} {
		t.Run(test.name, func(t *testing.T) {
			mock, asked := onlyUpstream(t, linked(test.self, test.next))
			page, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := read(page); err != nil {
				t.Fatal(err)
			}
			next, err := page.Next()
			if !errors.Is(err, fhir.ErrForeignLink) || next != "" {
				t.Errorf("got %q, %v; want ErrForeignLink", next, err)
			}
			if len(*asked) != 1 {
				t.Errorf("%d requests, want 1", len(*asked))
			}
		})
	}
}

// linked is a page with links, which stand behind the entries as on some servers.
func linked(self, next string) string {
	return fmt.Sprintf(`{"resourceType":"Bundle","type":"searchset","entry":[],"link":[{"relation":"self","url":%q},{"relation":"next","url":%q}]}`, self, next)
}

func TestRedirectIsNotFollowed(t *testing.T) {
	mock := httpmock.NewMockTransport()
	mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "upstream.example:8080" {
			t.Errorf("request to %s", r.URL.Host)
		}
		answer := httpmock.NewStringResponse(http.StatusFound, "")
		answer.Header.Set("Location", "http://evil.example/fhir/Patient")
		return answer, nil
	})
	_, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Patient"})
	if got := fhir.StatusOf(err); got != http.StatusFound {
		t.Errorf("got %v, want the refusal of a 302", err)
	}
}
