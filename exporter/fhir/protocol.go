package fhir

import (
	"net/http"
	"time"
)

// Protocol is the version of HTTP in which the upstream is spoken to.
type Protocol string

const (
	// HTTP1 is HTTP/1.1, which every server knows.
	HTTP1 Protocol = "http/1.1"
	// HTTP2 is HTTP/2 over TLS.
	HTTP2 Protocol = "h2"
	// H2C is HTTP/2 without TLS, of which the server has to know beforehand.
	H2C Protocol = "h2c"
)

const (
	// pingAfter is for how long a connection of HTTP/2 may bring nothing before the server is asked whether it is still there, pingTimeout
	// how long it may take to say so.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
)

// Apply makes a transport speak the protocol and no other. HTTP1 and none at all leave it as it is.
//
// All requests share one connection of HTTP/2. Without pings one that has died in silence would hold all of them, and those to come,
// until TCP gives it up, which takes a quarter of an hour.
func (p Protocol) Apply(transport *http.Transport) {
	if p == "" || p == HTTP1 {
		return
	}
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP2(p == HTTP2)
	transport.Protocols.SetUnencryptedHTTP2(p == H2C)
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
}
