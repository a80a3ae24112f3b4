package exporter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// altered lets a test change answers of the sample server.
type altered struct {
	sample http.Handler
	// before answers a request itself when it returns true. May be nil.
	before func(http.ResponseWriter, *http.Request) bool
	// after changes the Bundle of a search of rows and returns a status to answer instead, 0 for none. May be nil.
	after func(*http.Request, *bundle) int
	mu    sync.Mutex // of after: pages are asked for side by side
}

type bundle map[string]any

func (b bundle) entries() []any {
	entries, _ := b["entry"].([]any)
	return entries
}

// has tells whether a row with the id stands in the Bundle.
func (b bundle) has(id string) bool {
	for _, entry := range b.entries() {
		if idOf(entry) == id {
			return true
		}
	}
	return false
}

func idOf(entry any) string {
	resource, _ := entry.(map[string]any)["resource"].(map[string]any)
	id, _ := resource["id"].(string)
	return id
}

func (a *altered) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.before != nil && a.before(w, r) {
		return
	}
	answer := httptest.NewRecorder()
	a.sample.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	var b bundle
	if a.after != nil && answer.Code == http.StatusOK && json.Unmarshal(body, &b) == nil && b["type"] == "searchset" {
		a.mu.Lock()
		status := a.after(r, &b)
		a.mu.Unlock()
		if status != 0 {
			refuse(w, status)
			return
		}
		if changed, err := json.Marshal(b); err == nil && b["changed"] != nil {
			body = changed
		}
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.Header().Del("Content-Length")
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body) // the reader may have gone
}

