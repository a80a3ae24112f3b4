package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// burstSize is how many rows one transaction of the writer changes.
const burstSize = 60

// event is one write of a resource, as HAPI has confirmed it.
type event struct {
	version int
	// at is lastUpdated. Of a deletion HAPI tells no time: it lies between sent and at.
	sent, at time.Time
	deleted  bool
}

// writer changes a HAPI server and remembers what was confirmed: the truth about any moment comes from it alone.
type writer struct {
	base   string
	random *rand.Rand
	rows   map[string]json.RawMessage // what the writer may change, by Type/id, in its first form
	keys   []string
	every  time.Duration

	mu     sync.Mutex
	events map[string][]event
	writes int
}

// startWriter writes at a mean rate until the returned function is called, which waits for the last answer.
func startWriter(t *testing.T, server *hapiServer, seed uint64, perSecond int) (*writer, func()) {
	t.Helper()
	w := &writer{
		base: server.base, random: rand.New(rand.NewPCG(seed, 7)), events: map[string][]event{},
		rows: map[string]json.RawMessage{}, every: time.Second / time.Duration(perSecond),
	}
	for key, resource := range server.data.rows {
		if typ := typeOf(key); (typ == "Observation" || typ == "Patient" || typ == "Condition") && !strings.Contains(key, "/e2e-") {
			w.rows[key] = resource
			w.keys = append(w.keys, key)
		}
	}
	slices.Sort(w.keys)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(w.every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := w.write(context.WithoutCancel(ctx)); err != nil {
					t.Errorf("writer: %v", err)
					return
				}
			}
		}
	}()
	return w, func() { cancel(); <-done }
}

// write makes one change: an update mostly, else a new row, a deletion, a re-creation or a burst in one transaction.
func (w *writer) write(ctx context.Context) error {
	w.writes++
	key := w.keys[w.random.IntN(len(w.keys))]
	switch dice := w.random.IntN(100); {
	case dice < 15:
		return w.put(ctx, fmt.Sprintf("Observation/w-%d", w.writes), w.fresh(w.writes))
	case dice < 25 && typeOf(key) == "Observation", w.gone(key):
		if w.gone(key) {
			return w.put(ctx, key, w.changed(key))
		}
		return w.remove(ctx, key)
	case dice < 27:
		return w.burst(ctx)
	}
	return w.put(ctx, key, w.changed(key))
}

// gone tells whether the writer has deleted a row.
func (w *writer) gone(key string) bool {
	events := w.events[key]
	return len(events) > 0 && events[len(events)-1].deleted
}

// fresh is a row that was not there.
func (w *writer) fresh(n int) json.RawMessage {
	return row(`{"resourceType":"Observation","id":"w-%d","status":"final","code":{"text":"written"},"valueInteger":%d}`, n, n)
}

// changed is a row in a new form.
func (w *writer) changed(key string) json.RawMessage {
	rest, _ := strings.CutPrefix(strings.TrimSpace(string(w.rows[key])), "{")
	return json.RawMessage(fmt.Sprintf(`{"implicitRules":"http://e2e.example/%d",%s`, w.writes*1000+w.random.IntN(1000), rest))
}

func (w *writer) note(key string, e event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events[key] = append(w.events[key], e)
}

