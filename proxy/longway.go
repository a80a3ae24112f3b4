package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strings"
	"sync/atomic"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/proxy/upstream"
)

const (
	// bufferSize is the size in bytes of the copy buffers; searches come chunked, and larger reads save system calls.
	bufferSize = 64 << 10
	// flushPause is how long a part of an answer of known length may wait for the next one before the client gets it.
	// Answers of unknown length are never held back.
	flushPause = 5 * time.Millisecond
	// dialTimeout bounds the making of a connection, its handshake included.
	dialTimeout = 10 * time.Second
)

var (
	errStatus   = errors.New("a status that HTTP does not have")
	errSwitched = errors.New("another protocol than was asked for")
	errInterim  = errors.New("interim answers without end")
)

// newLongWay returns the forwarder for what the short way does not take: upgrades, requests that wait for a 100, large bodies and
// those of unknown length, and servers that speak another version of HTTP.
func (p *Proxy) newLongWay() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:       p.rewrite,
		Transport:     p.Transport,
		FlushInterval: flushPause,
		BufferPool:    bufferPool{},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			p.upstreamFailed(w, r, exchangeOf(r.Context()), err)
		},
		ModifyResponse: func(response *http.Response) error {
			x := exchangeOf(response.Request.Context())
			if err := x.accept(response); err != nil {
				return err
			}
			if x.body != nil && !x.body.ended.Load() && x.request.ProtoMajor == 1 {
				// The rest of the request may never come: net/http would wait for it before it lets the answer go.
				response.Header.Set("Connection", "close")
			}
			return nil
		},
		ErrorLog: slog.NewLogLogger(quietHandler{p.Log.Handler()}, slog.LevelDebug),
	}
}

// verbatim switches off what net/http would add of its own: guessing the Content-Type of an answer that comes without
// one.
func verbatim(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(unguessed{w, r}, r) })
}

// unguessed is a writer whose answers have a Content-Type only where the server gave one. It decides with each status,
// because ReverseProxy empties the header behind an interim answer.
type unguessed struct {
	http.ResponseWriter
	request *http.Request
}

// WriteHeader sends the header as it is.
func (u unguessed) WriteHeader(status int) {
	asGiven(u.Header(), status)
	if status >= http.StatusOK || takesInterim(u.request) {
		u.ResponseWriter.WriteHeader(status)
	}
}

// Hijack gives a connection away with what its client has sent without waiting for the switch: net/http has read it already, and
// ReverseProxy asks the connection alone.
func (u unguessed) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := http.NewResponseController(u.ResponseWriter).Hijack()
	if err != nil || buffers.Reader.Buffered() == 0 {
		return conn, buffers, err
	}
	return &earlyConn{conn, buffers.Reader}, buffers, nil
}

// earlyConn is a connection whose first bytes have been read.
type earlyConn struct {
	net.Conn
	early *bufio.Reader
}

// Read reads these first.
func (c *earlyConn) Read(p []byte) (int, error) {
	if n := c.early.Buffered(); n > 0 {
		return c.early.Read(p[:min(n, len(p))])
	}
	return c.Conn.Read(p)
}

// CloseWrite closes one direction, where the connection can.
func (c *earlyConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Unwrap lets flushes through.
func (u unguessed) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// newTransport makes the transport of forwarded requests.
func newTransport(certificates *fhir.TLS) *http.Transport {
	transport := &http.Transport{
		DialContext:         newDialer().DialContext,
		TLSHandshakeTimeout: dialTimeout,
		// The default of two idle connections a host would mean to dial for nearly every request.
		MaxIdleConnsPerHost: 4096,
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      16 << 10,
		WriteBufferSize:     8 << 10,
		// As on the short way.
		MaxResponseHeaderBytes: upstream.MaxHead,
		// The body must arrive as the server encoded it.
		DisableCompression: true,
		// The server decides whether it wants a body that the client holds back; one that says nothing gets it after a while.
		ExpectContinueTimeout: time.Second,
	}
	if certificates != nil {
		certificates.Apply(transport)
	}
	return transport
}

func newDialer() *net.Dialer { return &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second} }

