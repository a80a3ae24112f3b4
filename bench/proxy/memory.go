//go:build linux

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// clients is how many connections memory is measured with.
const clients = 1000

// kept is what a proxy takes beyond what it took at its start, in MB.
type kept struct{ start, idle, flight float64 }

// memory measures what connections cost: idle ones, and such with a request that the upstream lets wait. Every number is of a
// process of its own.
func memory(s *servers, rounds int) error {
	got := map[string][]kept{}
	for range rounds {
		for _, way := range ways[1:] {
			var k kept
			var err error
			if k.start, k.idle, err = s.grown(way, idle); err != nil {
				return fmt.Errorf("idle connections through %s: %w", way, err)
			}
			if _, k.flight, err = s.grown(way, inFlight); err != nil {
				return fmt.Errorf("requests in flight through %s: %w", way, err)
			}
			got[way] = append(got[way], k)
		}
	}
	idleOf := func(way string) float64 { return median(got[way], func(k kept) float64 { return k.idle }) }
	flightOf := func(way string) float64 { return median(got[way], func(k kept) float64 { return k.flight }) }
	fmt.Printf("\n%-12s %14s %14s %18s\n", "PSS, MB", "just started", "+ 1,000 idle", "+ 1,000 in flight")
	for _, way := range ways[1:] {
		fmt.Printf("%-12s %14.1f %14.1f %18.1f\n", way, median(got[way], func(k kept) float64 { return k.start }), idleOf(way), flightOf(way))
	}
	fmt.Printf("figure: idle-mem/caddy %.2f <= 0.65\n", idleOf(sidecar)/idleOf(caddy))
	fmt.Printf("figure: flight-mem/caddy %.2f <= 0.5\n", flightOf(sidecar)/flightOf(caddy))
	return nil
}

// grown starts a proxy, holds connections to it, and returns its memory before and what came on top, in MB.
func (s *servers) grown(way string, hold func(proxy, upstream *process, conns []net.Conn) error) (before, more float64, err error) {
	proxy, err := s.start(way)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = proxy.stop() }()
	if before, err = proxy.pss(); err != nil {
		return 0, 0, err
	}
	conns := make([]net.Conn, clients)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", proxy.address); err != nil {
			return 0, 0, err
		}
		defer func() { _ = conns[i].Close() }()
	}
	if err := hold(proxy, s.upstream, conns); err != nil {
		return 0, 0, err
	}
	after, err := proxy.pss()
	if err != nil {
		return 0, 0, err
	}
	_, _, err = get(s.upstream.url(awake))
	return before / 1e6, (after - before) / 1e6, err
}

// idle lets every connection have one answer.
func idle(proxy, _ *process, conns []net.Conn) error {
	for _, conn := range conns {
		if err := send(conn, proxy.address, small); err != nil {
			return err
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d, %w", response.StatusCode, err)
		}
		response.Body.Close()
	}
	return nil
}

// inFlight sends a request on every connection, and returns when all of them have reached the upstream.
func inFlight(proxy, upstream *process, conns []net.Conn) error {
	for _, conn := range conns {
		if err := send(conn, proxy.address, asleep); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, body, err := get(upstream.url(sleepers))
		if err != nil {
			return err
		}
		if string(body) == fmt.Sprint(len(conns)) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s of %d requests reached the upstream", body, len(conns))
		}
	}
}

func send(conn net.Conn, host, path string) error {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: application/fhir+json\r\n\r\n", path, host)
	return err
}
