package proxy

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"sidecar/state"
)

// auditor keeps an audit trail. It never fails a request.
type auditor interface {
	Note(ctx context.Context, event *state.Audit)
}

type auditKey struct{}

// audited notes each request that next answers, also one that ends in the middle.
func (p *Proxy) audited(what string, next http.HandlerFunc) http.HandlerFunc {
	if p.Audit == nil {
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, event := r.Context(), &state.Audit{What: what, Request: RequestID(r.Context())}
		answer := &countedAnswer{ResponseWriter: w}
		whole := false
		defer func() {
			event.Status, event.Aborted = answer.status, !whole
			if sent := answer.status == http.StatusOK || answer.status == http.StatusPartialContent; sent && r.Method == http.MethodGet {
				event.Bytes, event.Range = answer.bytes, answer.status == http.StatusPartialContent
				event.Aborted = event.Aborted || answer.short()
			}
			p.Audit.Note(ctx, event)
		}()
		next(answer, r.WithContext(context.WithValue(ctx, auditKey{}, event)))
		whole = true
	}
}

// eventOf is what will be noted of a request, for handlers to fill in what they know to be true.
func eventOf(r *http.Request) *state.Audit {
	if event, ok := r.Context().Value(auditKey{}).(*state.Audit); ok {
		return event
	}
	return &state.Audit{}
}

// countedAnswer knows the status of an answer and the bytes of its body.
type countedAnswer struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// WriteHeader notes the first final status.
func (c *countedAnswer) WriteHeader(status int) {
	if c.status == 0 && status >= http.StatusOK {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *countedAnswer) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.wrote(int64(n))
	return n, err
}

// ReadFrom keeps the short way from a file to the socket.
func (c *countedAnswer) ReadFrom(from io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, from)
	c.wrote(n)
	return n, err
}

func (c *countedAnswer) wrote(n int64) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	c.bytes += n
}

// short tells whether a body has fewer bytes than its header says.
func (c *countedAnswer) short() bool {
	size, err := strconv.ParseInt(c.Header().Get("Content-Length"), 10, 64)
	return err == nil && c.bytes < size
}

// Unwrap is for http.ResponseController.
func (c *countedAnswer) Unwrap() http.ResponseWriter { return c.ResponseWriter }
