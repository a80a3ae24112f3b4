package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"sidecar/exporter/fhir"
)

// exchange is one request, from its beginning to the last byte of its answer: one that is forwarded, of which both ways of
// forwarding report, or one on a route of ours.
type exchange struct {
	proxy   *Proxy
	request *http.Request
	route   route
	began   time.Time
	// first is how long it took until the header of the answer, status that of the answer; both are 0 until then.
	first  time.Duration
	status int
	write  *write // nil for a request that writes nothing, or where nobody asks
	wait   wait   // of a user
	// reached tells that there was a connection to the server, cut is why its answer has no end.
	reached atomic.Bool
	cut     error
	body    *endedBody // of a request with one on the long way
	// What follows is there where somebody wants it.
	id     string
	span   trace.Span
	answer *watchedAnswer
}

type exchangeKey struct{}

// statusClientLeft is counted for a request whose client left before it was answered.
const statusClientLeft = 499

// begin is called before a request is forwarded.
func (p *Proxy) begin(r *http.Request) *exchange {
	x := p.ask(r, p.routeOf(r))
	if r.ContentLength == 0 { // or whoever reads its body knows when it has ended
		p.Live.begin(&x.wait, x.began)
	}
	if p.AccessLog || p.RequestIDHeader != "" {
		x.identify()
	}
	if p.RequestIDHeader != "" {
		r.Header[p.RequestIDHeader] = []string{x.id}
		keepField(r.Header, p.RequestIDHeader)
	}
	if p.Tracer != nil {
		x.trace(r.Context())
	}
	return x
}

// ask is called before the server is asked for something, be it by a route of ours.
func (p *Proxy) ask(r *http.Request, route route) *exchange {
	x := &exchange{proxy: p, request: r, route: route, began: time.Now()}
	if p.Writes != nil && isWrite(r) {
		x.write = p.Writes.begin()
	}
	x.wait.kind = kindOf(r.Method, r.URL.Path, r.URL.RawQuery, p.basePath)
	return x
}

// own frames what answers requests without the server.
func (p *Proxy) own(route route, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		x, whole := &exchange{proxy: p, request: r, route: route, began: time.Now()}, false
		defer func(ctx context.Context) { x.ended(ctx, whole) }(r.Context())
		ctx := x.within(r.Context())
		if p.Tracer != nil {
			ctx = x.trace(ctx)
		}
		x.answer = &watchedAnswer{countedAnswer{ResponseWriter: w}, x}
		defer x.rescue(x.answer, r, false)
		next(x.answer, r.WithContext(ctx))
		whole = r.Context().Err() == nil
	}
}

// identify gives the request its id.
func (x *exchange) identify() {
	if x.id == "" {
		x.id = x.proxy.requestID(x.request)
	}
}

// within returns the context of what is logged and answered of a request, which names it and its span.
func (x *exchange) within(ctx context.Context) context.Context {
	if x.span != nil {
		ctx = trace.ContextWithSpan(ctx, x.span)
	}
	if RequestID(ctx) != "" { // x is a part of it
		return ctx
	}
	x.identify()
	return context.WithValue(ctx, exchangeKey{}, x)
}

// watch returns the writer for the answer.
func (x *exchange) watch(w http.ResponseWriter) http.ResponseWriter {
	if !x.proxy.AccessLog && x.proxy.RequestIDHeader == "" {
		return w
	}
	x.answer = &watchedAnswer{countedAnswer{ResponseWriter: w}, x}
	return x.answer
}

// answered is called with the status of the final answer to what ask began, before its body: the server's, or ours in its place, or
// statusClientLeft.
func (x *exchange) answered(status int, theirs bool) {
	x.status = status
	x.proxy.Metrics.requested(status)
	x.begun()
	if took := x.proxy.Live.answered(&x.wait, status, x.began.Add(x.first)); theirs {
		x.proxy.Metrics.firstByte.observe(x.route, status, took)
	}
	if x.write != nil && theirs {
		// 202 and 504 say that the server is still at work.
		x.write.answered = status != http.StatusAccepted && status != http.StatusGatewayTimeout
	}
}

// begun is called when the answer begins.
func (x *exchange) begun() {
	if x.first == 0 {
		x.first = time.Since(x.began)
	}
}

// end is called when the last byte has been passed on, or the exchange was cut off: whole tells which.
func (x *exchange) end(ctx context.Context, whole bool) {
	x.asked(whole)
	if x.cut != nil && ctx.Err() == nil { // or the client has left
		x.proxy.Metrics.cut.Inc()
		x.proxy.Log.WarnContext(x.within(ctx), "answer cut off", "method", methodOf(x.request), "route", x.route.String(), "error", fhir.Cause(x.cut))
	}
	x.ended(ctx, whole)
}

// carried returns the request for the long way, which finds the exchange in its context and tells it of the end of the body.
func (x *exchange) carried(r *http.Request) *http.Request {
	r = r.WithContext(context.WithValue(x.connecting(r.Context()), exchangeKey{}, x))
	if r.ContentLength != 0 {
		x.body = &endedBody{ReadCloser: r.Body, exchange: x}
		r.Body = x.body
	}
	return r
}

// connecting is the context of a request that net/http sends: it tells the exchange of the connection, and the connection of the
// request.
func (x *exchange) connecting(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: boundInterim(), GotConn: func(got httptrace.GotConnInfo) {
		x.reached.Store(true)
		if conn, ok := got.Conn.(*targetConn); ok {
			conn.take(x.request)
		}
	}})
}

// asked is the end of what ask began.
func (x *exchange) asked(whole bool) {
	x.proxy.Live.end(&x.wait)
	if x.write != nil {
		x.proxy.Writes.end(x.write, whole)
	}
}

// ended notes all of a request.
func (x *exchange) ended(ctx context.Context, whole bool) {
	took := time.Since(x.began)
	if x.status == 0 && x.answer != nil {
		x.status = x.answer.status
	}
	x.proxy.Metrics.whole.observe(x.route, x.status, took)
	if x.span != nil {
		x.endSpan(whole)
	}
	if x.proxy.AccessLog {
		x.log(ctx, took, whole)
	}
}

// log writes the line of the access log. It names no client: an address is a person's.
func (x *exchange) log(ctx context.Context, took time.Duration, whole bool) {
	var bytes int64
	if x.answer != nil {
		bytes = x.answer.bytes
	}
	x.proxy.Log.LogAttrs(x.within(ctx), slog.LevelInfo, "request served",
		slog.String("method", methodOf(x.request)), slog.String("route", x.route.String()), slog.Int("status", x.status), slog.Int64("bytes", bytes),
		slog.Float64("first_byte", x.first.Seconds()), slog.Float64("seconds", took.Seconds()), slog.Bool("whole", whole))
}

// exchangeOf is the exchange of a request that has it in its context: all but those on the short way.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}
