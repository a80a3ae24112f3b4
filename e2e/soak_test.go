//go:build soak

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soakers is how many clients there are at once.
const soakers = 16

// soakTime is how long each of these tests sends traffic: SOAK, or a minute.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(cmp.Or(os.Getenv("SOAK"), "1m"))
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return d
}

// soaked is a sidecar with all that it can do beside its traffic: it leaves users room beside exports, and it logs, names and traces
// each request.
type soaked struct {
	*sidecar
	spans atomic.Int64 // requests with spans, to the collector
}

// startRaced runs the sidecar so that the first race ends it.
func startRaced(t *testing.T, upstream *soakServer, more settings) *soaked {
	t.Helper()
	config := settings{"live_slowdown": 1.1, "access_log": true, "request_id_header": soakID}
	maps.Copy(config, more)
	s := &soaked{}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		s.spans.Add(1)
	}))
	t.Cleanup(collector.Close)
	binary := raceBinary.get(t)
	s.sidecar = newSidecar(t, "http://"+upstream.address+"/fhir", config)
	s.binary, s.env = binary, []string{"GORACE=halt_on_error=1", "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_BSP_SCHEDULE_DELAY=500"}
	s.start(t)
	s.awaitReady(t)
	return s
}

// observed fails where nothing was logged or traced.
func (s *soaked) observed(t *testing.T) {
	t.Helper()
	if s.spans.Load() == 0 || !strings.Contains(s.logs.tail(1<<20), "request served") {
		t.Errorf("%d times the collector got spans; the log ends with\n%s", s.spans.Load(), s.logs.tail(2000))
	}
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
	s := startRaced(t, upstream, nil)
	client := newSoakClient(s.base, nil)
	seed, total := newSeed(t), soakTime(t)
	judge := func(_, _ time.Time, err error) { t.Error(err) }

	// What grows once, such as pools and buffers, is there after a while.
	s.exportRows(t, "$export", upstream.count)
	warm := startSoak(t, client, seed+1, judge)
	pause(t, total/6)
	warm.end(t)
	upstream.restart(t, 0)
	before := s.settled(t)

	traffic := startSoak(t, client, seed, judge)
	end := time.Now().Add(total - total/6)
	time.AfterFunc(time.Until(end), traffic.stop) // the last export goes on without users, and is soon done
	exports := 0
	for ; time.Now().Before(end) && !t.Failed(); exports++ {
		s.exportRows(t, "$export?_type=Patient", soakPatients) // a small one: the clients leave it little room
	}
	traffic.end(t)
	for deadline := time.Now().Add(10 * time.Second); upstream.streams.Load() > 0; pause(t, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams of events go on without a client", upstream.streams.Load())
		}
	}
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
	after = s.settled(t)
	grown, requests := after.memory-before.memory, traffic.done.Load()
	if grown > someMemory+perRequest*requests {
		t.Errorf("memory grew by %d bytes with %d requests, more than %d and %d each", grown, requests, someMemory, perRequest)
	}
	t.Logf("%d exports; before the traffic %+v, after it %+v: %.1f bytes each request", exports, before, after, float64(grown)/float64(requests))
	s.observed(t)
}

// Ensure the sidecar says 502 only while the server is down or has cut a connection, that no request hangs, and that no answer is
// wrong, while the server ends and comes back every few seconds. Clients come over TLS.
func TestSoakRestarts(t *testing.T) {
	upstream := startSoakServer(t)
	files, roots := certificateFiles(t)
	s := startRaced(t, upstream, settings{"tls": files})
	seed := newSeed(t)
	random := rand.New(rand.NewPCG(seed, soakers))
	var cut atomic.Int64
	client := newSoakClient("https"+strings.TrimPrefix(s.base, "http"), roots)
	traffic := startSoak(t, client, seed, func(began, ended time.Time, err error) {
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
	for end := time.Now().Add(soakTime(t)); time.Now().Before(end) && !t.Failed(); restarts++ {
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
	s.observed(t)
}

// exportRows runs an export and counts what it holds.
func (s *sidecar) exportRows(t *testing.T, path string, want int) {
	t.Helper()
	began := time.Now()
	result := s.export(t, path)
	if len(result.rows) != want {
		t.Errorf("%d resources exported by %s, want %d", len(result.rows), path, want)
	}
	s.release(t, result.statusURL)
	t.Logf("%s took %v", path, time.Since(began).Round(time.Millisecond))
}

// someMemory is by how many bytes the heap may grow whatever is asked of the sidecar, perRequest by how many with each request.
const someMemory, perRequest = 2 << 20, 50

// resources are what a process may leak: memory is what the last collection found in use on Go's heap, in bytes. What the race
// detector remembers of all that ever ran is not the sidecar's: it grows by some KB a request.
type resources struct{ goroutines, descriptors, memory, collections int64 }

// settled gives the resources once they no longer shrink.
func (s *sidecar) settled(t *testing.T) resources {
	t.Helper()
	for now := s.resources(t); ; {
		pause(t, 3*time.Second)
		next := s.resources(t)
		if next.goroutines >= now.goroutines && next.descriptors >= now.descriptors {
			return s.collected(t)
		}
		now = next
	}
}

// collected gives the resources behind some collections: pools let go what nobody took out between two. The looks themselves make
// for the collections.
func (s *sidecar) collected(t *testing.T) resources {
	t.Helper()
	first := s.resources(t).collections
	for {
		if now := s.resources(t); now.collections > first+3 {
			return now
		}
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
	into := map[string]*int64{
		"go_goroutines": &r.goroutines, "process_open_fds": &r.descriptors, "go_gc_heap_live_bytes": &r.memory,
		"go_gc_duration_seconds_count": &r.collections,
	}
	lines := bufio.NewScanner(strings.NewReader(string(text)))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if field := into[name]; field != nil {
			number, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			*field = int64(number)
			delete(into, name)
		}
	}
	if len(into) > 0 {
		t.Fatalf("the metrics do not tell %v", slices.Sorted(maps.Keys(into)))
	}
	return r
}
