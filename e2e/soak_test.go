//go:build soak

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soakers is how many clients there are at once.
const soakers = 16

// soakTime is a part of the time that SOAK gives to all these tests together.
func soakTime(t *testing.T, part float64) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		text = "2m"
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return time.Duration(float64(d) * part)
}

// startRaced runs the sidecar so that the first race ends it.
func startRaced(t *testing.T, upstream *soakServer) *sidecar {
	t.Helper()
	binary := raceBinary.get(t)
	s := newSidecar(t, "http://"+upstream.address+"/fhir", nil)
	s.binary, s.env = binary, []string{"GORACE=halt_on_error=1"}
	s.start(t)
	s.awaitReady(t)
	return s
}

// soak is traffic of many clients at once.
type soak struct {
	client *soakClient
	done   atomic.Int64
	stop   context.CancelFunc
	group  sync.WaitGroup
}

// startSoak lets clients send requests until it is stopped; judge gets every error with the time of its request.
func startSoak(t *testing.T, client *soakClient, seed uint64, judge func(began, ended time.Time, err error)) *soak {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &soak{client: client, stop: stop}
	t.Cleanup(func() { stop(); s.group.Wait() }) // also where the test has failed
	for i := range soakers {
		s.group.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil {
				began := time.Now()
				// Not ctx: the last request is finished, too.
				if err := client.one(context.WithoutCancel(ctx), random); err != nil {
					judge(began, time.Now(), err)
					select { // a server that is down is not worth a rush
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
				s.done.Add(1)
				if random.IntN(50) == 0 {
					client.closeIdle()
				}
			}
		})
	}
	return s
}

func (s *soak) end(t *testing.T) {
	t.Helper()
	s.stop()
	s.group.Wait()
	s.client.closeIdle()
	t.Logf("%d requests", s.done.Load())
}

func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return seed
}

// Ensure mixed traffic leaves nothing behind in the sidecar, neither goroutines nor descriptors nor memory, while exports run
// beside it, and that every answer is whole and right.
func TestSoakLeavesNothing(t *testing.T) {
	upstream := startSoakServer(t)
	s := startRaced(t, upstream)
	client := newSoakClient(s.base)
	t.Logf("HTTP/2 without TLS: %v", client.offerH2C(t.Context()))
	seed := newSeed(t)
	judge := func(_, _ time.Time, err error) { t.Error(err) }

	// What grows once, such as pools and buffers, is there after a while.
	total := soakTime(t, 0.65)
	warm := startSoak(t, client, seed+1, judge)
	s.exportAll(t, upstream)
	pause(t, total/6)
	warm.end(t)
	upstream.restart(t, 0)
	before := s.settled(t)

	traffic := startSoak(t, client, seed, judge)
	exports := 0
	for end := time.Now().Add(total - total/6); time.Now().Before(end) && !t.Failed(); exports++ {
		s.exportAll(t, upstream)
		pause(t, min(10*time.Second, max(0, time.Until(end))))
	}
	traffic.end(t)
	upstream.restart(t, 0)
	// Dead connections to the server that nobody has asked for since are closed after a minute and a half: as many as were in use
	// at once are no leak. Goroutines do not wait for them.
	const some, idle = 8, 2 * soakers
	var after resources
	for deadline := time.Now().Add(2 * time.Minute); ; pause(t, time.Second) {
		after = s.resources(t)
		if after.goroutines <= before.goroutines+some && after.descriptors <= before.descriptors+some+idle {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("after the traffic there are %+v, before it %+v", after, before)
			break
		}
	}
	if after.memory > before.memory*3/2+(32<<20) {
		t.Errorf("memory grew from %d to %d MiB", before.memory>>20, after.memory>>20)
	}
	t.Logf("%d exports; before the traffic %+v, after it %+v", exports, before, after)
}

// Ensure the sidecar says 502 only while the server is down or has cut a connection, that no request hangs, and that no answer is
// wrong, while the server ends and comes back every few seconds.
func TestSoakRestarts(t *testing.T) {
	upstream := startSoakServer(t)
	s := startRaced(t, upstream)
	seed := newSeed(t)
	random := rand.New(rand.NewPCG(seed, soakers))
	var cut atomic.Int64
	traffic := startSoak(t, newSoakClient(s.base), seed, func(began, ended time.Time, err error) {
		from := began
		if errors.Is(err, errOnce) {
			from = from.Add(-late)
		}
		if !errors.Is(err, errUnavailable) || !upstream.wasDown(from, ended) {
			t.Errorf("%v; the server was there from %s to %s", err, began.Format(time.StampMicro), ended.Format(time.StampMicro))
			return
		}
		cut.Add(1)
	})
	restarts := 0
	for end := time.Now().Add(soakTime(t, 0.35)); time.Now().Before(end) && !t.Failed(); restarts++ {
		pause(t, time.Second+time.Duration(random.Int64N(int64(3*time.Second))))
		down := time.Duration(0)
		if random.IntN(2) == 0 {
			down = time.Duration(random.Int64N(int64(time.Second)))
		}
		upstream.restart(t, down)
	}
	pause(t, time.Second)
	traffic.end(t)
	t.Logf("%d restarts, %d requests met them", restarts, cut.Load())
	if cut.Load() == 0 {
		t.Error("no request met a restart: this test has shown nothing")
	}
}

// exportAll runs an export and counts what it holds.
func (s *sidecar) exportAll(t *testing.T, upstream *soakServer) {
	t.Helper()
	result := s.export(t, "$export")
	if len(result.rows) != upstream.count {
		t.Errorf("%d resources exported, want %d", len(result.rows), upstream.count)
	}
	s.release(t, result.statusURL)
}

// resources are what a process may leak: memory is that of Go's heap, in bytes. What the race detector remembers of all that ever ran
// is not the sidecar's: it grows by some KB a request.
type resources struct{ goroutines, descriptors, memory int64 }

// settled gives the resources once they no longer shrink.
func (s *sidecar) settled(t *testing.T) resources {
	t.Helper()
	for now := s.resources(t); ; {
		pause(t, 3*time.Second)
		next := s.resources(t)
		if next.goroutines >= now.goroutines && next.descriptors >= now.descriptors {
			return next
		}
		now = next
	}
}

func (s *sidecar) resources(t *testing.T) (r resources) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.admin+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := do(request)
	if err != nil {
		t.Fatal(err)
	}
	into := map[string]*int64{"go_goroutines": &r.goroutines, "process_open_fds": &r.descriptors, "go_memstats_heap_inuse_bytes": &r.memory}
	lines := bufio.NewScanner(strings.NewReader(string(text)))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if field := into[name]; field != nil {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			*field = int64(number)
		}
	}
	if r.goroutines == 0 || r.descriptors == 0 || r.memory == 0 {
		t.Fatal(fmt.Errorf("the metrics tell only %+v", r))
	}
	return r
}
