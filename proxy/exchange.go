package proxy

import (
	"context"
	"net/http"
)

// exchange is one forwarded request, from its beginning to the last byte of its answer. Both ways of forwarding report to it.
type exchange struct {
	proxy *Proxy
	write *write // nil for a request that writes nothing, or where nobody asks
	wait  wait   // of a user, where somebody asks
}

type exchangeKey struct{}

// statusClientLeft is counted for a request whose client left before it was answered.
const statusClientLeft = 499

// begin is called before the request is sent.
func (p *Proxy) begin(r *http.Request) *exchange {
	x := &exchange{proxy: p}
	if p.Writes != nil && isWrite(r) {
		x.write = p.Writes.begin()
	}
	if p.Live != nil {
		x.wait = p.Live.begin(r, p.basePath)
	}
	return x
}

// answered is called with the status of the final answer, before its body: the server's, or ours in its place, or
// statusClientLeft.
func (x *exchange) answered(status int, theirs bool) {
	x.proxy.Metrics.requested(status)
	if x.proxy.Live != nil {
		x.proxy.Live.answered(&x.wait, status)
	}
	if x.write != nil && theirs {
		// 202 and 504 say that the server is still at work.
		x.write.answered = status != http.StatusAccepted && status != http.StatusGatewayTimeout
	}
}

// end is called when the last byte has been passed on, or the exchange was cut off: whole tells which.
func (x *exchange) end(whole bool) {
	if x.proxy.Live != nil {
		x.proxy.Live.end(&x.wait)
	}
	if x.write != nil {
		x.proxy.Writes.end(x.write, whole)
	}
}

// exchangeOf is the exchange of a request on the long way.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}
