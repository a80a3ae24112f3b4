//go:build figures

package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	politeRounds  = 5
	politeSeconds = 24
	// politeGoal is how far the ratio of the waits beside an export and without one may be above that of two runs without one,
	// leastPace the part of its free pace that an export keeps.
	politeGoal, leastPace = 0.1, 0.1
	// calibrators is how many requests at once show what the server can do, ofCapacity the part of it that the load asks for.
	calibrators, ofCapacity = 6, 3
)

// TestPolite measures what users of HAPI feel of an export: under an open-loop load of a fixed rate, a third of what the server
// can do, through the sidecar. Each round has a run without an export, one with, and another one without: `make bench-polite`.
// Server and load share the machine; the load and the sidecar go first, so that what is measured is the server's. It prints and
// never fails for a time. POLITE_ROUNDS, POLITE_SECONDS (of a run without an export) and POLITE_RATE change it.
func TestPolite(t *testing.T) {
	// A heap in which the collector's pauses, a few each minute, are not what the 99th percentile is made of. With smaller ones, and with
	// G1 or ZGC on two processors, it is: then the figure tells how often there was one.
	javaFlags = []string{"-Xms4g", "-Xmx4g", "-Xmn3g", "-XX:+UseParallelGC", "-XX:TieredStopAtLevel=1"}
	server := hapi(t)
	first(t, os.Getpid())
	s := startSidecar(t, server.base, settings{"live_slowdown": 1.1})
	first(t, s.pid)
	load := newLoad(server.data, s.base)
	load.closed(t, calibrators, 20*time.Second) // the virtual machine compiles what it runs
	capacity := load.closed(t, calibrators, 10*time.Second)
	rate := float64(setting("POLITE_RATE", int(capacity/ofCapacity)))
	fmt.Printf("HAPI does %.0f requests/s; the load is %.0f\n", capacity, rate)

	pause(t, 12*time.Second) // until there are no users any more
	free := s.exportOnce(t)
	fmt.Printf("an export without users reads for %.1f s\n", free)
	var same, paces, p50s, p99s, p50sBeside, p99sBeside []float64
	for round := range setting("POLITE_ROUNDS", politeRounds) {
		span := time.Duration(setting("POLITE_SECONDS", politeSeconds)) * time.Second
		before := load.open(t, rate, func() { pause(t, span) })
		reading := 0.0
		beside := load.open(t, rate, func() { reading = s.exportOnce(t) })
		after := load.open(t, rate, func() { pause(t, span) })
		alone := slices.Concat(before, after)
		fmt.Printf("round %d: p50 %.1f -> %.1f ms, p99 %.1f -> %.1f ms (%.2f x; two without %.2f x), %d -> %d requests, reading %.1f s, pace %.2f, workers %s\n",
			round+1, of(alone, 50), of(beside, 50), of(alone, 99), of(beside, 99), of(beside, 99)/of(alone, 99), of(after, 99)/of(before, 99),
			len(alone), len(beside), reading, free/reading, s.metric(t, "sidecar_export_workers"))
		same, paces = append(same, of(after, 99)/of(before, 99)), append(paces, free/reading)
		p50s, p99s = append(p50s, of(alone, 50)), append(p99s, of(alone, 99))
		p50sBeside, p99sBeside = append(p50sBeside, of(beside, 50)), append(p99sBeside, of(beside, 99))
	}
	fmt.Printf("without an export  p50 %.1f ms, p99 %.1f ms\n", median(p50s), median(p99s))
	fmt.Printf("beside an export   p50 %.1f ms, p99 %.1f ms\n", median(p50sBeside), median(p99sBeside))
	fmt.Printf("two runs without   p99 %.2f x\n", median(same))
	fmt.Printf("figure: live-pace %.2f >= %.2f\n", median(paces), leastPace)
	fmt.Printf("figure: live-p99 %.2f <= %.2f\n", median(p99sBeside)/median(p99s), max(1, median(same))+politeGoal)
}

// first lets all threads of a process go before the server's where both want a core; those that it makes later inherit that.
func first(t *testing.T, pid int) {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err == nil {
			err = syscall.Setpriority(syscall.PRIO_PROCESS, tid, -10)
		}
		if err != nil {
			t.Logf("the load does not go first: %v", err)
			return
		}
	}
}

func setting(name string, byDefault int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return byDefault
}

