package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// crashTimeout bounds each wait of these tests: many times what they take.
	crashTimeout = 2 * time.Minute
	// glance is the pause between two looks.
	glance = 30 * time.Millisecond
	// randomDeaths is how many exports are killed at random, each of them up to three times.
	randomDeaths = 12
)

// crashExports are what is exported: between them they enter every stage.
var crashExports = []struct{ name, path string }{
	{"system", "$export?_since=" + sampleSince},
	{"group", "Group/demo-group/$export"},
}

// Ensure the binary that people run knows no failpoint.
func TestKillPointsAreNotInTheBinary(t *testing.T) {
	for binary, want := range map[*build]bool{theBinary: false, failingBinary: true} {
		content, err := os.ReadFile(binary.get(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"SIDECAR_FAILPOINT", "before commit"} {
			if got := bytes.Contains(content, []byte(text)); got != want {
				t.Errorf("with failpoints %v: holds %q: %v", want, text, got)
			}
		}
	}
}

// Ensure an export whose process is killed is the undisturbed one, at each kind of moment that an undisturbed run passes:
// before and behind each durable step of each stage, while data change.
func TestKillAtEachKindOfMoment(t *testing.T) {
	for _, export := range crashExports {
		want, moments := undisturbed(t, export.path)
		kinds := slices.Compact(slices.Sorted(slices.Values(moments)))
		kinds = slices.DeleteFunc(kinds, func(kind string) bool {
			return strings.Contains(kind, "< checkpoint < committed") // by the clock: only where the machine stood still for seconds
		})
		t.Logf("%s: %d moments of %d kinds", export.name, len(moments), len(kinds))
		for _, step := range []string{"< PutPlan <", "< roll <", "put < putRows", "< prove <", "< store < do", "< join <", "put < putManifest", "in deleteObjects < remove"} {
			if !slices.ContainsFunc(kinds, func(kind string) bool { return strings.Contains(kind, step) }) {
				t.Errorf("%s: no moment of %q in\n%s", export.name, step, strings.Join(kinds, "\n"))
			}
		}
		atOnce(kinds, func(kind string) {
			t.Run(export.name+"/"+kind, func(t *testing.T) {
				c := newCrash(t, export.path)
				c.arm(kind, 1)
				c.once(t, want)
				if c.deaths == 0 && !c.dies(t) {
					t.Error("the moment was not reached")
				}
			})
		})
	}
}

// atOnce calls fn for each item, for several at the same time: an export waits more than it works.
func atOnce[T any](items []T, fn func(T)) {
	work := make(chan T)
	var workers sync.WaitGroup
	for range 6 {
		workers.Go(func() {
			for item := range work {
				fn(item)
			}
		})
	}
	for _, item := range items {
		work <- item
	}
	close(work)
	workers.Wait()
}

// Ensure an export whose process is killed at random moments, up to three times, is the undisturbed one.
func TestKillAtRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CRASH_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal("CRASH_SEED is no number")
		}
	}
	t.Logf("CRASH_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0x6372617368))
	for _, export := range crashExports {
		began := time.Now()
		want, moments := undisturbed(t, export.path)
		took := time.Since(began)
		for n := range randomDeaths / len(crashExports) {
			nths := []int{1 + random.IntN(len(moments)), 1 + random.IntN(len(moments)), 1 + random.IntN(len(moments))}
			after := time.Duration(random.Int64N(int64(took)))
			t.Run(fmt.Sprintf("%s/%d", export.name, n), func(t *testing.T) {
				t.Parallel()
				t.Logf("moments %d, then after %s", nths, after)
				c := newCrash(t, export.path)
				c.later = nths[1:]
				c.arm("", nths[0])
				time.AfterFunc(after, c.killNow)
				c.once(t, want)
				c.kill(t) // an orderly stop might meet a moment that was not reached yet
			})
		}
	}
}

// result is what an export gave, without what differs between any two exports.
type result struct {
	rows    map[string]json.RawMessage
	deleted set
	counts  map[string]int
	account []account
}

// undisturbed runs an export to its end while data change, and gives its result and the moments that it passed. The same
// export of data that stand still has to give the same.
func undisturbed(t *testing.T, path string) (want *result, moments []string) {
	t.Helper()
	still := newCrash(t, path)
	still.still = true
	want = still.run(t)
	c := newCrash(t, path)
	c.record = filepath.Join(t.TempDir(), "moments")
	c.env = []string{"SIDECAR_FAILPOINT_RECORD=" + c.record}
	c.once(t, want)
	text, err := os.ReadFile(c.record)
	if err != nil {
		t.Fatal(err)
	}
	return want, strings.Split(strings.TrimSpace(string(text)), "\n")
}

// crash is an installation whose process may die at any moment, and is started again.
type crash struct {
	*sidecar
	server *sampleServer
	path   string
	record string
	// later are the moments of any kind at which the next processes die.
	later  []int
	deaths int
	kills  chan struct{}
	// still tells that data do not change.
	still bool

	statusURL string
}

func newCrash(t *testing.T, path string) *crash {
	t.Helper()
	server := startSample(t, 60)
	// Small pages and files, so that there is much to interrupt, and one worker, so that the moments follow each other.
	s := newSidecar(t, server.base, settings{
		"page_size": samplePage, "max_file_bytes": 8 << 10, "workers": 1, "settle": "1ms", "log_level": "warn",
	})
	s.binary = failingBinary.get(t)
	return &crash{sidecar: s, server: server, path: path, kills: make(chan struct{}, 1)}
}

