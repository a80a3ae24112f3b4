package fidelity

import (
	"crypto/tls"
	"slices"
	"testing"
	"time"
)

// Subject is a proxy under test.
type Subject struct {
	// Open starts it before a server at an address, and returns its own address.
	Open func(t *testing.T, server string) string
	// TLS is how the server speaks it, nil for not at all.
	TLS *tls.Config
	// AddsToRequests are fields, by their names in small letters, that it is configured to add to requests, in the place of those that
	// came; AddsToAnswers those that it adds where the server has none.
	AddsToRequests, AddsToAnswers []string
	// Nginx tells that it is nginx: a case that says why nginx differs has to fail.
	Nginx bool
}

// entry is a case of the table.
type entry struct {
	name string
	// nginx says why nginx does otherwise, empty where it does not.
	nginx string
	play  func(*script)
}

// Run runs the table.
func Run(t *testing.T, subject Subject) {
	server, err := newServer(subject.TLS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.listener.Close() }) // nothing is lost with it
	address := subject.Open(t, server.listener.Addr().String())
	for _, e := range slices.Concat(requestEntries(), answerEntries(), brokenEntries(), stepEntries()) {
		t.Run(e.name, func(t *testing.T) {
			s := &script{subject: subject, address: address, server: server, patience: patience}
			if subject.Nginx && e.nginx != "" { // what does not come is what the case says
				s.patience = time.Second
			}
			wrong := s.run(e.play)
			switch {
			case !subject.Nginx || e.nginx == "":
				if wrong != "" {
					t.Error(wrong)
				}
			case wrong == "":
				t.Errorf("nginx does not differ any more: %s", e.nginx)
			default:
				t.Logf("nginx differs: %s\n%s", e.nginx, wrong)
			}
		})
	}
}
