package proxy

import (
	"context"
	"errors"
	"net"
	"net/http"

	"golang.org/x/net/http/httpguts"

	"sidecar/exporter/fhir"
)

// newForwarder returns the handler that passes a request on as it is: the short way if it can go there, else the long one.
func (p *Proxy) newForwarder() http.Handler {
	long := verbatim(p.newLongWay())
	return p.exchanged(func(w http.ResponseWriter, r *http.Request, x *exchange) {
		if r.Method == http.MethodConnect {
			x.answered(http.StatusNotImplemented, false)
			p.refuse(w, r.WithContext(x.within(r.Context())), errTunnel)
			return
		}
		p.declineUpgrade(r)
		if p.short != nil && p.short.takes(r) {
			p.short.serve(w, r, x)
			return
		}
		if r.Header["Expect"] != nil {
			w = continuing{w}
		}
		long.ServeHTTP(w, x.carried(r))
	})
}

// errTunnel is for who takes the sidecar for a proxy to anywhere. A server that said yes would make both ends believe in a tunnel.
var errTunnel = &refusal{http.StatusNotImplemented, "not-supported", "CONNECT is not supported"}

// declineUpgrade takes the wish for another protocol off a request where it cannot be granted, as a server may (RFC 9110, section
// 7.8): HTTP/2 would go past the sidecar with all that follows, and a connection of HTTP/2 to the server cannot be given away.
func (p *Proxy) declineUpgrade(r *http.Request) {
	wished := r.Header["Upgrade"]
	if wished == nil || p.speaksHTTP1() && !httpguts.HeaderValuesContainsToken(wished, "h2c") {
		return
	}
	delete(r.Header, "Upgrade")
	delete(r.Header, "Http2-Settings")
}

// speaksHTTP1 tells whether the server is spoken to in HTTP/1.1.
func (p *Proxy) speaksHTTP1() bool {
	return p.UpstreamProtocol == "" || p.UpstreamProtocol == fhir.HTTP1
}

// exchanged frames what forwards a request.
func (p *Proxy) exchanged(forward func(http.ResponseWriter, *http.Request, *exchange)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x, whole := p.begin(r), false
		defer func(ctx context.Context) { x.end(ctx, whole) }(r.Context()) // also when the answer is cut off by a panic
		w = x.watch(w)
		defer x.rescue(w, r, true)
		defer func() {
			if x.cut != nil { // the client gets what came before, if it is still there
				_ = http.NewResponseController(w).Flush()
			}
		}()
		forward(w, r, x)
		whole = r.Context().Err() == nil
	})
}

// notKnown keeps clients from sending a write again as if it had not come.
const notKnown = "; whether the request was carried out is not known"

// upstreamFailed answers for a server that did not.
func (p *Proxy) upstreamFailed(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	if r.Context().Err() != nil || errors.Is(err, errClientLeft) || x.body != nil && x.body.left.Load() {
		x.answered(statusClientLeft, false)
		panic(http.ErrAbortHandler)
	}
	failure := &refusal{http.StatusBadGateway, "transient", "the FHIR server cannot be reached"}
	if x.reached.Load() {
		failure.text = "the FHIR server gave no valid answer" + notKnown
	}
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		failure = &refusal{http.StatusGatewayTimeout, "timeout", "the FHIR server cannot be reached in time"}
		if x.reached.Load() {
			failure.text = "the FHIR server did not answer in time" + notKnown
		}
	}
	x.answered(failure.status, false)
	ctx := x.within(r.Context())
	p.Log.WarnContext(ctx, "request not forwarded", "error", fhir.Cause(err))
	p.refuse(w, r.WithContext(ctx), failure)
}
