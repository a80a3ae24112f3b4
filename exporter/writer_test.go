package exporter_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// knobs say how a writer behaves. The chances are per cent of its actions.
type knobs struct {
	// every is the mean time between two actions.
	every time.Duration
	// burst is the largest number of writes in one instant.
	burst int
	// bundles, deletes, returns (of deleted resources under their id) and groups (changed members) are the chances of
	// those actions; the rest creates and updates. ahead is the chance that a request for a page is overtaken by a write
	// of a row that it asks for.
	bundles, deletes, returns, groups, ahead int
	// late is the chance that an action is stamped when it begins and seen up to lag later.
	late int
	lag  time.Duration
	// provenance tells that Provenance is written, too.
	provenance bool
}

// writer changes a sample server at random, in the background and between the requests of an export.
type writer struct {
	*ledger
	t *testing.T
	knobs

	mu     sync.Mutex // of random, n and named
	random *rand.Rand
	n      int
	// named are the resources that fresh named, for Provenance to be about.
	named []string
	// lastPage is when a row was asked for last, in nanoseconds since 1970. told is when each type's history was asked for
	// first after the last page of the type.
	lastPage atomic.Int64
	told     map[string]time.Time
	// historyLag is that of the server, looked when it was searched for what was new in each type, to be compared with its history.
	historyLag time.Duration
	looked     map[string]look
	work       sync.WaitGroup
}

// look is a search for what was written from a moment on.
type look struct{ at, from time.Time }

// maxActions is where a writer rests: a server without counts or windows is read to its end only when it is left alone.
const maxActions = 500

// population is the number of Patients that exist or may come.
const population = 12

func everybody() []string {
	ids := make([]string, population)
	for i := range ids {
		ids[i] = fmt.Sprintf("p%d", i)
	}
	return ids
}

func newWriter(t *testing.T, sample *fhirtest.Server, random *rand.Rand, k knobs) *writer {
	return &writer{t: t, ledger: &ledger{sample: sample}, random: random, knobs: k, told: map[string]time.Time{}, looked: map[string]look{}}
}

// fill puts some hundred rows in clumps over two days: apart by hours, by seconds, within a second, in one instant.
func (w *writer) fill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := time.Now().Add(-48 * time.Hour)
	put := func(key string) {
		if err := w.sample.PutAt(w.body(key), at); err != nil {
			w.t.Fatal(err)
		}
	}
	for p := range population - 3 { // the others are named before they exist
		put(fmt.Sprintf("Patient/p%d", p))
	}
	put("Group/h")
	put("Group/g")
	for w.n < 120+w.random.IntN(160) {
		at = at.Add(time.Duration(w.random.IntN(4000)) * time.Second / 2)
		step := []time.Duration{0, 0, time.Microsecond, 3 * time.Millisecond, 200 * time.Millisecond, 2 * time.Second}[w.random.IntN(6)]
		for range 1 + w.random.IntN(40) {
			put(w.fresh())
			at = at.Add(step)
		}
	}
	w.sample.CatchUp()
}

// fresh names a resource that does not exist.
func (w *writer) fresh() string {
	w.n++
	types := []string{"Observation", "Observation", "Observation", "Condition", "Encounter", "Immunization", "Organization"}
	if w.provenance {
		types = append(types, "Provenance", "Provenance")
	}
	typ := types[w.random.IntN(len(types))]
	key := fmt.Sprintf("%s/%s-%d", typ, typ[:3], w.n)
	if typ != "Organization" { // it would go along as what the Provenance refers to
		w.named = append(w.named, key)
	}
	return key
}

