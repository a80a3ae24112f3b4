//go:build soak

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"
)

// soakTimeout is when a request hangs.
const soakTimeout = 30 * time.Second

// errUnavailable is an answer 502, or one that did not come whole: true only while the server was down.
var errUnavailable = errors.New("unavailable")

// errOnce is errUnavailable of a request that is never sent twice and goes through net/http's Transport, which learns a moment
// late that a connection was cut while nobody used it.
var errOnce = errors.New("sent once")

// late is that moment, on a machine that is busy.
const late = 500 * time.Millisecond

// soakClient makes requests of all kinds to the sidecar, and checks every byte of the answers.
type soakClient struct {
	base       string // of the sidecar, without a path
	host       string
	secure     *tls.Config // nil without TLS
	transports []*http.Transport
}

// newSoakClient makes a client of HTTP/1.1 and HTTP/2, over TLS where there are roots.
func newSoakClient(fhirBase string, roots *x509.CertPool) *soakClient {
	c := &soakClient{base: strings.TrimSuffix(fhirBase, "/fhir")}
	_, c.host, _ = strings.Cut(c.base, "://")
	if roots != nil {
		c.secure = &tls.Config{RootCAs: roots}
	}
	for _, kind := range []struct{ two, once bool }{{}, {once: true}, {two: true}} {
		transport := &http.Transport{
			DisableCompression: true, DisableKeepAlives: kind.once, MaxIdleConnsPerHost: 64, TLSClientConfig: c.secure.Clone(), Protocols: &http.Protocols{},
			ExpectContinueTimeout: time.Hour, // a 100 that does not come is a hang
		}
		transport.Protocols.SetHTTP1(!kind.two)
		transport.Protocols.SetHTTP2(kind.two && roots != nil)
		transport.Protocols.SetUnencryptedHTTP2(kind.two && roots == nil)
		c.transports = append(c.transports, transport)
	}
	return c
}

func (c *soakClient) closeIdle() {
	for _, transport := range c.transports {
		transport.CloseIdleConnections()
	}
}

// one makes a request of a random kind. What takes too long is a hang, whatever the server did.
func (c *soakClient) one(ctx context.Context, random *rand.Rand) error {
	visit := visits[random.IntN(len(visits))]
	ctx, cancel := context.WithTimeout(ctx, soakTimeout)
	defer cancel()
	err := visit.do(c, ctx, random)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s: hangs for %v", visit.name, soakTimeout)
	}
	switch {
	case err == nil:
		return nil
	case visit.once:
		return fmt.Errorf("%s: %w: %w", visit.name, errOnce, err)
	default:
		return fmt.Errorf("%s: %w", visit.name, err)
	}
}

func address(seed uint64, size int, mode string) string {
	return fmt.Sprintf("%s?seed=%d&size=%d&mode=%s", soakPath, seed, size, mode)
}

// send gives the answer with its body still to be read; 502 is errUnavailable.
func (c *soakClient) send(ctx context.Context, random *rand.Rand, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, header)
	return c.roundTrip(random, request)
}

