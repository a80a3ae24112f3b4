package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	lanes = 4
	// throughProxy is how many of the writes, in per cent, go through the sidecar instead of past it.
	throughProxy = 30
)

// writer changes what a server holds, at random: updates, resources that are made, deleted and made again, Groups whose
// members change, one by one and in transactions.
type writer struct {
	server *hapiServer
	ledger *ledger
	lanes  []*lane
}

// newWriter prints the seed of its dice; E2E_SEED repeats one.
func newWriter(t *testing.T, server *hapiServer) *writer {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("E2E_SEED: %v", err)
		}
	}
	t.Logf("writer: E2E_SEED=%d", seed)
	w := &writer{server: server, ledger: &ledger{stamps: map[string]map[int]stamp{}}}
	for number := range lanes {
		l := &lane{number: number, random: rand.New(rand.NewPCG(seed, uint64(number))), did: map[string]int{}}
		for position := range server.data.patients {
			l.patients = append(l.patients, server.data.patient(position))
		}
		w.lanes = append(w.lanes, l)
	}
	named := namedBy(server.data)
	for _, patient := range w.lanes[0].patients {
		named[patient] = true // as soon as a reference is moved
	}
	for place, key := range slices.Sorted(maps.Keys(server.data.rows)) {
		l := w.lanes[place%lanes]
		s := &subject{key: key, body: server.data.rows[key], kept: named[key] || typeOf(key) == "Group"}
		l.live = append(l.live, s)
		if typeOf(key) == "Group" {
			l.groups = append(l.groups, s)
		}
	}
	return w
}

// namedBy gives all that other records refer to.
func namedBy(data *dataset) set {
	named := set{}
	reference := regexp.MustCompile(`"reference":\s*"([A-Za-z]+/[^/"]+)`)
	for _, resource := range data.rows {
		for _, match := range reference.FindAllSubmatch(resource, -1) {
			named[string(match[1])] = true
		}
	}
	return named
}

// stint is a time in which a writer is at work.
type stint struct {
	w      *writer
	proxy  string
	done   chan struct{}
	work   sync.WaitGroup
	writes atomic.Int64
	rows   atomic.Int64
	began  time.Time
}

// start writes at a mean rate in requests per second, past the sidecar and through it, until stop is called.
func (w *writer) start(t *testing.T, rate float64, proxy string) *stint {
	t.Helper()
	s := &stint{w: w, proxy: proxy, done: make(chan struct{}), began: time.Now()}
	for _, l := range w.lanes {
		s.work.Go(func() {
			if err := s.run(t, l, rate/lanes); err != nil {
				t.Errorf("writer: %v", err)
			}
		})
	}
	return s
}

// stop waits for the writes under way.
func (s *stint) stop(t *testing.T) {
	t.Helper()
	close(s.done)
	s.work.Wait()
	seconds := time.Since(s.began).Seconds()
	t.Logf("writer: %d requests wrote %d resources in %.0f s", s.writes.Load(), s.rows.Load(), seconds)
}

// run writes at the random times of a Poisson process. A write that takes long makes up for it: the next ones come at once.
func (s *stint) run(t *testing.T, l *lane, rate float64) error {
	next := time.Now()
	for {
		next = next.Add(time.Duration(l.random.ExpFloat64() / rate * float64(time.Second)))
		timer := time.NewTimer(time.Until(next))
		select {
		case <-s.done:
			timer.Stop()
			return nil
		case <-t.Context().Done():
			timer.Stop()
			return t.Context().Err()
		case <-timer.C:
		}
		changes, many, err := l.next()
		if err != nil {
			return err
		}
		base := s.w.server.base
		if l.random.IntN(100) < throughProxy {
			base = s.proxy
		}
		if many {
			err = s.w.transaction(t, base, changes)
		} else {
			next = next.Add(time.Duration(float64(len(changes)-1) / rate * float64(time.Second))) // a burst counts as its writes
			err = s.w.burst(t, base, changes)
		}
		if err != nil {
			return err
		}
		s.writes.Add(1)
		s.rows.Add(int64(len(changes)))
	}
}

// burst makes single writes of different resources at the same time.
func (w *writer) burst(t *testing.T, base string, changes []change) error {
	errs := make([]error, len(changes))
	var writes sync.WaitGroup
	for i, c := range changes {
		writes.Go(func() { errs[i] = w.write(t, base, c) })
	}
	writes.Wait()
	return errors.Join(errs...)
}

// did adds up what the lanes did, by kind, and fails the test where one kind never came. No stint may be at work.
func (w *writer) did(t *testing.T) {
	t.Helper()
	sum := map[string]int{}
	for _, l := range w.lanes {
		for kind, n := range l.did {
			sum[kind] += n
		}
	}
	t.Logf("writer: %v", sum)
	for _, kind := range []string{"creations", "updates", "deletions", "re-creations", "bursts", "transactions"} {
		if sum[kind] == 0 {
			t.Errorf("writer: no %s", kind)
		}
	}
}

func (w *writer) write(t *testing.T, base string, c change) error {
	method := http.MethodPut
	if c.body == nil {
		method = http.MethodDelete
	}
	request, err := http.NewRequestWithContext(t.Context(), method, base+"/"+c.key, bytes.NewReader(c.body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/fhir+json")
	if c.body != nil {
		body, err := do(request)
		if err != nil {
			return err
		}
		return w.ledger.noteRead(c.key, body)
	}
	from := time.Now().Truncate(time.Millisecond) // as HAPI counts
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	to := time.Now()
	if err := response.Body.Close(); err != nil || response.StatusCode/100 != 2 {
		return fmt.Errorf("delete %s: status %d, %w", c.key, response.StatusCode, err)
	}
	key, number, err := versionAt(response.Header.Get("Content-Location"))
	if err != nil {
		return fmt.Errorf("delete %s: %w", c.key, err)
	}
	w.ledger.note(key, number, stamp{deleted: true, from: from, to: to})
	return nil
}

func (w *writer) transaction(t *testing.T, base string, changes []change) error {
	type entryRequest struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	}
	type entry struct {
		Resource json.RawMessage `json:"resource,omitempty"`
		Request  entryRequest    `json:"request"`
	}
	var entries []entry
	for _, c := range changes {
		method := http.MethodPut
		if c.body == nil {
			method = http.MethodDelete
		}
		entries = append(entries, entry{c.body, entryRequest{method, c.key}})
	}
	body, err := json.Marshal(map[string]any{"resourceType": "Bundle", "type": "transaction", "entry": entries})
	if err != nil {
		return fmt.Errorf("encode the transaction: %w", err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/fhir+json")
	request.Header.Set("Prefer", "return=minimal")
	from := time.Now().Truncate(time.Millisecond)
	answer, err := do(request)
	if err != nil {
		return err
	}
	return w.ledger.noteTransaction(changes, answer, stamp{from: from, to: time.Now()})
}
