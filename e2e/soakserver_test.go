//go:build soak

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// soakPath is where the traffic goes: GET /fhir/Binary/soak?seed=1&size=2000&mode=length.
const soakPath = "/fhir/Binary/soak"

// soakPatients is how many Patients it has.
const soakPatients = 50

// soakServer is a FHIR server with one more address, whose bodies follow from the request, so that a wrong byte shows. It can be
// ended and come back at the same address.
type soakServer struct {
	records *fhirtest.Server
	count   int // of the records
	address string

	mu      sync.Mutex
	running *http.Server
	outages []outage

	streams atomic.Int64 // of events, whose clients have not left
}

// outage is a time in which the server was down or cut its connections; until is zero while it lasts.
type outage struct{ from, until time.Time }

func startSoakServer(t *testing.T) *soakServer {
	t.Helper()
	s := &soakServer{records: fhirtest.New(fhirtest.Plain(), "/fhir"), address: freeAddress(t)}
	for _, resource := range fhirtest.Generate(1, soakPatients) {
		if err := s.records.Put(resource); err != nil {
			t.Fatal(err)
		}
		s.count++
	}
	s.listen(t)
	t.Cleanup(func() { _ = s.current().Close() })
	return s
}

func (s *soakServer) current() *http.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

func (s *soakServer) listen(t *testing.T) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = server
	go func() { _ = server.Serve(listener) }() // it ends with Close
	if n := len(s.outages); n > 0 {
		s.outages[n-1].until = time.Now()
	}
}

// restart cuts all connections and comes back after a while.
func (s *soakServer) restart(t *testing.T, down time.Duration) {
	t.Helper()
	s.mu.Lock()
	s.outages = append(s.outages, outage{from: time.Now()})
	s.mu.Unlock()
	if err := s.current().Close(); err != nil {
		t.Error(err)
	}
	pause(t, down)
	s.listen(t)
}

// wasDown tells whether the server was down at some moment between two.
func (s *soakServer) wasDown(from, until time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.outages {
		if !o.from.After(until) && (o.until.IsZero() || !o.until.Before(from)) {
			return true
		}
	}
	return false
}

// soakBody is what belongs to a seed.
func soakBody(seed uint64, size int) []byte {
	body := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(body) // never fails
	return body
}

func soakTag(seed uint64) string { return fmt.Sprintf(`W/"%d"`, seed) }

// soakEvents are n events of a stream.
func soakEvents(seed uint64, n int) []string {
	events := make([]string, n)
	for i := range events {
		events[i] = fmt.Sprintf("id: %d\ndata: %x\n\n", i, soakBody(seed+uint64(i), 100))
	}
	return events
}

// The sidecar gives each request an id in one header, and the server says in the other which id it was told.
const soakID, soakSeen, soakTrailer = "X-Request-Id", "X-Soak-Seen", "X-Soak-Trailer"

// tooMuchEchoed bounds the bodies that come back.
const tooMuchEchoed = 64 << 10

func (s *soakServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != soakPath {
		s.records.ServeHTTP(w, r)
		return
	}
	query := r.URL.Query()
	seed, err := strconv.ParseUint(query.Get("seed"), 10, 32)
	size, err2 := strconv.Atoi(query.Get("size"))
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set(soakSeen, cmp.Or(strings.Join(r.Header[soakID], " "), "none"))
	mode := query.Get("mode")
	switch {
	case mode == "refuse": // and does not ask for the body
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = w.Write(soakBody(seed, 100))
	case mode == "events":
		s.stream(w, r, soakEvents(seed, size))
	case r.Header.Get("Upgrade") != "":
		echoUpgraded(w)
	case r.Method == http.MethodPost:
		got, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has left, or this server ends
		}
		if !bytes.Equal(got, soakBody(seed, size)) {
			http.Error(w, fmt.Sprintf("a wrong body of %d bytes", len(got)), http.StatusTeapot)
			return
		}
		if mode == "trailers" && r.Trailer.Get(soakTrailer) != soakTag(seed) {
			http.Error(w, fmt.Sprintf("a wrong trailer %q", r.Trailer), http.StatusTeapot)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(got[:min(len(got), tooMuchEchoed)]) // an error shows at the client
	case r.Header.Get("If-None-Match") == soakTag(seed):
		w.Header().Set("ETag", soakTag(seed))
		w.WriteHeader(http.StatusNotModified)
	default:
		answerSoak(w, r, soakBody(seed, size), soakTag(seed), mode)
	}
}

// stream sends events, each at once, and then nothing until the client leaves.
func (s *soakServer) stream(w http.ResponseWriter, r *http.Request, events []string) {
	s.streams.Add(1)
	defer s.streams.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	for _, event := range events {
		if _, err := io.WriteString(w, event); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush() // an error shows at the next write
	}
	<-r.Context().Done()
}

// answerSoak sends a body: with its length, in chunks that leave one by one (chunked, trailers), behind an interim answer (hints), or
// half of it (cut).
func answerSoak(w http.ResponseWriter, r *http.Request, body []byte, tag, mode string) {
	if mode == "hints" {
		w.Header().Set("Link", tag)
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", tag)
	chunked := mode == "chunked" || mode == "trailers"
	switch {
	case mode == "trailers":
		w.Header().Set("Trailer", soakTrailer)
	case !chunked:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	if r.Method == http.MethodHead {
		return
	}
	if mode == "cut" {
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for part := range slices.Chunk(body, 16<<10) {
		if _, err := w.Write(part); err != nil {
			return
		}
		if chunked {
			_ = http.NewResponseController(w).Flush() // an error shows at the next write
		}
	}
	if mode == "trailers" {
		w.Header().Set(soakTrailer, tag)
	}
}

// echoUpgraded takes the connection over, as a server of WebSockets does, and sends lines back until the client has gone.
func echoUpgraded(w http.ResponseWriter) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
		return
	}
	_, _ = io.Copy(conn, bufio.NewReader(buffered)) // ends with the client
}
