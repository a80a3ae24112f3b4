package proxy_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
)

// Ensure that clients are sent to addresses that work for them, and that only trusted hops decide on these.
func TestPublicBase(t *testing.T) {
	loopback := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8")}
	elsewhere := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for name, test := range map[string]struct {
		public  string
		trusted []netip.Prefix
		header  []string
		want    string
	}{
		"own host":             {"", nil, nil, "http://HOST/fhir"},
		"public_url":           {"https://fhir.example.org/api/r4/", loopback, []string{"X-Forwarded-Host", "evil.example"}, "https://fhir.example.org/api/r4"},
		"untrusted":            {"", elsewhere, []string{"X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https", "Forwarded", "host=evil.example"}, "http://HOST/fhir"},
		"x-forwarded":          {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Proto", "https"}, "https://a.example/fhir"},
		"proto in capitals":    {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Proto", "HTTPS"}, "https://a.example/fhir"},
		"several hops":         {"", loopback, []string{"X-Forwarded-Host", "a.example, b.example", "X-Forwarded-Proto", "https, http"}, "https://a.example/fhir"},
		"host only":            {"", loopback, []string{"X-Forwarded-Host", "a.example:8443"}, "http://a.example:8443/fhir"},
		"port":                 {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Proto", "https", "X-Forwarded-Port", "8443"}, "https://a.example:8443/fhir"},
		"port of IPv6":         {"", loopback, []string{"X-Forwarded-Host", "[::1]", "X-Forwarded-Proto", "https", "X-Forwarded-Port", "8443"}, "https://[::1]:8443/fhir"},
		"port there already":   {"", loopback, []string{"X-Forwarded-Host", "[::1]:1", "X-Forwarded-Port", "8443"}, "http://[::1]:1/fhir"},
		"default port":         {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Proto", "https", "X-Forwarded-Port", "443"}, "https://a.example/fhir"},
		"prefix":               {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Prefix", "/tenant/1/"}, "http://a.example/tenant/1/fhir"},
		"forwarded":            {"", loopback, []string{"Forwarded", `for=1.2.3.4;Proto=https; host="a.example:8443", for=5.6.7.8;host=b.example`}, "https://a.example:8443/fhir"},
		"forwarded goes first": {"", loopback, []string{"Forwarded", "host=a.example", "X-Forwarded-Host", "b.example", "X-Forwarded-Proto", "https"}, "http://a.example/fhir"},
		"quoted comma":         {"", loopback, []string{"Forwarded", `for="x,y;host=b.example";host="a.\example"`}, "http://a.example/fhir"},
		"no host":              {"", loopback, []string{"X-Forwarded-Host", `a.example/"><b`, "X-Forwarded-Prefix", "/x y"}, "http://HOST/fhir"},
		"prefix that is none":  {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Prefix", "b.example//c"}, "http://a.example/fhir"},
		"odd proto":            {"", loopback, []string{"X-Forwarded-Host", "a.example", "X-Forwarded-Proto", "javascript"}, "http://a.example/fhir"},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := newFHIRHouse(t, func(c *proxy.Config) {
				c.TrustedProxies = test.trusted
				if test.public != "" {
					base, err := fhir.ParseBase(test.public)
					if err != nil {
						t.Fatal(err)
					}
					c.PublicBase = base
				}
			})
			got := h.ask(http.MethodGet, h.base+"/Patient/$export?_type=Patient", test.header...)
			if got.status != http.StatusAccepted {
				t.Fatalf("kick-off: %d %s", got.status, got.body)
			}
			want := strings.ReplaceAll(test.want, "HOST", strings.TrimPrefix(h.url, "http://"))
			if location := got.header.Get("Content-Location"); location != want+"/$export-status/job-1" {
				t.Errorf("Content-Location: got %q, want it below %q", location, want)
			}
			if request := h.exports.asked[0].Request; request != want+"/Patient/$export?_type=Patient" {
				t.Errorf("request: got %q", request)
			}
		})
	}
}

func TestOurPathsLieBelowTheBaseOfTheUpstream(t *testing.T) {
	for _, base := range []string{"", "/fhir", "/a/b", "/a%20b/r4"} {
		t.Run(base, func(t *testing.T) {
			sample := fhirtest.New(fhirtest.Plain(), strings.ReplaceAll(base, "%20", " "))
			if err := sample.Put([]byte(`{"resourceType":"Patient","id":"1"}`)); err != nil {
				t.Fatal(err)
			}
			upstream := httptest.NewServer(sample)
			t.Cleanup(upstream.Close)
			h := newHouse(t, upstream.URL+base+"/", nil)
			got := h.ask(http.MethodGet, h.url+base+"/$export")
			if location := got.header.Get("Content-Location"); location != h.url+base+"/$export-status/job-1" {
				t.Errorf("Content-Location: got %q (%d %s)", location, got.status, got.body)
			}
			if poll := h.ask(http.MethodGet, got.header.Get("Content-Location")); poll.status != http.StatusAccepted {
				t.Errorf("status request: got %d", poll.status)
			}
			if statement := h.ask(http.MethodGet, h.url+base+"/metadata"); !strings.Contains(statement.body, jsonGroup) {
				t.Errorf("metadata: got %d without the operation", statement.status)
			}
			sample.ResetRequests()
			h.ask(http.MethodGet, h.url+"/other"+base+"/$export")
			if forwarded := sample.Requests(); len(forwarded) != 1 {
				t.Errorf("a path outside the base was not forwarded")
			}
		})
	}
}

// Ensure that no header of a trusted hop makes an address of ours that is none.
func FuzzForwarded(f *testing.F) {
	for _, value := range []string{"", "host=a.example", `for="[::1]:1";host="a.example:1";proto=https, x`, `host="\`, "host=a/b?c#d", ";=,;=", `host="";proto`} {
		f.Add(value, value)
	}
	handler, engine := fuzzed(f)
	f.Fuzz(func(t *testing.T, forwarded, plain string) {
		for _, header := range []http.Header{{"Forwarded": {forwarded}}, {"X-Forwarded-Host": {forwarded}, "X-Forwarded-Port": {plain}, "X-Forwarded-Prefix": {plain}, "X-Forwarded-Proto": {plain}}} {
			recorder := kickOffWith(t, handler, engine, http.MethodGet, "/fhir/$export", "", "", header)
			base := engine.asked[0].Base
			address, err := url.Parse(base)
			if err != nil || address.Scheme != "http" && address.Scheme != "https" || address.Host == "" || address.User != nil || strings.ContainsAny(base, "?#\"<> \\") ||
				!strings.HasSuffix(address.Path, "/fhir") || recorder.Header().Get("Content-Location") != base+"/$export-status/job" {
				t.Errorf("base %q of %q", base, header)
			}
		}
	})
}
