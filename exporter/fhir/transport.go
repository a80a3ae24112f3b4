package fhir

import (
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/go-resty/resty/v2"
)

// newTransport makes a transport with an idle pool for all workers. Beside the server, on loopback, gzip would only cost
// both sides processor time.
func newTransport(base *url.URL, certificates *TLS, protocol Protocol) *http.Transport {
	ip := net.ParseIP(base.Hostname())
	local := base.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: headerTimeout,
		// Ten times that is what net/http would take. Known servers send a few KiB.
		MaxResponseHeaderBytes: 1 << 20,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        90 * time.Second,
		ReadBufferSize:         64 << 10,
		DisableCompression:     local,
	}
	if certificates != nil {
		certificates.Apply(transport)
	}
	protocol.Apply(transport)
	return transport
}

// newFreshTransport makes a transport for what may be sent only once: servers close connections that are idle for some seconds, and what
// arrives at that moment is lost.
func newFreshTransport(base *url.URL, certificates *TLS, protocol Protocol) *http.Transport {
	transport := newTransport(base, certificates, protocol)
	transport.MaxIdleConnsPerHost, transport.IdleConnTimeout = 1, time.Second
	return transport
}

func newREST(transport http.RoundTripper) *resty.Client {
	return resty.NewWithClient(&http.Client{
		Transport: transport,
		// A redirect could carry the credentials to another host, and searches are not redirected by any known server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}).SetDisableWarn(true).SetLogger(quiet{})
}