func (w *writer) put(ctx context.Context, key string, resource json.RawMessage) error {
	sent := time.Now()
	answer, err := w.ask(ctx, http.MethodPut, "/"+key, resource)
	if err != nil {
		return err
	}
	var meta struct {
		Meta struct {
			VersionID   string    `json:"versionId"`
			LastUpdated time.Time `json:"lastUpdated"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(answer, &meta); err != nil {
		return fmt.Errorf("decode the answer to a PUT: %w", err)
	}
	version, err := strconv.Atoi(meta.Meta.VersionID)
	w.note(key, event{version: version, sent: sent, at: meta.Meta.LastUpdated})
	return err
}

func (w *writer) remove(ctx context.Context, key string) error {
	sent := time.Now()
	if _, err := w.ask(ctx, http.MethodDelete, "/"+key, nil); err != nil {
		if strings.Contains(err.Error(), "409") { // something refers to it
			return nil
		}
		return err
	}
	version := w.originally(key) + 1
	if events := w.events[key]; len(events) > 0 {
		version = events[len(events)-1].version + 1
	}
	w.note(key, event{version: version, sent: sent, at: time.Now(), deleted: true})
	return nil
}

// originally is the version of a row before the writer came: the loaded ones are first versions.
func (w *writer) originally(key string) int {
	if w.rows[key] == nil {
		return 0
	}
	return 1
}

// burst changes many rows in one transaction, whose rows share one lastUpdated.
func (w *writer) burst(ctx context.Context) error {
	type request struct {
		Method string `json:"method"`
		URL    string `json:"url"`
	}
	type entry struct {
		Resource json.RawMessage `json:"resource"`
		Request  request         `json:"request"`
	}
	bundle := struct {
		ResourceType string  `json:"resourceType"`
		Type         string  `json:"type"`
		Entry        []entry `json:"entry"`
	}{ResourceType: "Bundle", Type: "transaction"}
	keys := map[string]bool{}
	for len(keys) < burstSize {
		key := w.keys[w.random.IntN(len(w.keys))]
		if keys[key] {
			continue
		}
		keys[key] = true
		bundle.Entry = append(bundle.Entry, entry{w.changed(key), request{"PUT", key}})
	}
	body, err := json.Marshal(bundle)
	if err != nil {
		return err
	}
	sent := time.Now()
	answer, err := w.ask(ctx, http.MethodPost, "", body)
	if err != nil {
		return err
	}
	var response struct {
		Entry []struct {
			Response struct {
				ETag string `json:"etag"`
			} `json:"response"`
		} `json:"entry"`
	}
	if err := json.Unmarshal(answer, &response); err != nil || len(response.Entry) != len(bundle.Entry) {
		return errors.Join(err, fmt.Errorf("%d answers to a transaction of %d", len(response.Entry), len(bundle.Entry)))
	}
	at, err := w.updated(ctx, bundle.Entry[0].Request.URL) // of all of them: the answer tells no time
	if err != nil {
		return err
	}
	for i, entry := range response.Entry {
		version, err := strconv.Atoi(strings.Trim(entry.Response.ETag, `W/"`))
		if err != nil {
			return fmt.Errorf("ETag of a transaction: %w", err)
		}
		w.note(bundle.Entry[i].Request.URL, event{version: version, sent: sent, at: at})
	}
	return nil
}

// updated reads when a row was written last.
func (w *writer) updated(ctx context.Context, key string) (time.Time, error) {
	answer, err := w.ask(ctx, http.MethodGet, "/"+key, nil)
	if err != nil {
		return time.Time{}, err
	}
	var resource struct {
		Meta struct {
			LastUpdated time.Time `json:"lastUpdated"`
		} `json:"meta"`
	}
	err = json.Unmarshal(answer, &resource)
	return resource.Meta.LastUpdated, err
}

func (w *writer) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/fhir+json")
	answer, err := do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return answer, nil
}

// versionsAt are the versions that a row may have at a moment, 0 for none. There are two when the moment lies within a
// deletion.
func (w *writer) versionsAt(key string, at time.Time) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	current := []int{w.originally(key)}
	for _, e := range w.events[key] {
		switch {
		case !e.deleted && !e.at.After(at):
			current = []int{e.version}
		case e.deleted && !e.at.After(at):
			current = []int{0}
		case e.deleted && !e.sent.After(at):
			current = append(current, 0)
		}
	}
	return current
}

// keysOf are the rows that the writer may have touched, those of belongs only.
func (w *writer) keysOf(belongs func(key string) bool) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var keys []string
	for _, key := range w.keys {
		if belongs(key) {
			keys = append(keys, key)
		}
	}
	for key := range w.events {
		if w.rows[key] == nil && belongs(key) {
			keys = append(keys, key)
		}
	}
	return keys
}

// check compares versions by Type/id with the truth at a moment and prints the account.
func (w *writer) check(t *testing.T, name string, got map[string]int, at time.Time, belongs func(key string) bool) {
	t.Helper()
	lost, extra, older, newer, changed := 0, 0, 0, 0, 0
	for _, key := range w.keysOf(belongs) {
		want, have := w.versionsAt(key, at), got[key]
		w.mu.Lock()
		for _, e := range w.events[key] {
			if e.at.After(at) {
				changed++
				break
			}
		}
		w.mu.Unlock()
		if !slices.Contains(want, have) && lost+extra+older+newer < 3 {
			w.explain(t, key, have, at)
		}
		switch {
		case slices.Contains(want, have):
		case have == 0:
			lost++
		case slices.Equal(want, []int{0}):
			extra++
		case have < slices.Max(want):
			older++
		default:
			newer++
		}
	}
	for key := range got {
		if w.rows[key] == nil && strings.HasPrefix(key, "Observation/w-") && w.events[key] == nil {
			extra++
		}
	}
	t.Logf("writer: %s: %d rows, %d changed after T, %d writes: %d lost, %d extra, %d older, %d newer", name, len(got), changed, w.writes, lost, extra, older, newer)
	if lost+extra+older+newer > 0 {
		t.Error("the export is not the state at its transactionTime")
	}
	if changed == 0 {
		t.Error("nothing changed after T: the test shows nothing")
	}
}

