package proxy

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
)

// panicked is the error of a panic: what was thrown by its type, since it may hold anything, and where.
type panicked struct{ what, where string }

func newPanicked(thrown any) *panicked {
	return &panicked{fmt.Sprintf("%T", thrown), string(debug.Stack())}
}

func (p *panicked) Error() string { return "panic of " + p.what + ": " + p.where }

// guarded makes an error of a panic. In a goroutine of its own net/http does not catch it, and it would end the process with all
// its jobs.
func guarded(do func() error) (err error) {
	defer func() {
		if thrown := recover(); thrown != nil {
			err = newPanicked(thrown)
		}
	}()
	return do()
}

// rescue is deferred by what answers requests. A panic is a fault of the sidecar, which net/http would tell of in a way that nobody
// sees: it is logged and counted, and answered where no answer has begun. Only http.ErrAbortHandler is none, but cuts the client off.
func (x *exchange) rescue(w http.ResponseWriter, r *http.Request, forwarded bool) {
	thrown := recover()
	if thrown == nil {
		return
	}
	if thrown == http.ErrAbortHandler { //nolint:errorlint // nobody wraps it, and net/http compares it so
		panic(thrown)
	}
	ctx, fault := x.within(r.Context()), newPanicked(thrown)
	if x.status != 0 || x.answer != nil && x.answer.status != 0 {
		x.proxy.endedByPanic(ctx, fault)
		panic(http.ErrAbortHandler)
	}
	if forwarded {
		x.answered(errInside.status, false)
	}
	clear(w.Header())
	x.proxy.refuse(w, r.WithContext(ctx), fault)
}

// endedByPanic counts and logs a request that a panic has ended, be it of another goroutine.
func (p *Proxy) endedByPanic(ctx context.Context, fault *panicked) {
	p.Metrics.panics.Inc()
	route := routeOther
	if x := exchangeOf(ctx); x != nil {
		route = x.route
	}
	p.Log.ErrorContext(ctx, "request ended by a panic", "route", route.String(), "error", fault)
}
