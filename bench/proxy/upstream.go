//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Paths of the upstream. The sidecar forwards them all.
const (
	small         = "/fhir/Patient/2k"
	chunked       = "/fhir/Observation/200k"
	withLength    = "/fhir/Observation/200k-length"
	huge          = "/fhir/Binary/20m"
	posted        = "/fhir/Binary"
	postedChecked = "/fhir/Binary/sum"
	asleep        = "/fhir/Observation/asleep"
	awake         = "/fhir/Observation/awake"
	sleepers      = "/fhir/Observation/sleepers"
)

// upstream is the server behind the proxies: it looks up answers that are ready to be sent, so that it is not what is measured.
type upstream struct {
	answers map[string][]byte

	mu       sync.Mutex
	sleeping int
	waking   chan struct{}
}

// chunkSize is what servers on Tomcat send at a time.
const chunkSize = 8 << 10

func newUpstream() *upstream {
	source := rand.NewChaCha8([32]byte{})
	body := func(size int) []byte {
		b := make([]byte, size)
		_, _ = source.Read(b) // never fails
		return b
	}
	u := &upstream{waking: make(chan struct{})}
	u.answers = map[string][]byte{
		small:      answer("200 OK", body(2<<10)),
		chunked:    answerChunked(body(200 << 10)),
		withLength: answer("200 OK", body(200<<10)),
		huge:       answer("200 OK", body(20<<20)),
		posted:     answer("201 Created", body(200)),
	}
	return u
}

const answerHeader = "Content-Type: application/fhir+json;charset=UTF-8\r\nETag: W/\"1\"\r\nLast-Modified: Mon, 05 Jan 2026 08:00:00 GMT\r\n"

func answer(status string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s", status, answerHeader, len(body), body)
}

func answerChunked(body []byte) []byte {
	b := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n", answerHeader)
	for start := 0; start < len(body); start += chunkSize {
		chunk := body[start:min(start+chunkSize, len(body))]
		b = fmt.Appendf(b, "%x\r\n%s\r\n", len(chunk), chunk)
	}
	return append(b, "0\r\n\r\n"...)
}

func (u *upstream) listenAndServe(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go u.serve(conn)
	}
}

// serve answers the requests of one connection, as far as the clients of this benchmark send them: with Content-Length or no body.
func (u *upstream) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReaderSize(conn, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		_, rest, _ := bytes.Cut(line, []byte(" "))
		path, _, _ := bytes.Cut(rest, []byte(" "))
		prepared, known := u.answers[string(path)]
		special := ""
		if !known {
			special = string(path) // the reader will reuse its bytes
		}
		length, err := readHeader(in)
		if err != nil {
			return
		}
		if special == postedChecked {
			prepared, err = sum(in, length)
		} else {
			_, err = in.Discard(length)
		}
		if err != nil {
			return
		}
		switch special {
		case "", postedChecked:
		case asleep:
			u.sleep()
			prepared = u.answers[small]
		case awake:
			u.wake()
			prepared = answer("200 OK", nil)
		case sleepers:
			prepared = answer("200 OK", fmt.Append(nil, u.count()))
		default:
			prepared = answer("404 Not Found", nil)
		}
		if _, err := conn.Write(prepared); err != nil {
			return
		}
	}
}

var contentLength = []byte("content-length:")

// readHeader reads the header of a request to its end, and returns how long the body is.
func readHeader(in *bufio.Reader) (length int, err error) {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			return length, nil
		}
		if n := len(contentLength); len(line) > n && bytes.EqualFold(line[:n], contentLength) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[n:]))); err != nil {
				return 0, err
			}
		}
	}
}

// sum answers with the checksum of a body.
func sum(in io.Reader, length int) ([]byte, error) {
	hash := sha256.New()
	if _, err := io.CopyN(hash, in, int64(length)); err != nil {
		return nil, err
	}
	return answer("201 Created", fmt.Appendf(nil, "%x", hash.Sum(nil))), nil
}

// sleep returns when the next request for awake comes.
func (u *upstream) sleep() {
	u.mu.Lock()
	u.sleeping++
	waking := u.waking
	u.mu.Unlock()
	<-waking
}

func (u *upstream) wake() {
	u.mu.Lock()
	defer u.mu.Unlock()
	close(u.waking)
	u.sleeping, u.waking = 0, make(chan struct{})
}

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sleeping
}