// refuse answers a status with an outcome.
func refuse(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/fhir+json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"exception"}]}`))
}

// isRead matches requests that read rows of the type in the job, not probes (which ask for ids, or in other orders) and
// counts.
func isRead(r *http.Request, typ string) bool {
	query := r.URL.Query()
	return strings.HasSuffix(r.URL.Path, "/"+typ) && len(query["_lastUpdated"]) > 0 && query.Has("_count") && !query.Has("_id") &&
		query.Get("_summary") == "" || query.Has("_page") || query.Has("_getpages")
}

// cell is one failure of one server with what the export makes of it.
type cell struct {
	server fhirtest.Personality
	// kickoff is system() where it is not set.
	kickoff state.Kickoff
	edit    func(*exporter.Config)
	fill    func(*testing.T, *fhirtest.Server)
	before  func(*bubble) func(http.ResponseWriter, *http.Request) bool
	after   func(*http.Request, *bundle) int
	// code is that of the failure, empty where the export completes. lacks is then the row that it has not got, which the
	// remark says may be; empty where it is exact.
	code, lacks, says string
	// holes and rows are how many holes there are, and rows in them (-1 each); written is how many rows were read.
	holes   int
	rows    int64
	written int64
	reason  string
}

// run makes the export of one cell.
func (c *cell) run(t *testing.T) {
	t.Helper()
	t.Parallel()
	edit := c.edit
	if edit == nil {
		edit = smallPages
	}
	fill := func(s *fhirtest.Server) {
		if c.fill != nil {
			c.fill(t, s)
			return
		}
		thirtyRows(t)(s)
		spread(t, s, "Condition", 25, time.Second, 2*time.Hour)
	}
	inBubble(t, c.server, edit, fill, func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(state.Kickoff{Level: state.System, Types: []string{"Patient"}})) // the probes shall not see the failure
		want := b.snapshot()
		door := &altered{sample: b.link.handler, after: c.after}
		if c.before != nil {
			door.before = c.before(b)
		}
		b.link.handler = door
		kickoff := c.kickoff
		if kickoff.Level == "" {
			kickoff = system()
		}
		job := b.finish(b.kickOff(kickoff))
		if c.code != "" {
			c.failed(t, b, job)
			return
		}
		delete(want, c.lacks)
		same(t, ordered(t, b.rows(job)), ordered(t, want))
		if !strings.Contains(fmt.Sprint(job.Issues), c.says) {
			t.Errorf("the remarks are %+v, want one that says: %s", job.Issues, c.says)
		}
	})
}

// ordered writes the members of rows in one order: altered answers have lost their own.
func ordered(t *testing.T, rows map[string]string) map[string]string {
	t.Helper()
	result := map[string]string{}
	for key, line := range rows {
		var resource map[string]any
		err := json.Unmarshal([]byte(line), &resource)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(resource)
		if err != nil {
			t.Fatal(err)
		}
		result[key] = string(text)
	}
	return result
}

// failed checks the failure and the holes.
func (c *cell) failed(t *testing.T, b *bubble, job *state.Job) {
	t.Helper()
	if job.Status != state.Failed || job.Failure.Code != c.code {
		t.Fatalf("%s %+v, want a failure of code %s", job.Status, job.Failure, c.code)
	}
	slices, err := b.store.Slices(t.Context(), job.ID)
	if err != nil {
		t.Fatal(err)
	}
	holes, rows, written, reason := 0, int64(0), int64(0), ""
	for _, slice := range slices {
		written += slice.Written
		for _, hole := range slice.Holes {
			holes, rows, reason = holes+1, rows+hole.Rows, hole.Reason
		}
	}
	if holes != c.holes || rows != c.rows || written != c.written || reason != c.reason {
		t.Errorf("%d holes of %d rows (%s) beside %d rows, want %d of %d (%s) beside %d",
			holes, rows, reason, written, c.holes, c.rows, c.reason, c.written)
	}
}

// poison fails every answer that holds the row.
func poison(id string) func(*http.Request, *bundle) int {
	return func(_ *http.Request, b *bundle) int {
		if b.has(id) {
			return http.StatusInternalServerError
		}
		return 0
	}
}

// Ensure a row on which the server always fails costs that row, and no other one, whatever the server can do.
func TestPoisonedRow(t *testing.T) {
	noSort := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true })
	noTime := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true })
	crowd := func(t *testing.T, s *fhirtest.Server) {
		thirtyRows(t)(s)
		burst(t, s, "Observation", 25, 90*time.Minute)
	}
	for name, c := range map[string]cell{
		"plain":     {server: fhirtest.Plain(), after: poison("Obs-17"), rows: 1, written: 54},
		"hapi":      {server: fhirtest.HAPI(), after: poison("Obs-17"), rows: 1, written: 54},
		"blaze":     {server: fhirtest.Blaze(), after: poison("Obs-17"), rows: 1, written: 54},
		"microsoft": {server: fhirtest.Microsoft(), after: poison("Obs-17"), rows: 1, written: 54},
		"first row": {server: fhirtest.Plain(), after: poison("Obs-0"), rows: 1, written: 54},
		"last row":  {server: fhirtest.Plain(), after: poison("Obs-29"), rows: 1, written: 54},
		"no sort":   {server: noSort, after: poison("Obs-17"), rows: 1, written: 54},
		// By links nothing can be reached behind it: rows come by id, and Obs-17 is the tenth.
		"no lastUpdated": {server: noTime, after: poison("Obs-17"), rows: -1, written: 34},
		"crowded":        {server: fhirtest.Plain(), fill: crowd, after: poison("burst-7"), rows: 1, written: 54},
		"crowded, hapi":  {server: fhirtest.HAPI(), fill: crowd, after: poison("burst-7"), rows: 1, written: 54},
	} {
		c.code, c.holes, c.reason = "incomplete", 1, "exception"
		t.Run(name, c.run)
	}
}

// Ensure two broken rows are two holes.
func TestTwoPoisonedRows(t *testing.T) {
	first, second := poison("Obs-4"), poison("Obs-25")
	c := cell{
		server: fhirtest.Plain(), code: "incomplete", holes: 2, rows: 2, written: 53, reason: "exception",
		after: func(r *http.Request, b *bundle) int { return max(first(r, b), second(r, b)) },
	}
	t.Run("plain", c.run)
}

// tell puts an outcome of the severity in front of the entries of a page that holds the row.
func tell(id, severity, code string, times int) func(*http.Request, *bundle) int {
	return func(_ *http.Request, b *bundle) int {
		if times == 0 || !b.has(id) {
			return 0
		}
		if times > 0 {
			times--
		}
		outcome := map[string]any{
			"search": map[string]any{"mode": "outcome"},
			"resource": map[string]any{
				"resourceType": "OperationOutcome", "issue": []any{map[string]any{"severity": severity, "code": code}},
			},
		}
		(*b)["entry"], (*b)["changed"] = append([]any{outcome}, b.entries()...), true
		return 0
	}
}

// onRead limits a change to the rows of a type.
func onRead(typ string, change func(*http.Request, *bundle) int) func(*http.Request, *bundle) int {
	return func(r *http.Request, b *bundle) int {
		if !isRead(r, typ) {
			return 0
		}
		return change(r, b)
	}
}

// status answers some of the requests that match with a status: all of them where times is negative.
func status(code, times int, header http.Header, match func(*http.Request) bool) func(*bubble) func(http.ResponseWriter, *http.Request) bool {
	return func(*bubble) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if times == 0 || !match(r) {
				return false
			}
			times--
			for name, values := range header {
				w.Header()[name] = values
			}
			refuse(w, code)
			return true
		}
	}
}

func observations(r *http.Request) bool { return isRead(r, "Observation") }

func anyOf(typ string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/"+typ) }
}

// Ensure every row of the failure table is handled as it stands there (docs/upstreams.md).
func TestFailureTable(t *testing.T) {
	n := 0
	login := func(times int, match func(*http.Request) bool) func(*bubble) func(http.ResponseWriter, *http.Request) bool {
		return func(*bubble) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if times == 0 || !match(r) {
					return false
				}
				times--
				w.Header().Set("Content-Type", "text/html")
				_, _ = w.Write([]byte("<html>sign in</html>"))
				return true
			}
		}
	}
	noTime := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreLastUpdated = true })
	plain := fhirtest.Plain()
	for name, c := range map[string]cell{
		"login page twice":         {server: plain, before: login(2, observations)},
		"login page for good":      {server: plain, before: login(-1, anyOf("Condition")), code: "incomplete", holes: 1, rows: -1, written: 30, reason: "structure"},
		"severe outcome for a row": {server: plain, after: onRead("Observation", tell("Obs-17", "error", "suppressed", -1)), code: "incomplete", holes: 1, rows: -1, written: 55, reason: "suppressed"},
		"severe outcome once":      {server: plain, after: onRead("Observation", tell("Obs-17", "fatal", "suppressed", 1))},
		"remark on a page":         {server: plain, after: onRead("Observation", tell("Obs-17", "information", "informational", -1))},
		"warning of shifted pages": {server: noTime, after: tell("Obs-17", "warning", "incomplete", 1)},
		"rows out of order":        {server: plain, after: onRead("Observation", reversed)},
		"rows without resource":    {server: plain, after: onRead("Observation", bare)},
		"empty page with a link":   {server: plain, after: onRead("Observation", emptied())},
		"superset":                 {server: plain, after: onRead("Observation", foreign), code: "incomplete", holes: 1, rows: 20, written: 35, reason: "not-supported"},
		"next links that loop":     {server: noTime, after: looped, code: "incomplete", holes: 2, rows: -2, written: 40, reason: "incomplete"},
		"401 once":                 {server: plain, before: status(401, 1, nil, observations)},
		"401 for good":             {server: plain, before: status(401, -1, nil, observations), code: "forbidden"},
		"403 on a type":            {server: plain, before: status(403, -1, nil, anyOf("Condition")), code: "forbidden", holes: 1, rows: -1, written: 30, reason: "forbidden"},
		"409 twice":                {server: plain, before: status(409, 2, nil, observations)},
		"412 once":                 {server: plain, before: status(412, 1, nil, observations)},
		"422 once":                 {server: plain, before: status(422, 1, nil, observations)},
		"422 for good":             {server: plain, before: status(422, -1, nil, observations), code: "incomplete", holes: 1, rows: 30, written: 25, reason: "exception"},
		"429 with seconds":         {server: plain, before: status(429, 3, http.Header{"Retry-After": {"7"}}, observations)},
		"429 with milliseconds":    {server: plain, before: status(429, 3, http.Header{"X-Ms-Retry-After-Ms": {"1500"}}, observations)},
		"429 with a date":          {server: plain, before: status(429, 3, http.Header{"Retry-After": {"Sat, 01 Jan 2000 00:01:00 GMT"}}, observations)},
		"503 a while":              {server: plain, before: status(503, 9, nil, observations)},
		"500 a while":              {server: plain, before: status(500, 9, nil, anyOf("Observation"))},
		"500 on every row":         {server: plain, before: status(500, -1, nil, observations), code: "incomplete", holes: 1, rows: 30, written: 25, reason: "exception"},
		"no _lastUpdated on a type": {server: plain, before: status(400, -1, nil, func(r *http.Request) bool {
			return anyOf("Observation")(r) && r.URL.Query().Has("_lastUpdated") && !r.URL.Query().Has("_id")
		})},
		"no _sort on a type":      {server: plain, before: status(400, -1, nil, func(r *http.Request) bool { return observations(r) && r.URL.Query().Has("_sort") })},
		"400 on a type":           {server: plain, before: status(400, -1, nil, anyOf("Condition")), code: "incomplete", holes: 1, rows: -1, written: 30, reason: "not-supported"},
		"timeouts of large pages": {server: plain, edit: func(c *exporter.Config) { c.Workers = 1 }, before: status(504, -1, nil, tooLarge)},
	} {
		if n++; sparse(n) {
			continue
		}
		t.Run(name, c.run)
	}
}

// tooLarge matches pages of more than 15 rows.
func tooLarge(r *http.Request) bool {
	n, err := strconv.Atoi(r.URL.Query().Get("_count"))
	return observations(r) && err == nil && n > 15
}

// reversed turns the order of a page around.
func reversed(_ *http.Request, b *bundle) int {
	entries := b.entries()
	for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 {
		entries[i], entries[j] = entries[j], entries[i]
	}
	(*b)["changed"] = true
	return 0
}

// bare takes the resources out of every other entry.
func bare(_ *http.Request, b *bundle) int {
	for i, entry := range b.entries() {
		if i%2 == 1 {
			entry := entry.(map[string]any)
			if entry["fullUrl"] == nil {
				entry["fullUrl"] = "http://fhir.example/fhir/Observation/" + idOf(entry)
			}
			delete(entry, "resource")
		}
	}
	(*b)["changed"] = true
	return 0
}

// emptied makes every other first page an empty one with a link to the real one.
func emptied() func(*http.Request, *bundle) int {
	n := 0
	return func(r *http.Request, b *bundle) int {
		if n++; n%2 == 0 || r.URL.Query().Get("_page") != "" || len(b.entries()) == 0 {
			return 0
		}
		next := *r.URL
		query := next.Query()
		query.Set("_page", "1")
		next.RawQuery = query.Encode()
		delete(*b, "entry")
		(*b)["link"] = []any{map[string]any{"relation": "next", "url": next.String()}}
		(*b)["changed"] = true
		return 0
	}
}

// foreign puts a row in front that is older than what was asked for.
func foreign(r *http.Request, b *bundle) int {
	if len(b.entries()) == 0 || strings.HasPrefix(r.URL.Query()["_lastUpdated"][0], "lt") {
		return 0
	}
	var entry map[string]any
	decoder := json.NewDecoder(bytes.NewReader([]byte(`{"resource":{"resourceType":"Observation","id":"old",` +
		`"meta":{"versionId":"1","lastUpdated":"1990-01-01T00:00:00.000Z"}}}`)))
	if err := decoder.Decode(&entry); err != nil {
		panic(err)
	}
	(*b)["entry"], (*b)["changed"] = append([]any{entry}, b.entries()...), true
	return 0
}

// looped makes every page link to the second one.
func looped(r *http.Request, b *bundle) int {
	links, _ := (*b)["link"].([]any)
	for _, link := range links {
		if link := link.(map[string]any); link["relation"] == "next" && r.URL.Query().Get("_page") == "2" {
			link["url"] = fmt.Sprint(r.URL)
			(*b)["changed"] = true
		}
	}
	return 0
}
