//go:build linux

// Command proxy measures the forwarder beside nginx, Caddy and httputil.ReverseProxy, all in one run and in turn; bench/proxy/run
// starts it. It prints tables, and lines of the form: figure: NAME VALUE GOAL.
//
// BENCH_CELLS names what to measure (of 2k,200k,200k-length,20m,post1m,latency,memory; all by default), BENCH_ROUNDS how often (5 by default).
package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
		os.Exit(1)
	}
}

// run measures, or is one of the processes of a measurement.
func run(arguments []string) error {
	switch {
	case len(arguments) == 2 && arguments[0] == "upstream":
		return newUpstream().listenAndServe(arguments[1])
	case len(arguments) == 3 && arguments[0] == "plain":
		return servePlain(arguments[1], arguments[2])
	case len(arguments) == 2 && arguments[0] == "load":
		return openLoad(arguments[1])
	case len(arguments) > 0:
		return errors.New("run it by make bench-proxy")
	}
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("BENCH_ROUNDS"), "5"))
	if err != nil || rounds < 1 {
		return fmt.Errorf("BENCH_ROUNDS is no number of rounds: %q", os.Getenv("BENCH_ROUNDS"))
	}
	wanted, err := wantedCells(os.Getenv("BENCH_CELLS"))
	if err != nil {
		return err
	}
	folder, err := os.Getwd()
	if err != nil {
		return err
	}
	upstream, err := startUpstream()
	if err != nil {
		return err
	}
	defer func() { _ = upstream.stop() }()
	s := &servers{folder: folder, upstream: upstream}
	if err := speed(s, wanted, rounds); err != nil {
		return err
	}
	if slices.Contains(wanted, memoryCell) {
		return memory(s, min(rounds, 3)) // it varies little
	}
	return nil
}

// The cells beside those of full load.
const latencyCell, memoryCell = "latency", "memory"

func wantedCells(list string) ([]string, error) {
	var known []string
	for _, c := range cells {
		known = append(known, c.name)
	}
	known = append(known, latencyCell, memoryCell)
	if list == "" {
		return known, nil
	}
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("BENCH_CELLS knows no %q, only %s", name, strings.Join(known, ","))
		}
	}
	return wanted, nil
}

// speed measures the cells of full load and the latency, all through the same processes.
func speed(s *servers, wanted []string, rounds int) error {
	if err := writePostScript(s.folder); err != nil {
		return err
	}
	var proxies []*process
	for _, way := range ways {
		proxy, err := s.start(way)
		if err != nil {
			return err
		}
		if way != direct {
			defer func() { _ = proxy.stop() }()
		}
		if err := sameBodies(s.upstream, proxy); err != nil {
			return err
		}
		proxies = append(proxies, proxy)
	}
	for _, c := range cells {
		if slices.Contains(wanted, c.name) {
			if err := c.measure(s.folder, rounds, s.upstream, proxies); err != nil {
				return err
			}
		}
	}
	if slices.Contains(wanted, latencyCell) {
		return latency(rounds, s.upstream, proxies)
	}
	return nil
}

// sameBodies fails where a body comes out of a proxy other than it went in: a fast wrong answer is worth nothing.
func sameBodies(upstream, proxy *process) error {
	for _, path := range []string{small, chunked, withLength, huge} {
		_, want, err := get(upstream.url(path))
		if err != nil {
			return err
		}
		status, got, err := get(proxy.url(path))
		if err != nil {
			return fmt.Errorf("%s through %s: %w", path, proxy.name, err)
		}
		if status != http.StatusOK || sha256.Sum256(got) != sha256.Sum256(want) {
			return fmt.Errorf("%s through %s: status %d, %d bytes that are not the upstream's %d", path, proxy.name, status, len(got), len(want))
		}
	}
	body := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(body) // never fails
	response, err := http.Post(proxy.url(postedChecked), "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	sum, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); string(sum) != want {
		return fmt.Errorf("a body sent through %s arrived as %q, want %s", proxy.name, sum, want)
	}
	return nil
}