// rewrite sends the request to the upstream's host and leaves the rest alone.
func (p *Proxy) rewrite(r *httputil.ProxyRequest) {
	out := r.Out
	out.URL.Scheme, out.URL.Host = p.Upstream.Scheme, p.Upstream.Host
	// ReverseProxy drops parameters that it cannot parse; the server shall see them.
	out.URL.RawQuery, out.URL.ForceQuery = strings.ReplaceAll(r.In.URL.RawQuery, " ", "%20"), r.In.URL.ForceQuery // HTTP/2 lets a blank through
	// net/http fills the client's map at the end of the body; the copy would stay empty.
	out.Trailer = r.In.Trailer
	out.Host = r.In.Host
	if p.UpstreamHost != "" {
		out.Host = p.UpstreamHost
	}
	p.verbatimPath(out, r.In.RequestURI)
	// ReverseProxy has taken out some of those that came, and what Connection names.
	maps.DeleteFunc(out.Header, func(name string, _ []string) bool { return isForwarding(name) })
	p.forwardedFields(r.In, out.Header.Add)
}

// continuing is the answer to a client that holds its body back. net/http tells it to go on when the transport reads the body, because the
// server wants it or has said nothing for a while. The server's own 100, of which the transport tells only then, would be a second one.
type continuing struct{ http.ResponseWriter }

// WriteHeader passes all others on.
func (c continuing) WriteHeader(status int) {
	if status != http.StatusContinue {
		c.ResponseWriter.WriteHeader(status)
	}
}

// Unwrap is for http.ResponseController.
func (c continuing) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// endedBody knows how a request's body ends: as a whole, so that the wait for the server begins, or because its client has left, of
// which net/http tells in no other way. The transport asks once more behind the last byte; if a quick answer has made the server close
// the body by then, that read would fail and cut the answer short (golang/go#40747).
type endedBody struct {
	io.ReadCloser
	exchange    *exchange
	ended, left atomic.Bool
}

// Read reads until the first end.
func (b *endedBody) Read(p []byte) (int, error) {
	if b.ended.Load() {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		b.ended.Store(true)
		b.exchange.proxy.Live.begin(&b.exchange.wait, time.Now())
	case err != nil:
		b.left.Store(true)
	}
	return n, err
}

// accept is called with the head of the final answer that net/http has read. It fails if it is none that may be passed on, before
// anything is noted of it.
func (x *exchange) accept(response *http.Response) error {
	if response.StatusCode < http.StatusContinue {
		return errStatus // as on the short way
	}
	if response.StatusCode == http.StatusSwitchingProtocols {
		asked := upgrade(response.Request.Header)
		if asked == "" || !strings.EqualFold(asked, upgrade(response.Header)) { // ReverseProxy looks only later
			return errSwitched
		}
		x.addID(response.Header) // ReverseProxy writes it past the writer of the answer
	} else { // or what follows is a connection, not a body
		response.Body = &watchedBody{response.Body, response, x}
		upstream.CleanTrailer(response.Trailer)
	}
	x.answered(response.StatusCode, true)
	return nil
}

// boundInterim bounds the heads of interim answers as on the short way, all together: net/http bounds each by itself while somebody takes
// them.
func boundInterim() func(int, textproto.MIMEHeader) error {
	left := upstream.MaxHead
	return func(_ int, head textproto.MIMEHeader) error {
		left -= len("HTTP/1.1 102 Processing\r\n\r\n")
		for name, values := range head {
			for _, value := range values {
				left -= len(name) + len(": ") + len(value) + len("\r\n")
			}
		}
		if left < 0 {
			return errInterim
		}
		return nil
	}
}

// upgrade is the other protocol that a head names.
func upgrade(header http.Header) string {
	if !named(header["Connection"], "Upgrade") {
		return ""
	}
	return header.Get("Upgrade")
}

// watchedBody is the body of an answer.
type watchedBody struct {
	io.ReadCloser
	response *http.Response
	exchange *exchange
}

// Read notes an error, and looks through the trailer behind the end.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		upstream.CleanTrailer(b.response.Trailer)
	case err != nil:
		b.exchange.cut = err
	}
	return n, err
}

// bufferPool lends copy buffers to ReverseProxy.
type bufferPool struct{}

// Get lends a buffer.
func (bufferPool) Get() []byte { return buffers.Get().(*[bufferSize]byte)[:] }

// Put takes it back.
func (bufferPool) Put(buffer []byte) { buffers.Put((*[bufferSize]byte)(buffer)) }

// quietHandler keeps ReverseProxy's own lines, which may hold addresses, out of the log; what matters is logged by
// upstreamFailed.
type quietHandler struct{ slog.Handler }

// Enabled says no.
func (quietHandler) Enabled(context.Context, slog.Level) bool { return false }

var _ httputil.BufferPool = (*bufferPool)(nil)
