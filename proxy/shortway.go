package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"sidecar/proxy/upstream"
)

// shortBody is the largest body in bytes of a request on the short way: it is read before anything is sent, so that the server
// does not wait for a slow client.
const shortBody = 32 << 10

// shortFlush is the number of bytes below which a read of an answer means that the server has paused: what there is goes to the
// client. Behind a longer one more is on its way, and the writer has kept nothing back worth a system call.
const shortFlush = 16 << 10

// shortWay forwards requests in the goroutine of their client, over HTTP/1.1.
type shortWay struct {
	proxy  *Proxy
	client *upstream.Client
}

// wires hold requests until they are answered, one or two KB each, buffers pieces of answers.
var (
	wires   = sync.Pool{New: func() any { return new([]byte) }}
	buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
)

// newShortWay makes the short way to the upstream by the means of the transport of the long one, which shares them then.
func (p *Proxy) newShortWay(transport *http.Transport) *shortWay {
	address := p.Upstream.Host
	if p.Upstream.Port() == "" {
		address = net.JoinHostPort(p.Upstream.Hostname(), map[string]string{"http": "80", "https": "443"}[p.Upstream.Scheme])
	}
	open := transport.DialContext
	if p.Upstream.Scheme == "https" {
		if open = transport.DialTLSContext; open == nil {
			open = (&tls.Dialer{NetDialer: newDialer(), Config: &tls.Config{MinVersion: tls.VersionTLS12}}).DialContext
		}
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return open(ctx, "tcp", address)
	}
	keepTargets(transport, dial)
	return &shortWay{proxy: p, client: &upstream.Client{Dial: dial}}
}

// takes tells whether a request can go the short way: it has no body or a small one of known length, changes no protocol, and its
// request line holds nothing that would end it. net/http has looked at names and values of the header; a path of HTTP/2 may hold
// a space.
func (s *shortWay) takes(r *http.Request) bool {
	if r.ContentLength < 0 || r.ContentLength > shortBody || r.Method == http.MethodConnect {
		return false
	}
	if len(r.Header["Expect"]) > 0 || len(r.Header["Upgrade"]) > 0 || len(r.Trailer) > 0 || !strings.HasPrefix(r.RequestURI, "/") {
		return false
	}
	if !httpguts.ValidHeaderFieldName(r.Method) { // HTTP/2 lets a blank through there too; a method is a token, as a name is
		return false
	}
	for i := range len(r.RequestURI) {
		if c := r.RequestURI[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// serve forwards a request and its answer. It panics with http.ErrAbortHandler to cut the client off where an answer cannot be
// ended, as httputil.ReverseProxy does.
func (s *shortWay) serve(w http.ResponseWriter, r *http.Request, x *exchange) {
	header := w.Header()
	answer, err := s.send(w, r, x)
	if err != nil {
		var dial *upstream.DialError
		x.reached.Store(!errors.As(err, &dial))
		s.proxy.upstreamFailed(w, r, x, err)
		return
	}
	whole := false
	defer func() { answer.Done(whole) }() // also when it is cut off
	x.answered(answer.StatusCode, true)
	trailers := len(answer.Trailer)
	for name := range answer.Trailer {
		header.Add("Trailer", name)
	}
	if answer.ContentLength < 0 && r.ProtoMajor == 1 {
		header["Transfer-Encoding"] = chunked // or net/http would count a short body and give its length
	}
	asGiven(header, answer.StatusCode)
	w.WriteHeader(answer.StatusCode)
	if err := pass(w, answer, x); err != nil {
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Trailer {
		if len(answer.Trailer) != trailers {
			name = http.TrailerPrefix + name
		}
		header[name] = values
	}
	whole = true
}

// send writes the request as one piece and awaits the answer.
func (s *shortWay) send(w http.ResponseWriter, r *http.Request, x *exchange) (*upstream.Answer, error) {
	lent := wires.Get().(*[]byte)
	wire := s.proxy.appendHead((*lent)[:0], r)
	defer func() {
		*lent = wire
		wires.Put(lent)
	}()
	if r.ContentLength > 0 {
		head := len(wire)
		wire = slices.Grow(wire, int(r.ContentLength))[:head+int(r.ContentLength)]
		if _, err := io.ReadFull(r.Body, wire[head:]); err != nil {
			return nil, errClientLeft
		}
		s.proxy.Live.begin(&x.wait, time.Now())
	}
	header := w.Header()
	return s.client.Send(r, wire, header, func(status int) {
		if takesInterim(r) {
			asGiven(header, status)
			w.WriteHeader(status)
		}
		clear(header)
	})
}

// takesInterim tells whether a client knows interim answers: one of HTTP/1.0 would take the first for the final one (RFC 9110,
// section 15.2).
func takesInterim(r *http.Request) bool { return r.ProtoAtLeast(1, 1) }

// errClientLeft means that the rest of a request did not come.
var errClientLeft = errors.New("the client has left")

var chunked = []string{"chunked"}

// appendHead appends the head of a forwarded request as it goes over the line.
func (p *Proxy) appendHead(b []byte, r *http.Request) []byte {
	host := r.Host
	if p.UpstreamHost != "" {
		host = p.UpstreamHost
	} else if host == "" {
		host = p.Upstream.Host
	}
	b = append(append(append(append(b, r.Method...), ' '), r.RequestURI...), " HTTP/1.1\r\nHost: "...)
	b = append(append(b, host...), "\r\n"...)
	connection := r.Header["Connection"]
	for name, values := range r.Header {
		if upstream.HopByHop(name) || isForwarding(name) || name == "Content-Length" || connection != nil && named(connection, name) {
			continue
		}
		for _, value := range values {
			b = appendField(b, name, value)
		}
	}
	if r.ContentLength > 0 || r.Header["Content-Length"] != nil {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, r.ContentLength, 10), "\r\n"...)
	}
	if te := r.Header["Te"]; te != nil && httpguts.HeaderValuesContainsToken(te, "trailers") {
		b = append(b, "Te: trailers\r\n"...)
	}
	p.forwardedFields(r, func(name, value string) { b = appendField(b, name, value) })
	return append(b, "\r\n"...)
}

func appendField(b []byte, name, value string) []byte {
	return append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
}

// named tells whether a field is among those that a Connection header names.
func named(connection []string, name string) bool {
	return httpguts.HeaderValuesContainsToken(connection, name)
}

// asGiven keeps net/http from guessing a Content-Type that the server did not give, and from leaving out of a 304 what it did: it
// looks for the names as it writes them itself.
func asGiven(header http.Header, status int) {
	if header["Content-Type"] == nil {
		header["Content-Type"] = nil
	}
	if status != http.StatusNotModified {
		return
	}
	for _, name := range []string{"Content-Type", "Content-Length"} {
		if values := header[name]; values != nil {
			header[strings.ToLower(name)] = values
			delete(header, name)
		}
	}
}

// pass copies the body of an answer, and sends on what there is whenever the server pauses.
func pass(w http.ResponseWriter, answer *upstream.Answer, x *exchange) error {
	if answer.ContentLength == 0 {
		return nil
	}
	lent := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(lent)
	flush := http.NewResponseController(w).Flush
	if answer.Paused() {
		if err := flush(); err != nil {
			return err
		}
	}
	for {
		n, err := answer.Read(lent[:])
		if n > 0 {
			if _, err := w.Write(lent[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			x.cut = err
			return err
		case n < shortFlush:
			if err := flush(); err != nil {
				return err
			}
		}
	}
}
