package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// The traps of the Bulk Data contract's server side, by section and number: 5.1 is where servers fail the published tests,
// row by row, 5.2 are details of the protocol, 5.3 is what an export by REST search can get wrong. A client can see each.
var trapSections = map[string]int{"5.1": 19, "5.2": 24, "5.3": 12}

// trapTests has a test for each trap, by number.
func trapTests() map[string]func(*testing.T, *trapHouse) {
	tests := map[string]func(*testing.T, *trapHouse){}
	maps.Copy(tests, serverTraps)
	maps.Copy(tests, protocolTraps)
	maps.Copy(tests, searchTraps)
	return tests
}

// Ensure that no trap of the contract catches a client, each under its number.
func TestTraps(t *testing.T) {
	tests := trapTests()
	var numbers []string
	for section, last := range trapSections {
		for n := 1; n <= last; n++ {
			numbers = append(numbers, fmt.Sprintf("%s.%d", section, n))
		}
	}
	if got, want := slices.Sorted(maps.Keys(tests)), slices.Sorted(slices.Values(numbers)); !slices.Equal(got, want) {
		t.Errorf("numbers of the tests: got %q, want %q", got, want)
	}
	h := newTrapHouse(t)
	for number, test := range tests {
		t.Run(number, func(t *testing.T) {
			t.Parallel()
			test(t, h)
		})
	}
}

// trapHouse is what most traps need, made once: a sidecar before a well-behaved server, with an export of each level, one
// before the same server whose exports never get beyond their beginning, and an export of one whose bucket signs links.
type trapHouse struct {
	sample                 *fhirtest.Server
	upstream               string
	s, slow                *sidecar
	system, patient, group state.Manifest
	// status is where the system's manifest is read.
	status string
	// stored is an export of Groups, compressed, whose files lie in a store with signed links; it is read at storedStatus.
	stored       state.Manifest
	storedStatus string
}

// trapRecords are the awkward ones, beside a small clinic.
var trapRecords = []string{
	`{"resourceType":"Location","id":"ward","name":"Ward"}`,
	`{"resourceType":"Encounter","id":"in-ward","status":"finished","class":{"code":"AMB"},"subject":{"reference":"Patient/pat-00001"},` +
		`"location":[{"location":{"reference":"Location/ward"}}]}`,
	`{"resourceType":"Observation","id":"both","status":"final","code":{"text":"x"},"subject":{"reference":"Patient/pat-00001"},` +
		`"performer":[{"reference":"Patient/pat-00002"}],"valueQuantity":{"value":1.10}}`,
	`{"resourceType":"AllergyIntolerance","id":"told","patient":{"reference":"Patient/pat-00012"},"recorder":{"reference":"Patient/pat-00001"}}`,
	`{"resourceType":"Patient","id":"linked","link":[{"other":{"reference":"Patient/pat-00012"},"type":"seealso"}]}`,
	`{"resourceType":"Binary","id":"note","contentType":"text/plain","data":"aGVsbG8="}`,
	`{"resourceType":"DocumentReference","id":"note","status":"current","subject":{"reference":"Patient/pat-00001"},` +
		`"content":[{"attachment":{"contentType":"text/plain","url":"Binary/note"}}]}`,
	`{"resourceType":"Group","id":"linking","type":"person","actual":true,"member":[{"entity":{"reference":"Patient/linked"}}]}`,
	`{"resourceType":"Group","id":"by-trait","type":"person","actual":false,"characteristic":[{"exclude":false}]}`,
	`{"resourceType":"Group","id":"foreign","type":"person","actual":true,"name":"foreign","member":[{"entity":{"reference":"Patient/pat-00001"}},` +
		`{"entity":{"reference":"Patient/pat-00012"}}]}`,
}

func newTrapHouse(t *testing.T) *trapHouse {
	t.Helper()
	h := &trapHouse{}
	h.sample, h.upstream = newSample(t, fhirtest.Plain(), 12)
	for _, record := range trapRecords {
		if err := h.sample.Put([]byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.sample.PutAt([]byte(`{"resourceType":"Patient","id":"old"}`), time.Now().AddDate(-1, 0, 0)); err != nil {
		t.Fatal(err)
	}
	h.s = startSidecar(t, h.upstream, func(c *config) { c.MaxRunning, c.TrustedProxies = 100, []string{"127.0.0.0/8"} })
	h.slow = startSidecar(t, h.upstream, func(c *config) { c.MaxRunning, c.Settle = 100, time.Hour })
	store := startStoreSidecar(t, h.upstream)
	h.storedStatus = store.kickOff("/$export?_type=Group&_outputFormat=application/fhir%2Bndjson%2Bgzip")
	h.status = h.s.kickOff("/$export")
	patient, group := h.s.kickOff("/Patient/$export"), h.s.kickOff("/Group/demo-group/$export")
	h.system, h.patient, h.group = h.s.manifest(h.status), h.s.manifest(patient), h.s.manifest(group)
	h.stored = store.manifest(h.storedStatus)
	return h
}

// in is the sidecar for one subtest.
func (s *sidecar) in(t *testing.T) *sidecar {
	one := *s
	one.t = t
	return &one
}

// manifestText is the manifest of an export as the client gets it.
func (s *sidecar) manifestText(status string) string {
	s.t.Helper()
	got := s.finish(status)
	if got.status != http.StatusOK {
		s.t.Fatalf("export: %d %s", got.status, got.body)
	}
	return got.body
}

// begin sends a GET kick-off that may be refused.
func (s *sidecar) begin(path string, header ...string) reply {
	s.t.Helper()
	until(s.t, "bucket", func() bool { return s.server.exporter.Ready(s.t.Context()) == nil })
	return ask(s.t, http.MethodGet, s.base+path, header...)
}

// once is rowsOf that fails the test where a resource comes twice.
func once(t *testing.T, manifest state.Manifest) map[string]string {
	t.Helper()
	rows, count := rowsOf(t, manifest), int64(0)
	for _, file := range manifest.Output {
		count += file.Count
	}
	if int64(len(rows)) != count {
		t.Errorf("%d resources in %d lines", len(rows), count)
	}
	return rows
}

// checkHas compares which of the keys are among the rows.
func checkHas(t *testing.T, rows map[string]string, want bool, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, got := rows[key]; got != want {
			t.Errorf("%s is in the export: got %t", key, got)
		}
	}
}

// checkKeys compares all the keys of the rows.
func checkKeys(t *testing.T, rows map[string]string, want ...string) {
	t.Helper()
	if got := slices.Sorted(maps.Keys(rows)); !slices.Equal(got, want) {
		t.Errorf("export: got %q, want %q", got, want)
	}
}

// patientsOf are the ids of the Patients among rows, sorted.
func patientsOf(rows map[string]string) (ids []string) {
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if id, ok := strings.CutPrefix(key, "Patient/"); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// decodeTrap reads JSON.
func decodeTrap(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// newUpstreamOf serves a sample server whose base path is /fhir and returns its base.
func newUpstreamOf(t *testing.T, sample *fhirtest.Server) string {
	t.Helper()
	upstream := httptest.NewServer(sample)
	t.Cleanup(upstream.Close)
	return upstream.URL + "/fhir"
}
