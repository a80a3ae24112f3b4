package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	exportTimeout = 10 * time.Minute
	ndjson        = "application/fhir+ndjson"
)

// client keeps a connection for each of the tests' parallel readers, for less time than any of the servers does: a PUT that
// arrives when its connection is just being closed is lost.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: readsAtOnce, IdleConnTimeout: 2 * time.Second}}

// manifest is what a completed export answers, as far as the tests look at it.
type manifest struct {
	Status              string       `json:"status"`
	TransactionTime     time.Time    `json:"transactionTime"`
	Request             string       `json:"request"`
	RequiresAccessToken *bool        `json:"requiresAccessToken"`
	Output              []outputFile `json:"output"`
	Deleted             []outputFile `json:"deleted"`
	Error               []outputFile `json:"error"`
	Extension           struct {
		Completeness []account `json:"completeness"`
	} `json:"extension"`
}

// account is what the manifest says about the completeness of a type.
type account struct {
	Type     string `json:"type"`
	Exported int    `json:"exported"`
	Verdict  string `json:"verdict"`
}

type outputFile struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Count *int   `json:"count"`
}

// exported is a finished export with all its lines by Type/id.
type exported struct {
	statusURL string
	manifest  manifest
	rows      map[string]json.RawMessage
}

// export runs an export to its end and reads all its files. The path is relative to the FHIR base, "$export" for one.
// The job is left in place; the next kick-off is free because it is complete.
func (s *sidecar) export(t *testing.T, path string) *exported {
	t.Helper()
	statusURL := s.kickOff(t, path)
	result := &exported{statusURL: statusURL, manifest: s.await(t, statusURL)}
	result.rows = download(t, result.manifest)
	return result
}

// kickOff starts an export and gives the address of its status.
func (s *sidecar) kickOff(t *testing.T, path string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/fhir+json")
	request.Header.Set("Prefer", "respond-async")
	status, header, body := send(t, request)
	if status != http.StatusAccepted {
		t.Fatalf("kick-off of %s: status %d, want 202: %.800s", path, status, body)
	}
	location := header.Get("Content-Location")
	if !strings.HasPrefix(location, s.base+"/$export-status/") {
		t.Fatalf("kick-off of %s: Content-Location %q, want an absolute address below %s", path, location, s.base)
	}
	return location
}

// await polls the status as often as Retry-After says and gives the manifest.
func (s *sidecar) await(t *testing.T, statusURL string) manifest {
	t.Helper()
	deadline := time.Now().Add(exportTimeout)
	for time.Now().Before(deadline) {
		done, answer, wait := s.poll(t, statusURL)
		if done {
			return answer
		}
		pause(t, wait)
	}
	t.Fatalf("the export was not complete after %v", exportTimeout)
	return manifest{}
}

// poll asks for the status once: the manifest, or how long to wait.
func (s *sidecar) poll(t *testing.T, statusURL string) (done bool, answer manifest, wait time.Duration) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, statusURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/json")
	status, header, body := send(t, request)
	switch status {
	case http.StatusAccepted:
		seconds, err := strconv.Atoi(header.Get("Retry-After"))
		if err != nil || seconds < 1 {
			t.Fatalf("status 202: Retry-After %q, want whole seconds", header.Get("Retry-After"))
		}
		if header.Get("X-Progress") == "" {
			t.Error("status 202: no X-Progress")
		}
		return false, manifest{}, time.Duration(seconds) * time.Second
	case http.StatusOK:
		if err := json.Unmarshal(body, &answer); err != nil {
			t.Fatalf("decode the manifest: %v", err)
		}
		checkManifest(t, header, body, answer)
		return true, answer, 0
	default:
		t.Fatalf("status of the export: %d, want 202 or 200: %.800s", status, body)
		return false, manifest{}, 0
	}
}

func checkManifest(t *testing.T, header http.Header, body []byte, m manifest) {
	t.Helper()
	if got, want := header.Get("Content-Type"), "application/json"; !strings.HasPrefix(got, want) {
		t.Errorf("manifest: Content-Type %q, want %s", got, want)
	}
	if _, err := http.ParseTime(header.Get("Expires")); err != nil {
		t.Errorf("manifest: Expires %q is not an HTTP date", header.Get("Expires"))
	}
	if m.Status != "completed" || m.TransactionTime.IsZero() || m.Request == "" || m.RequiresAccessToken == nil {
		t.Errorf("manifest lacks a required field: %.400s", body)
	}
	if m.Output == nil || m.Deleted == nil || m.Error == nil {
		t.Errorf("manifest: output, deleted and error must be arrays: %.400s", body)
	}
	if len(m.Error) > 0 {
		t.Errorf("manifest: %d error files, want none", len(m.Error))
	}
}

// download reads all output files and checks what the guide promises of each: one type, a right count, one resource a line.
func download(t *testing.T, m manifest) map[string]json.RawMessage {
	t.Helper()
	rows := map[string]json.RawMessage{}
	for _, file := range m.Output {
		lines := downloadFile(t, file)
		if file.Count == nil || *file.Count != len(lines) {
			t.Errorf("%s file: count %v, want %d", file.Type, value(file.Count), len(lines))
		}
		if len(lines) == 0 {
			t.Errorf("%s file is empty, want it left out", file.Type)
		}
		for _, line := range lines {
			key, err := keyOf(line)
			if err != nil {
				t.Fatalf("%s file: %v", file.Type, err)
			}
			if !strings.HasPrefix(key, file.Type+"/") {
				t.Errorf("%s file holds %s", file.Type, key)
			}
			if rows[key] != nil {
				t.Errorf("%s was exported twice", key)
			}
			rows[key] = line
		}
	}
	return rows
}

func downloadFile(t *testing.T, file outputFile) []json.RawMessage {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, file.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", ndjson)
	status, header, body := send(t, request)
	if status != http.StatusOK {
		t.Fatalf("%s file: status %d, want 200: %.400s", file.Type, status, body)
	}
	if got := header.Get("Content-Type"); got != ndjson {
		t.Errorf("%s file: Content-Type %q, want %s", file.Type, got, ndjson)
	}
	if len(body) > 0 && body[len(body)-1] != '\n' {
		t.Errorf("%s file does not end with a newline", file.Type)
	}
	var lines []json.RawMessage
	scanner := bufio.NewScanner(bytes.NewReader(body))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		lines = append(lines, bytes.Clone(scanner.Bytes()))
	}
	if err := scanner.Err(); err != nil {
		t.Fatalf("%s file: %v", file.Type, err)
	}
	return lines
}

// release deletes a job and checks that it is gone at the next request.
func (s *sidecar) release(t *testing.T, statusURL string) {
	t.Helper()
	for _, step := range []struct {
		method string
		want   int
	}{{http.MethodDelete, http.StatusAccepted}, {http.MethodGet, http.StatusNotFound}} {
		request, err := http.NewRequestWithContext(t.Context(), step.method, statusURL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, body := send(t, request); got != step.want {
			t.Errorf("%s of the status: %d, want %d: %.400s", step.method, got, step.want, body)
		}
	}
}

// send gives the whole answer, whatever its status. A request that gets no answer fails the test.
func send(t *testing.T, request *http.Request) (status int, header http.Header, body []byte) {
	t.Helper()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err = io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatalf("%s: read the answer: %v", request.Method, err)
	}
	return response.StatusCode, response.Header, body
}

func value(count *int) any {
	if count == nil {
		return "absent"
	}
	return *count
}
