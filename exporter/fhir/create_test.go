package fhir_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

// Ensure that a create does not go over a connection that the server may be about to close for its idleness: the sidecar closes those
// itself, and keeps the ones for reads.
func TestCreateClosesItsIdleConnections(t *testing.T) {
	t.Parallel()
	created, closed := make(chan string, 1), make(chan string, 10)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			created <- r.RemoteAddr
			w.WriteHeader(http.StatusCreated)
			return
		}
		_, _ = io.WriteString(w, `{"resourceType":"Patient","id":"1"}`)
	}))
	server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- conn.RemoteAddr().String()
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(t.Context(), "Patient", "1"); err != nil {
		t.Fatal(err)
	}
	if err := client.Create(t.Context(), "AuditEvent", []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-closed:
		if want := <-created; got != want {
			t.Errorf("the connection from %s was closed, want that of the create, from %s", got, want)
		}
	case <-time.After(30 * time.Second): // connections for reads are kept for longer
		t.Error("the connection of the create stays open")
	}
}