// explain prints what is known of a row that is not as it should be.
func (w *writer) explain(t *testing.T, key string, have int, at time.Time) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%s: version %d at T %s", key, have, at.Format(time.RFC3339Nano))
	for _, e := range w.events[key] {
		t.Logf("  version %d of %s, deleted %v, sent %s", e.version, e.at.UTC().Format(time.RFC3339Nano), e.deleted, e.sent.UTC().Format(time.RFC3339Nano))
	}
}

// versions reads the versions of exported rows.
func versions(t *testing.T, rows map[string]json.RawMessage) map[string]int {
	t.Helper()
	found := make(map[string]int, len(rows))
	for key, line := range rows {
		var meta struct {
			Meta struct {
				VersionID string `json:"versionId"`
			} `json:"meta"`
		}
		if err := json.Unmarshal(line, &meta); err != nil {
			t.Fatal(err)
		}
		version, err := strconv.Atoi(meta.Meta.VersionID)
		if err != nil {
			t.Fatal(err)
		}
		found[key] = version
	}
	return found
}

// privateHAPI starts a server of its own on a copy of the loaded records, for tests that change them.
func privateHAPI(t *testing.T) *hapiServer {
	t.Helper()
	data := hapi(t).data // builds what has to be built
	database, err := loadedDatabase(data)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if err := copyFile(filepath.Join(folder, "hapi.mv.db"), database); err != nil {
		t.Fatal(err)
	}
	server, err := startHAPI(folder)
	if err != nil {
		t.Fatal(err)
	}
	server.data = data
	t.Cleanup(func() {
		if err := server.stop(); err != nil {
			t.Errorf("stop HAPI: %v", err)
		}
	})
	return server
}

// Ensure exports are the state at T while HAPI is written to, and that a chain of increments adds up to it.
func TestWriterBesideExports(t *testing.T) {
	server := privateHAPI(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := startSidecar(t, server.base, settings{"settle": "3s"})
	everything := func(string) bool { return true }
	w, stop := startWriter(t, server, seed, 5)
	export := s.export(t, "$export")
	stop()
	w.check(t, "system, 5/s", versions(t, export.rows), export.manifest.TransactionTime, everything)

	again, stop := startWriter(t, server, seed+1, 20)
	again.events = w.events
	defer stop()
	for _, path := range []string{"Patient/$export", "Group/" + groupTen + "/$export"} {
		export := s.export(t, path)
		at := export.manifest.TransactionTime
		members := expectedOf(t, server.data, path, at)
		again.check(t, path+", 20/s", versions(t, export.rows), at, func(key string) bool { return members[key] })
	}
	replica := map[string]int{}
	since := ""
	for n := range 4 {
		export := s.export(t, "$export"+since)
		for key, version := range versions(t, export.rows) {
			replica[key] = version
		}
		for _, key := range deletions(t, export.manifest) {
			if export.rows[key] != nil {
				t.Errorf("%s is in output and in deleted", key)
			}
			delete(replica, key)
		}
		at := export.manifest.TransactionTime
		again.check(t, fmt.Sprintf("chain %d, 20/s", n), replica, at, everything)
		since = "?_since=" + at.UTC().Format(instantLayout)
	}
}

// deletions reads the deleted files of a manifest.
func deletions(t *testing.T, m manifest) (keys []string) {
	t.Helper()
	for _, file := range m.Deleted {
		for _, line := range downloadFile(t, file) {
			var bundle struct {
				Entry []struct {
					Request struct{ Method, URL string } `json:"request"`
				} `json:"entry"`
			}
			if err := json.Unmarshal(line, &bundle); err != nil {
				t.Fatal(err)
			}
			for _, entry := range bundle.Entry {
				keys = append(keys, entry.Request.URL)
			}
		}
	}
	return keys
}
