//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// An open load: requests leave at a fixed rate whatever becomes of those before, as those of many independent clients do.
const (
	openRate        = 500 // a second
	openConnections = 8
	openLength      = 2 * time.Second
)

// latency measures what every way adds to the answer's time, with all processes on one processor: between two, most of it would be
// the time in which the second one wakes up.
func latency(rounds int, upstream *process, proxies []*process) error {
	for _, proxy := range proxies {
		if err := proxy.moveTo(loadCPU); err != nil {
			return err
		}
	}
	got, err := inTurn(rounds, proxies, func(proxy *process) (slice, error) {
		load := exec.Command("taskset", "-c", strconv.Itoa(loadCPU), os.Args[0], "load", proxy.address)
		output, used, err := underLoad(upstream, proxy, load)
		if err != nil {
			return slice{}, err
		}
		s := slice{cpu: 1e6 * used.proxy / (openRate * openLength.Seconds()), others: used.others}
		_, err = fmt.Sscan(string(output), &s.p50, &s.p99)
		return s, err
	})
	if err != nil {
		return fmt.Errorf("latency %w", err)
	}
	p50 := func(way string) float64 { return median(got[way], func(s slice) float64 { return s.p50 }) }
	p99 := func(way string) float64 { return median(got[way], func(s slice) float64 { return s.p99 }) }
	fmt.Printf("\n%-12s %10s %10s %10s %10s %14s %8s\n", "2k, 500/s", "p50 us", "p99 us", "added p50", "added p99", "CPU us a req.", "others")
	for _, proxy := range proxies {
		way := proxy.name
		fmt.Printf("%-12s %10.0f %10.0f %10.0f %10.0f %14.1f %7.0f%%\n", way, p50(way), p99(way), p50(way)-p50(direct), p99(way)-p99(direct),
			median(got[way], func(s slice) float64 { return s.cpu }), 100*median(got[way], func(s slice) float64 { return s.others }))
	}
	fmt.Printf("figure: p50-added/nginx %.2f <= 1.7\n", (p50(sidecar)-p50(direct))/(p50(nginx)-p50(direct)))
	fmt.Printf("figure: p99-added/caddy %.3f <= 0.05\n", (p99(sidecar)-p99(direct))/(p99(caddy)-p99(direct)))
	return nil
}

// openLoad asks for 2 KB at the fixed rate, and prints p50 and p99 in microseconds.
func openLoad(address string) error {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		all   []time.Duration
		wrong error
	)
	const each = openRate * int(openLength/time.Second) / openConnections
	began := time.Now().Add(50 * time.Millisecond)
	for i := range openConnections {
		group.Go(func() {
			first := began.Add(time.Duration(i) * time.Second / openRate)
			took, err := openConnection(address, first, time.Second*openConnections/openRate, each)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				wrong = err
			}
		})
	}
	group.Wait()
	if wrong != nil {
		return wrong
	}
	slices.Sort(all)
	_, err := fmt.Println(all[len(all)/2].Microseconds(), all[len(all)*99/100].Microseconds())
	return err
}

// openConnection sends requests at their times and returns how long each took. It sleeps and reads in the system calls
// themselves: the timers of Go's runtime are late by up to a millisecond where nothing else happens.
func openConnection(address string, next time.Time, interval time.Duration, count int) (took []time.Duration, err error) {
	runtime.LockOSThread()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	file, err := conn.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = file.Close(), conn.Close() }()
	fd := int(file.Fd())
	if err := syscall.SetNonblock(fd, false); err != nil {
		return nil, err
	}
	request := []byte("GET " + small + " HTTP/1.1\r\nHost: " + address + "\r\nAccept: application/fhir+json\r\n\r\n")
	buffer := make([]byte, 64<<10)
	for range count {
		// A request that is late because of the one before is late for its client; one that woke up late is not.
		start := next
		if wait := time.Until(next); wait > 0 {
			sleeping := syscall.NsecToTimespec(wait.Nanoseconds())
			for syscall.Nanosleep(&sleeping, &sleeping) == syscall.EINTR {
			}
			start = time.Now()
		}
		next = next.Add(interval)
		if _, err := syscall.Write(fd, request); err != nil {
			return nil, err
		}
		if err := readSmall(fd, buffer); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// readSmall reads one answer of 2 KB.
func readSmall(fd int, buffer []byte) error {
	for got := 0; ; {
		n, err := syscall.Read(fd, buffer[got:])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 {
			return fmt.Errorf("the answer ended after %d bytes: %w", got, err)
		}
		got += n
		if !bytes.HasPrefix(buffer[:got], []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("the answer begins with %.20q", buffer[:got])
		}
		if end := bytes.Index(buffer[:got], []byte("\r\n\r\n")); end >= 0 && got == end+4+2<<10 {
			return nil
		}
	}
}
