package fhir_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

// relay passes connections on to a server, until it is silenced: then what comes over those that it has goes nowhere, as behind a
// firewall that has forgotten them.
type relay struct {
	listener net.Listener
	server   string
	accepted atomic.Int32
	ended    sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	dead  *atomic.Bool // of the present ones
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: listener, server: server, dead: new(atomic.Bool)}
	r.ended.Go(func() { r.accept(context.WithoutCancel(t.Context())) })
	t.Cleanup(func() {
		_ = listener.Close() // accept ends with it
		r.mu.Lock()
		for _, conn := range r.conns {
			_ = conn.Close() // most are closed already
		}
		r.conns = nil
		r.mu.Unlock()
		r.ended.Wait()
	})
	return r
}

func (r *relay) accept(ctx context.Context) {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.server)
		if err != nil {
			_ = client.Close() // the test sees it
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, client, server)
		dead := r.dead
		r.mu.Unlock()
		r.accepted.Add(1)
		r.ended.Go(func() { pass(server, client, dead) })
		r.ended.Go(func() { pass(client, server, dead) })
	}
}

func pass(to, from net.Conn, dead *atomic.Bool) {
	buffer := make([]byte, 4<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			if !dead.Load() {
				_ = to.Close() // one end tells the other
			}
			return
		}
		if !dead.Load() {
			_, _ = to.Write(buffer[:n]) // the next read sees that it is closed
		}
	}
}

// silence forgets the present connections.
func (r *relay) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead.Store(true)
	r.dead = new(atomic.Bool)
}

// Ensure that a connection of HTTP/2 that has died in silence fails its requests, and that those behind go over a new one.
func TestProtocolNoticesDeadConnections(t *testing.T) {
	for _, protocol := range []fhir.Protocol{fhir.HTTP2, fhir.H2C} {
		t.Run(string(protocol), func(t *testing.T) {
			arrived, release := make(chan struct{}, 1), make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					arrived <- struct{}{}
					<-release
				}
			}))
			server.EnableHTTP2 = true
			server.Config.Protocols = new(http.Protocols)
			server.Config.Protocols.SetHTTP2(protocol == fhir.HTTP2)
			server.Config.Protocols.SetUnencryptedHTTP2(protocol == fhir.H2C)
			transport, scheme := &http.Transport{}, "http"
			if protocol == fhir.HTTP2 {
				server.StartTLS()
				scheme = "https"
				transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
				transport.TLSClientConfig.RootCAs.AddCert(server.Certificate())
			} else {
				server.Start()
			}
			t.Cleanup(server.Close)
			defer close(release)
			protocol.Apply(transport)
			if transport.HTTP2 == nil || transport.HTTP2.SendPingTimeout <= 0 || transport.HTTP2.PingTimeout <= 0 {
				t.Fatal("nobody asks whether the server is still there")
			}
			transport.HTTP2.SendPingTimeout, transport.HTTP2.PingTimeout = 50*time.Millisecond, time.Second
			t.Cleanup(transport.CloseIdleConnections)
			between := newRelay(t, server.Listener.Addr().String())
			get := func(path string) error {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+between.listener.Addr().String()+path, nil)
				if err != nil {
					t.Error(err)
					return err
				}
				response, err := transport.RoundTrip(request)
				if err != nil {
					if ctx.Err() != nil {
						t.Error("a request waits for ever")
					}
					return err
				}
				_, err = io.Copy(io.Discard, response.Body)
				response.Body.Close()
				return err
			}
			ended := make(chan error, 1)
			go func() { ended <- get("/slow") }()
			select {
			case <-arrived:
			case err := <-ended:
				t.Fatalf("no request arrives: %v", err)
			}
			between.silence()
			if err := <-ended; err == nil {
				t.Error("a request over a dead connection was answered")
			}
			if err := get("/next"); err != nil || between.accepted.Load() != 2 {
				t.Errorf("the next request: %v, connections: %d", err, between.accepted.Load())
			}
		})
	}
}