// body writes a resource that was never written so before.
func (w *writer) body(key string) []byte {
	w.n++
	typ, id, _ := strings.Cut(key, "/")
	more := ""
	switch typ {
	case "Patient":
		more = fmt.Sprintf(`,"photo":[{"url":"Binary/b%d"}],"gender":%q`, w.n, []string{"female", "male"}[w.random.IntN(2)])
	case "Group":
		var members []string
		for range w.random.IntN(5) {
			members = append(members, member(fmt.Sprintf("Patient/p%d", w.random.IntN(population))))
		}
		if id == "g" {
			members = append(members, member("Group/h"))
		}
		more = `,"type":"person","actual":true,"member":[` + strings.Join(members, ",") + `]`
	case "Observation", "Condition", "Encounter", "Immunization":
		more = fmt.Sprintf(`,"status":%q`, []string{"final", "amended", "cancelled"}[w.random.IntN(3)])
		if w.random.IntN(8) == 0 {
			break // of nobody
		}
		name := "subject"
		if typ == "Immunization" {
			name = "patient"
		}
		more += fmt.Sprintf(`,%q:{"reference":"Patient/p%d"}`, name, w.random.IntN(population))
	case "Provenance":
		var about []string
		for range 1 + w.random.IntN(2) {
			target := fmt.Sprintf("Patient/p%d", w.random.IntN(population))
			if w.random.IntN(5) > 0 {
				target = w.named[w.random.IntN(len(w.named))]
			}
			about = append(about, fmt.Sprintf(`{"reference":%q}`, target+[]string{"", "/_history/1"}[w.random.IntN(2)]))
		}
		at := time.Date(1999, 1, 1, 0, w.random.IntN(1000), 0, w.n*int(time.Millisecond), time.UTC) // each at a time of its own
		more = fmt.Sprintf(`,"target":[%s],"recorded":%q`, strings.Join(about, ","), at.Format(time.RFC3339Nano))
	}
	return fmt.Appendf(nil, `{"resourceType":%q,"id":%q,"language":"w%d"%s}`, typ, id, w.n, more)
}

// start begins to write, also again. The returned function ends it and waits for the late writes; it may be called twice.
func (w *writer) start() (stop func()) {
	done := make(chan struct{})
	w.work.Go(func() {
		for range maxActions {
			w.mu.Lock()
			wait := time.Duration(w.random.ExpFloat64() * float64(w.every))
			w.mu.Unlock()
			select {
			case <-done:
				return
			case <-time.After(wait):
				w.act()
			}
		}
	})
	return sync.OnceFunc(func() {
		close(done)
		w.work.Wait()
	})
}

// rest ends what is changed ahead of pages, too.
func (w *writer) rest() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead = 0
}

// act does one action, now or late.
func (w *writer) act() {
	w.mu.Lock()
	defer w.mu.Unlock()
	writes := w.choose()
	if w.random.IntN(100) >= w.late || strings.HasPrefix(writes[0].key, "Group/") {
		w.commit(writes)
		return
	}
	now := time.Now()
	w.commitLate(writes, now, now.Add(1+time.Duration(w.random.Int64N(int64(w.lag)))))
}

// writing is one write of an action. A deletion has no body.
type writing struct {
	key  string
	body []byte
	// together tells that the whole action is one transaction.
	together bool
}

// choose draws an action: one write, or several of one instant.
func (w *writer) choose() []writing {
	living, gone := w.sample.Keys()
	isGroup := func(key string) bool { return strings.HasPrefix(key, "Group/") }
	living = slices.DeleteFunc(living, isGroup)
	dice := w.random.IntN(100)
	switch {
	case dice < w.groups:
		return []writing{w.write([]string{"Group/g", "Group/h"}[w.random.IntN(2)])}
	case dice < w.groups+w.deletes && len(living) > 0:
		return []writing{{key: living[w.random.IntN(len(living))]}}
	case dice < w.groups+w.deletes+w.returns && len(gone) > 0:
		return []writing{w.write(gone[w.random.IntN(len(gone))])}
	}
	together := w.random.IntN(100) < w.bundles
	size := 1
	if together || w.random.IntN(4) == 0 {
		size = 1 + w.random.IntN(w.burst)
	}
	var writes []writing
	used := map[string]bool{}
	for range size {
		key := w.fresh()
		if w.random.IntN(12) == 0 {
			key = fmt.Sprintf("Patient/p%d", w.random.IntN(population))
		} else if w.random.IntN(2) == 0 && len(living) > 0 {
			key = living[w.random.IntN(len(living))]
		}
		if used[key] {
			continue
		}
		used[key] = true
		one := w.write(key)
		if one.together = together; together && slices.Contains(living, key) && w.random.IntN(100) < w.deletes {
			one.body = nil
		}
		writes = append(writes, one)
	}
	return writes
}

func (w *writer) write(key string) writing { return writing{key: key, body: w.body(key)} }

// commit makes the writes of an action at once, if the server is not late by itself.
func (w *writer) commit(writes []writing) {
	if writes[0].together {
		w.transaction(writes)
		return
	}
	for _, one := range writes {
		if typ, id, _ := strings.Cut(one.key, "/"); one.body == nil {
			_ = w.sample.Delete(typ, id) // it may be gone already
		} else if err := w.sample.Put(one.body); err != nil {
			w.t.Error(err)
		}
	}
}