// exportOnce runs a system export and returns for how many seconds it read.
func (s *sidecar) exportOnce(t *testing.T) float64 {
	t.Helper()
	before := s.readSeconds(t)
	status := s.kickOff(t, "$export")
	for done := false; !done; pause(t, 100*time.Millisecond) {
		done, _, _ = s.poll(t, status)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, status, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(t, request)
	return s.readSeconds(t) - before
}

// readSeconds is for how long all exports have read so far.
func (s *sidecar) readSeconds(t *testing.T) (all float64) {
	t.Helper()
	for line := range strings.Lines(s.logs.tail(1 << 20)) {
		if found := secondsPattern.FindStringSubmatch(line); found != nil && strings.Contains(line, "slices read") {
			n, err := strconv.ParseFloat(found[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			all += n
		}
	}
	return all
}

// metric reads a gauge of the sidecar.
func (s *sidecar) metric(t *testing.T, name string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, body := send(t, request)
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// load asks as the users of a FHIR server do: six in ten read a resource, three search by a patient, one updates something.
type load struct {
	base     string
	data     *dataset
	keys     []string
	writable []string
	random   *rand.Rand
	client   *http.Client
}

func newLoad(data *dataset, base string) *load {
	keys := slices.Sorted(maps.Keys(data.rows))
	writable := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return typeOf(key) != "Encounter" })
	return &load{
		base: base, data: data, keys: keys, writable: writable, random: rand.New(rand.NewPCG(1, 2)),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}, Timeout: time.Minute},
	}
}

// next makes a request.
func (l *load) next(ctx context.Context) (*http.Request, error) {
	switch dice := l.random.IntN(10); {
	case dice < 6:
		return http.NewRequestWithContext(ctx, http.MethodGet, l.base+"/"+l.keys[l.random.IntN(len(l.keys))], nil)
	case dice < 9:
		typ := []string{"Observation", "Encounter", "Condition"}[dice-6]
		patient := l.data.patients[l.random.IntN(len(l.data.patients))]
		return http.NewRequestWithContext(ctx, http.MethodGet, l.base+"/"+typ+"?_count=20&patient="+patient, nil)
	}
	key := l.writable[l.random.IntN(len(l.writable))]
	body := strings.Replace(string(l.data.rows[key]), "{", fmt.Sprintf(`{"language":"x-%d",`, l.random.IntN(1e9)), 1)
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, l.base+"/"+key, strings.NewReader(body))
	if err == nil {
		request.Header.Set("Content-Type", "application/fhir+json")
	}
	return request, err
}

// send reads an answer to its end.
func (l *load) send(request *http.Request) error {
	answer, err := l.client.Do(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if closed := answer.Body.Close(); err == nil {
		err = closed
	}
	if err == nil && answer.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%s of a %s: status %d", request.Method, typeOf(strings.TrimPrefix(request.URL.Path, pathOf(l.base)+"/")), answer.StatusCode)
	}
	return err
}

// closed asks with a number of requests at once and tells how many were answered in a second.
func (l *load) closed(t *testing.T, atOnce int, span time.Duration) float64 {
	t.Helper()
	var mu sync.Mutex // of the dice
	var group sync.WaitGroup
	var answered atomic.Int64
	for until := time.Now().Add(span); atOnce > 0; atOnce-- {
		group.Go(func() {
			for time.Now().Before(until) {
				mu.Lock()
				request, err := l.next(t.Context())
				mu.Unlock()
				if err == nil {
					err = l.send(request)
				}
				if err != nil {
					t.Errorf("load: %v", err)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	return float64(answered.Load()) / span.Seconds()
}

// open asks at a rate, at random moments that do not wait for answers, while during runs. It gives the milliseconds from the moment
// at which each request was due to the end of its answer.
func (l *load) open(t *testing.T, rate float64, during func()) []float64 {
	t.Helper()
	over := make(chan struct{})
	var mu sync.Mutex
	var took []float64
	var group sync.WaitGroup
	group.Go(func() {
		for due := time.Now(); ; {
			due = due.Add(time.Duration(l.random.ExpFloat64() / rate * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-over:
				return
			}
			request, err := l.next(t.Context())
			if err != nil {
				t.Errorf("load: %v", err)
				return
			}
			group.Go(func() {
				if err := l.send(request); err != nil {
					t.Errorf("load: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, float64(time.Since(due))/float64(time.Millisecond))
			})
		}
	})
	during()
	close(over)
	group.Wait()
	return took
}

// of is a percentile.
func of(values []float64, percent int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)]
}