func (c *soakClient) roundTrip(random *rand.Rand, request *http.Request) (*http.Response, error) {
	response, err := c.transports[random.IntN(len(c.transports))].RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if response.StatusCode != http.StatusBadGateway {
		if theirs, ours := response.Header.Get(soakSeen), response.Header.Get(soakID); theirs != "" && theirs != ours {
			_ = response.Body.Close()
			return nil, fmt.Errorf("the server knows the request as %q, its client as %q", theirs, ours)
		}
		return response, nil
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if request.Method != http.MethodHead && (err != nil || !bytes.Contains(text, []byte(`"OperationOutcome"`))) {
		return nil, fmt.Errorf("a 502 without an OperationOutcome: %.200q, %v", text, err) //nolint:errorlint // a nil error is shown as well
	}
	return nil, fmt.Errorf("%w: status 502", errUnavailable)
}

// whole reads an answer to its end and compares.
func whole(response *http.Response, status int, want []byte) error {
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	switch {
	case response.StatusCode != status:
		return fmt.Errorf("status %d, want %d: %.200q", response.StatusCode, status, got)
	case err != nil && bytes.HasPrefix(want, got):
		return fmt.Errorf("%w: %w", errUnavailable, err)
	case !bytes.Equal(got, want):
		return fmt.Errorf("a wrong body of %d bytes, want %d: %v", len(got), len(want), err) //nolint:errorlint // a nil error is shown as well
	}
	return nil
}

func (c *soakClient) read(ctx context.Context, random *rand.Rand, mode string, most int) error {
	seed, size := random.Uint64N(1<<32), random.IntN(most)
	response, err := c.send(ctx, random, http.MethodGet, address(seed, size, mode), nil, nil)
	if err != nil {
		return err
	}
	return whole(response, http.StatusOK, soakBody(seed, size))
}

// readCut reads an answer that the server does not finish: that must show.
func (c *soakClient) readCut(ctx context.Context, random *rand.Rand) error {
	seed, size := random.Uint64N(1<<32), 1000+random.IntN(200_000)
	response, err := c.send(ctx, random, http.MethodGet, address(seed, size, "cut"), nil, nil)
	if err != nil {
		// The connection may be cut before the head has left for the client.
		if errors.Is(err, errUnavailable) {
			return nil
		}
		return err
	}
	err = whole(response, http.StatusOK, soakBody(seed, size))
	if err == nil {
		return errors.New("half of an answer looks whole")
	}
	if errors.Is(err, errUnavailable) {
		return nil
	}
	return err
}

func (c *soakClient) head(ctx context.Context, random *rand.Rand) error {
	size := random.IntN(1 << 20)
	response, err := c.send(ctx, random, http.MethodHead, address(1, size, "length"), nil, nil)
	if err != nil {
		return err
	}
	if response.ContentLength != int64(size) {
		_ = response.Body.Close()
		return fmt.Errorf("Content-Length %d, want %d", response.ContentLength, size)
	}
	return whole(response, http.StatusOK, nil)
}

func (c *soakClient) conditional(ctx context.Context, random *rand.Rand) error {
	seed := random.Uint64N(1 << 32)
	response, err := c.send(ctx, random, http.MethodGet, address(seed, 1000, "length"), http.Header{"If-None-Match": {soakTag(seed)}}, nil)
	if err != nil {
		return err
	}
	if tag := response.Header.Get("ETag"); tag != soakTag(seed) {
		_ = response.Body.Close()
		return fmt.Errorf("ETag %s, want %s", tag, soakTag(seed))
	}
	return whole(response, http.StatusNotModified, nil)
}

func (c *soakClient) post(ctx context.Context, random *rand.Rand, most int, withLength bool) error {
	seed, size := random.Uint64N(1<<32), random.IntN(most)
	content := soakBody(seed, size)
	var body io.Reader = bytes.NewReader(content)
	if !withLength {
		body = io.MultiReader(body) // hides how long it is
	}
	response, err := c.send(ctx, random, http.MethodPost, address(seed, size, ""), http.Header{"Content-Type": {"application/octet-stream"}}, body)
	if err != nil {
		return err
	}
	return whole(response, http.StatusCreated, content[:min(size, tooMuchEchoed)])
}

// dial opens a connection that ends with ctx.
func (c *soakClient) dial(ctx context.Context) (net.Conn, error) {
	dial := (&net.Dialer{}).DialContext
	if c.secure != nil {
		dial = (&tls.Dialer{Config: c.secure}).DialContext
	}
	conn, err := dial(ctx, "tcp", c.host)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return conn, conn.SetDeadline(deadline)
}

// upgrade talks over an upgraded connection, and leaves without a word.
func (c *soakClient) upgrade(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", address(1, 1, ""), c.host); err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnavailable, err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusSwitchingProtocols:
	case http.StatusBadGateway:
		return errUnavailable
	default:
		return fmt.Errorf("status %d, want 101", response.StatusCode)
	}
	for range 1 + random.IntN(5) {
		sent := soakBody(random.Uint64N(1<<32), 1+random.IntN(8000))
		got := make([]byte, len(sent))
		if _, err := conn.Write(sent); err != nil {
			return fmt.Errorf("%w: %w", errUnavailable, err)
		}
		if n, err := io.ReadFull(in, got); err != nil {
			return fmt.Errorf("%w: %w after %d bytes", errUnavailable, err, n)
		}
		if !bytes.Equal(got, sent) {
			return errors.New("other bytes came back than were sent")
		}
	}
	return nil
}

// leaveReading closes the connection in the middle of an answer.
func (c *soakClient) leaveReading(ctx context.Context, random *rand.Rand) error {
	mode := []string{"length", "chunked"}[random.IntN(2)]
	response, err := c.send(ctx, random, http.MethodGet, address(random.Uint64N(1<<32), 2<<20, mode), nil, nil)
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, response.Body, int64(random.IntN(100_000))) // as far as it comes
	return response.Body.Close()
}

// leaveSending closes the connection in the middle of a head or of a body.
func (c *soakClient) leaveSending(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: 100000\r\n\r\n%s",
		address(1, 100_000, ""), c.host, strings.Repeat("x", 50_000))
	_, _ = io.WriteString(conn, request[:random.IntN(len(request))]) // as far as it comes
	return conn.Close()
}
