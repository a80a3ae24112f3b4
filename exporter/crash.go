package exporter

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// panicError is a fault of the program itself in the work on one job. It ends that job and nothing else: the process is a
// proxy, too, and a job that is begun again by the next start must not end that one as well.
type panicError struct {
	what  string
	stack []byte
}

func (e *panicError) Error() string { return "panic: " + e.what }

// guarded calls fn and makes an error of a panic. Each goroutine that works on a job needs it: nobody else can catch what
// happens there. What was thrown is told by its type where it is not the runtime's own, since it may hold anything.
func guarded(fn func() error) (err error) {
	defer func() {
		thrown := recover()
		if thrown == nil {
			return
		}
		fault := &panicError{what: fmt.Sprintf("%T", thrown), stack: debug.Stack()}
		if known, ok := thrown.(runtime.Error); ok {
			fault.what = known.Error()
		}
		err = fault
	}()
	return fn()
}
