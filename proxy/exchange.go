package proxy

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"
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
	x := &exchange{proxy: p, request: r, route: p.routeOf(r), began: time.Now()}
	if p.Writes != nil && isWrite(r) {
		x.write = p.Writes.begin()
	}
	if p.AccessLog || p.RequestIDHeader != "" {
		x.identify()
	}
	if p.RequestIDHeader != "" {
		r.Header[p.RequestIDHeader] = []string{x.id}
	}
	if p.Tracer != nil {
		x.trace()
	}
	return x
}

// own frames a request that the sidecar answers itself.
func (p *Proxy) own(route route, w http.ResponseWriter, r *http.Request, next http.HandlerFunc) {
	x, whole := &exchange{proxy: p, request: r, route: route, began: time.Now()}, false
	x.identify()
	ctx := r.Context()
	if p.Tracer != nil {
		ctx = x.trace()
	}
	r = r.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	x.answer = &watchedAnswer{countedAnswer{ResponseWriter: w}, x}
	defer func() { x.end(whole) }()
	next(x.answer, r)
	whole = r.Context().Err() == nil
}

// identify gives the request its id.
func (x *exchange) identify() {
	if x.id == "" {
		x.id = x.proxy.requestID(x.request)
	}
}

// known returns the request with the id in its context, for what is logged and answered.
func (x *exchange) known(r *http.Request) *http.Request {
	x.identify()
	if exchangeOf(r.Context()) == x {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
}

// watch returns the writer for the answer.
func (x *exchange) watch(w http.ResponseWriter) http.ResponseWriter {
	if !x.proxy.AccessLog && x.proxy.RequestIDHeader == "" {
		return w
	}
	x.answer = &watchedAnswer{countedAnswer{ResponseWriter: w}, x}
	return x.answer
}

// answered is called with the status of the final answer of a request that is forwarded, before its body: the server's, or ours in
// its place, or statusClientLeft.
func (x *exchange) answered(status int, theirs bool) {
	x.status = status
	x.proxy.Metrics.requested(status)
	if x.begun(); theirs {
		x.proxy.Metrics.firstByte.observe(x.route, status, x.first)
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
func (x *exchange) end(whole bool) {
	if x.write != nil {
		x.proxy.Writes.end(x.write, whole)
	}
	took := time.Since(x.began)
	if x.status == 0 && x.answer != nil {
		x.status = x.answer.status
	}
	x.proxy.Metrics.whole.observe(x.route, x.status, took)
	if x.span != nil {
		x.endSpan(whole)
	}
	if x.proxy.AccessLog {
		x.log(took, whole)
	}
}

// log writes the line of the access log. It names no client: an address is a person's.
func (x *exchange) log(took time.Duration, whole bool) {
	var bytes int64
	if x.answer != nil {
		bytes = x.answer.bytes
	}
	ctx := x.known(x.request).Context()
	if x.span != nil {
		ctx = trace.ContextWithSpan(ctx, x.span)
	}
	x.proxy.Log.LogAttrs(ctx, slog.LevelInfo, "request served",
		slog.String("method", methodOf(x.request)), slog.String("route", x.route.String()), slog.Int("status", x.status), slog.Int64("bytes", bytes),
		slog.Float64("first_byte", x.first.Seconds()), slog.Float64("seconds", took.Seconds()), slog.Bool("whole", whole))
}

// exchangeOf is the exchange of a request that has it in its context: all but those on the short way.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}
