package proxy_test

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sidecar/proxy"
)

// Ensure the server is told who asked and by which address, on both ways, in all fields that servers believe, and not by somebody
// who is not believed where it is said who is. A client cannot take away what a hop before has said.
func TestForwardTellsTheUpstreamWhoAsked(t *testing.T) {
	const (
		own    = "X-Forwarded-For: 127.0.0.1\nX-Forwarded-Host: fhir.example.org\nX-Forwarded-Proto: http\n"
		three  = "X-Forwarded-For: 10.1.1.1\nX-Forwarded-Host: public.example\nX-Forwarded-Proto: https\n"
		others = "X-Forwarded-Prefix: /a\nX-Forwarded-Port: 8443\nX-Forwarded-Ssl: on\nX-Forwarded-Server: edge\nX-Real-Ip: 10.1.1.1\n"
		given  = three + others + "Forwarded: for=10.1.1.1\n"
		named  = "Connection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-Forwarded-Prefix, X-Forwarded-Port, X-Forwarded-Ssl, X-Forwarded-Server, X-Real-IP, Forwarded\n"
		told   = "X-Forwarded-For: 10.1.1.1, 127.0.0.1\nX-Forwarded-Host: public.example\nX-Forwarded-Proto: https\n" + others + "Forwarded: for=10.1.1.1, for=127.0.0.1\n"
	)
	elsewhere := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	here := append(elsewhere, netip.MustParsePrefix("127.0.0.0/8"))
	for _, test := range []struct {
		name, header string
		trusted      []netip.Prefix
		want         string
	}{
		{"first hop", "", nil, own},
		{"behind another", given, nil, told},
		{"behind another that Connection denies", named + given, nil, told},
		{"behind a trusted one", given, here, told},
		{"behind a trusted one that Connection denies", named + given, here, told},
		{"behind one that is not", given, elsewhere, own},
		{"behind one that is not and repeats itself", given + others, elsewhere, own},
		{
			"Forwarded alone", "Forwarded: for=10.1.1.1;host=public.example;proto=https\n", here,
			told[:strings.Index(told, "X-Forwarded-Prefix")] + "Forwarded: for=10.1.1.1;host=public.example;proto=https, for=127.0.0.1\n",
		},
		{
			"Forwarded of several hops", "Forwarded: For=\"[2001:db8::1]:4711\";Host=\"public.example:8443\";Proto=HTTPS, for=_hidden;host=inner.example\nForwarded: by=x, for=\"10.1.1.1:80\"\n", nil,
			"X-Forwarded-For: 2001:db8::1, unknown, 10.1.1.1, 127.0.0.1\nX-Forwarded-Host: public.example:8443\nX-Forwarded-Proto: https\n" +
				"Forwarded: For=\"[2001:db8::1]:4711\";Host=\"public.example:8443\";Proto=HTTPS, for=_hidden;host=inner.example, by=x, for=\"10.1.1.1:80\", for=127.0.0.1\n",
		},
		{"Forwarded beside the others", three + "Forwarded: for=10.2.2.2;host=other.example;proto=http\n", nil, told[:strings.Index(told, "X-Forwarded-Prefix")] + "Forwarded: for=10.2.2.2;host=other.example;proto=http, for=127.0.0.1\n"},
		{
			"Forwarded that a hop let pass", "X-Forwarded-For: 10.1.1.1\nX-Forwarded-Proto: https\nForwarded: host=other.example\n", here,
			"X-Forwarded-For: 10.1.1.1, 127.0.0.1\nX-Forwarded-Host: fhir.example.org\nX-Forwarded-Proto: https\nForwarded: host=other.example, for=127.0.0.1\n",
		},
		{"Forwarded without an address", "Forwarded: host=\"a b\";proto=gopher\n", nil, own + "Forwarded: host=\"a b\";proto=gopher, for=127.0.0.1\n"},
		{"Forwarded that is not believed", "Forwarded: for=10.1.1.1;host=public.example;proto=https\n", elsewhere, own},
	} {
		for way, request := range map[string]string{
			"short": "GET /fhir/Patient HTTP/1.1\nHost: fhir.example.org\n" + test.header + "\n",
			"long":  "POST /fhir/Patient HTTP/1.1\nHost: fhir.example.org\nTransfer-Encoding: chunked\n" + test.header + "\n0\n\n",
		} {
			t.Run(test.name+"/"+way, func(t *testing.T) {
				upstream := newRawUpstream(t, replying(plainReply))
				h := newHouse(t, "http://"+upstream.address+"/fhir", func(c *proxy.Config) { c.TrustedProxies = test.trusted })
				exchange(t, h.url, strings.ReplaceAll(request, "\n", "\r\n"))
				got, want := await(t, "request", upstream.seen).header, http.Header{}
				for line := range strings.Lines(test.want) {
					name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
					want.Add(name, value)
				}
				if host := got.Get("Host"); host != "fhir.example.org" {
					t.Errorf("Host: got %q", host)
				}
				maps.DeleteFunc(got, func(name string, _ []string) bool { return !strings.Contains(name, "Forwarded") && name != "X-Real-Ip" })
				if !maps.EqualFunc(got, want, slices.Equal) {
					t.Errorf("got %q\nwant %q", got, want)
				}
			})
		}
	}
}