// commitLate makes the writes of an action with the lastUpdated of one moment, and visible at another.
func (w *writer) commitLate(writes []writing, stamp, visible time.Time) {
	var bodies [][]byte
	for _, one := range writes {
		typ, id, _ := strings.Cut(one.key, "/")
		switch {
		case one.body == nil:
			_ = w.sample.DeleteLate(typ, id, stamp, visible) // it may be gone already
		case one.together:
			bodies = append(bodies, one.body)
		default:
			if err := w.sample.PutLate(one.body, stamp, visible); err != nil {
				w.t.Error(err)
			}
		}
	}
	if len(bodies) > 0 {
		if err := w.sample.TransactionLate(bodies, stamp, visible); err != nil {
			w.t.Error(err)
		}
	}
}

// transaction posts the writes as one Bundle.
func (w *writer) transaction(writes []writing) {
	var entries []string
	for _, one := range writes {
		if one.body == nil {
			entries = append(entries, fmt.Sprintf(`{"request":{"method":"DELETE","url":%q}}`, one.key))
			continue
		}
		entries = append(entries, fmt.Sprintf(`{"resource":%s,"request":{"method":"PUT","url":%q}}`, one.body, one.key))
	}
	body := `{"resourceType":"Bundle","type":"transaction","entry":[` + strings.Join(entries, ",") + `]}`
	answer := httptest.NewRecorder()
	w.sample.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/fhir", bytes.NewBufferString(body)))
	if answer.Code != http.StatusOK {
		w.t.Errorf("a transaction is answered with status %d", answer.Code)
	}
}

// note remembers when the history of a type was asked for.
func (w *writer) note(r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	typ := parts[len(parts)-1]
	if typ == "_search" {
		typ = parts[len(parts)-2]
	}
	query := r.URL.Query()
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(r.Body)
		must(w.t, err)
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, err := url.ParseQuery(string(body))
		must(w.t, err)
		maps.Copy(query, form)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(parts) == 4 && typ == "_history": // /fhir/Type/_history
		if w.told[parts[2]].IsZero() {
			w.told[parts[2]] = time.Now()
		}
	case query.Get("_summary") != "count" && !query.Has("_total") && !query.Has("_id"): // the type is read again
		delete(w.told, typ)
		w.noteLook(typ, query)
	}
}

// noteLook remembers the first page of a search that has no upper bound: what follows goes on behind it.
func (w *writer) noteLook(typ string, query url.Values) {
	for name := range query {
		if !slices.Contains([]string{"_lastUpdated", "_sort", "_count", "_elements"}, name) {
			return
		}
	}
	bound, lower := strings.CutPrefix(query.Get("_lastUpdated"), "ge")
	if from, err := time.Parse(time.RFC3339, bound); err == nil && lower && len(query["_lastUpdated"]) == 1 {
		if known := w.looked[typ]; known.at.IsZero() || !from.After(known.from) {
			w.looked[typ] = look{time.Now(), from}
		}
	}
}

// unknowable lists the resources of which nobody can know whether their last version up to t was seen: it became visible
// after their type's history was asked for, or, where that was not asked for, after the last row was. A history that lags shows what was
// visible a while before, and what a search has found has to be waited for.
func (w *writer) unknowable(t time.Time) map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := time.Unix(0, w.lastPage.Load())
	return w.written(func(v fhirtest.LogEntry) bool {
		seen, asked := w.told[v.Type]
		switch {
		case !asked:
			seen = last
		case w.historyLag > 0:
			seen = seen.Add(-w.historyLag)
			if found := w.looked[v.Type]; found.at.After(seen) && !v.Updated.Before(found.from) {
				seen = found.at
			}
		}
		return !v.Updated.After(t) && v.Visible.After(seen)
	})
}

// overtake is called before each request is answered: now and then a row that a page would show is changed first.
func (w *writer) overtake(r *http.Request) {
	query := r.URL.Query()
	w.note(r)
	if strings.Contains(r.URL.Path, "_history") || strings.HasSuffix(r.URL.Path, "/metadata") || query.Get("_summary") == "count" {
		return
	}
	w.lastPage.Store(time.Now().UnixNano())
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.random.IntN(100) >= w.ahead {
		return
	}
	var from time.Time
	for _, bound := range query["_lastUpdated"] {
		if value, ok := strings.CutPrefix(bound, "ge"); ok {
			from, _ = time.Parse(time.RFC3339, value) // without a bound it is any row
		}
	}
	typ := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	keys := w.sample.KeysSince(typ, from)
	if typ == "Group" || len(keys) == 0 {
		return
	}
	one := w.write(keys[w.random.IntN(len(keys))])
	if w.random.IntN(3) == 0 {
		one.body = nil
	}
	w.commit([]writing{one})
}