// arm lets the next process die at the n-th moment of a kind, of any kind where that is empty.
func (c *crash) arm(kind string, n int) {
	c.env = []string{"SIDECAR_FAILPOINT=" + kind, fmt.Sprintf("SIDECAR_FAILPOINT_NTH=%d", n)}
}

// killNow asks for the process to be killed at once.
func (c *crash) killNow() { c.kills <- struct{}{} }

// once runs the export from its kick-off to its deletion, over all deaths of the process, and compares it.
func (c *crash) once(t *testing.T, want *result) {
	t.Helper()
	c.compare(t, c.run(t), want)
}

func (c *crash) run(t *testing.T) (got *result) {
	t.Helper()
	c.start(t)
	accepted := false
	for deadline := time.Now().Add(crashTimeout); time.Now().Before(deadline); pause(t, glance) {
		select {
		case <-c.kills:
			if c.running() {
				c.kill(t)
			}
		default:
		}
		if !c.running() {
			c.rise(t)
			continue
		}
		switch {
		case !accepted:
			accepted = c.accept(t)
		case got == nil:
			got = c.look(t)
		case c.gone(t):
			return got
		}
	}
	t.Fatalf("the export does not end\n%s", c.logs.tail(4000))
	return nil
}

// dies waits for the death of a process that has done all it was asked for and passes its last moments.
func (c *crash) dies(t *testing.T) bool {
	t.Helper()
	for deadline := time.Now().Add(crashTimeout); time.Now().Before(deadline); pause(t, glance) {
		if !c.running() {
			c.rise(t)
			c.awaitReady(t) // it is stopped next, and has to be there to hear that
			return true
		}
	}
	return false
}

// rise starts the process again after it was killed; any other end fails the test.
func (c *crash) rise(t *testing.T) {
	t.Helper()
	status, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended: %v\n%s", c.result, c.logs.tail(4000))
	}
	c.deaths++
	c.env = nil
	if len(c.later) > 0 {
		c.arm("", c.later[0])
		c.later = c.later[1:]
	}
	c.start(t)
}

// ask sends a request that a dying process may leave without an answer: then the status is 0.
func (c *crash) ask(t *testing.T, method, url string) (int, http.Header, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, nil
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return 0, nil, nil
	}
	return response.StatusCode, response.Header, body
}

// accept kicks the export off. A job of which its client was not told runs to its end first.
func (c *crash) accept(t *testing.T) bool {
	t.Helper()
	switch status, header, body := c.ask(t, http.MethodGet, c.base+"/"+c.path); status {
	case http.StatusAccepted:
		c.statusURL = header.Get("Content-Location")
		if !c.still { // from now on, so that a job that nobody knows changes nothing
			c.server.writeWhileRead(t)
		}
		return true
	case 0, http.StatusTooManyRequests, http.StatusServiceUnavailable: // the bucket has not been tested yet
	default:
		t.Fatalf("kick-off: status %d: %.400s", status, body)
	}
	return false
}

// look asks for the status, and reads the whole result once there is one.
func (c *crash) look(t *testing.T) *result {
	t.Helper()
	status, header, body := c.ask(t, http.MethodGet, c.statusURL)
	if status == 0 || status == http.StatusAccepted {
		return nil
	}
	var m manifest
	if err := json.Unmarshal(body, &m); status != http.StatusOK || err != nil {
		t.Fatalf("status of the export: %d %v: %.400s", status, err, body)
	}
	checkManifest(t, header, body, m)
	return c.read(t, m)
}

// read gives what a manifest lists.
func (c *crash) read(t *testing.T, m manifest) *result {
	t.Helper()
	r := &result{rows: download(t, m), deleted: downloadDeleted(t, m), counts: map[string]int{}, account: m.Extension.Completeness}
	for _, file := range m.Output {
		if file.Count != nil {
			r.counts[file.Type] += *file.Count
		}
	}
	return r
}

// gone deletes the export and tells whether nothing is left of it, on the disk either.
func (c *crash) gone(t *testing.T) bool {
	t.Helper()
	switch status, _, body := c.ask(t, http.MethodDelete, c.statusURL); status {
	case 0, http.StatusAccepted:
		return false
	case http.StatusNotFound:
	default:
		t.Fatalf("DELETE: status %d: %.400s", status, body)
	}
	return c.left(t) == 0
}

// left counts the files of exports that lie in the data folder. A job of which its client was not told keeps its own.
func (c *crash) left(t *testing.T) int {
	t.Helper()
	id := c.statusURL[strings.LastIndexByte(c.statusURL, '/')+1:]
	n := 0
	for _, pattern := range []string{"spool/" + id, "files/*" + id} {
		found, err := filepath.Glob(filepath.Join(c.data, pattern))
		if err != nil {
			t.Fatal(err)
		}
		n += len(found)
	}
	return n
}

func (c *crash) compare(t *testing.T, got, want *result) {
	t.Helper()
	equalRows(t, got.rows, want.rows)
	if !maps.Equal(got.counts, want.counts) || !maps.Equal(got.deleted, want.deleted) {
		t.Errorf("counts %v, deleted %v, want %v and %v", got.counts, got.deleted, want.counts, want.deleted)
	}
	if !slices.Equal(got.account, want.account) {
		t.Errorf("completeness %v, want %v", got.account, want.account)
	}
}
