package proxy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"sidecar/exporter/blob"
	"sidecar/proxy"
	"sidecar/state"
)

func TestFileIsServedWithRangeAndConditions(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	address, content := h.file("0b6a", "Patient.1.ndjson"), twoFiles["Patient"]
	whole := h.ask(http.MethodGet, address)
	etag := whole.header.Get("ETag")
	if !regexp.MustCompile(`^"[^"]+"$`).MatchString(etag) {
		t.Errorf("ETag: got %q", etag)
	}
	for _, test := range []struct {
		name, method string
		header       []string
		status       int
		body         string
	}{
		{"whole", "GET", nil, 200, content},
		{"head", "HEAD", nil, 200, ""},
		{"range", "GET", []string{"Range", "bytes=2-4"}, 206, content[2:5]},
		{"suffix", "GET", []string{"Range", "bytes=-3"}, 206, content[len(content)-3:]},
		{"if-range", "GET", []string{"Range", "bytes=2-4", "If-Range", etag}, 206, content[2:5]},
		{"if-range of another", "GET", []string{"Range", "bytes=2-4", "If-Range", `"x"`}, 200, content},
		{"not modified", "GET", []string{"If-None-Match", etag}, 304, ""},
		{"no gzip", "GET", []string{"Accept-Encoding", "gzip"}, 200, content},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := h.ask(test.method, address, test.header...)
			if got.status != test.status || got.body != test.body {
				t.Errorf("answer: got %d %q, want %d %q", got.status, got.body, test.status, test.body)
			}
			if test.status == http.StatusNotModified {
				return
			}
			if got.header.Get("Content-Type") != "application/fhir+ndjson" || got.header.Get("Accept-Ranges") != "bytes" ||
				got.header.Get("Cache-Control") != "private, no-transform" || got.header.Get("Last-Modified") == "" {
				t.Errorf("header: got %q", got.header)
			}
			if length := got.header.Get("Content-Length"); test.method == "HEAD" && length != strconv.Itoa(len(content)) {
				t.Errorf("Content-Length: got %s", length)
			}
		})
	}
	beyond := h.ask(http.MethodGet, address, "Range", "bytes=1000-")
	checkOutcome(t, beyond, http.StatusRequestedRangeNotSatisfiable, "processing")
	if got, want := beyond.header.Get("Content-Range"), "bytes */"+strconv.Itoa(len(content)); got != want {
		t.Errorf("Content-Range: got %q, want %q", got, want)
	}
}

func TestFileThatTheBucketLostIsNotFound(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := completed()
	h.addJob(job, twoFiles)
	if err := h.bucket.Delete(t.Context(), job.Folder+"/Patient.1.ndjson"); err != nil {
		t.Fatal(err)
	}
	checkOutcome(t, h.ask(http.MethodGet, h.file("0b6a", "Patient.1.ndjson")), http.StatusNotFound, "not-found")
}

func TestFileLinksFollowTheKickoffsBase(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	job := completed()
	job.Kickoff.Base = h.base
	h.addJob(job, twoFiles)
	var manifest state.Manifest
	if err := json.Unmarshal([]byte(h.ask(http.MethodGet, h.base+"/$export-status/0b6a").body), &manifest); err != nil {
		t.Fatal(err)
	}
	for _, file := range manifest.Output {
		link, err := url.Parse(file.URL)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.ask(http.MethodGet, link.String()); got.body != twoFiles[file.Type] {
			t.Errorf("%s: got %q", file.Type, got.body)
		}
	}
}

// pack is gzip.
func pack(t *testing.T, content string) []byte {
	t.Helper()
	var packed bytes.Buffer
	packer := gzip.NewWriter(&packed)
	if _, err := packer.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// addPacked replaces the file of an added job by a compressed one.
func (h *house) addPacked(job state.Job, name, content string) []byte {
	h.t.Helper()
	packed := pack(h.t, content)
	file, err := h.store.File(h.t.Context(), job.ID, name)
	if err != nil {
		h.t.Fatal(err)
	}
	file.Bytes, file.Compressed = int64(len(content)), int64(len(packed))
	become := func(status state.Status) {
		h.t.Helper()
		if err := h.store.Update(h.t.Context(), job.ID, func(job *state.Job) error { job.Status = status; return nil }); err != nil {
			h.t.Fatal(err)
		}
	}
	become(state.InProgress) // files of a job that has ended do not change
	if err := h.store.PutFile(h.t.Context(), job.ID, file); err != nil {
		h.t.Fatal(err)
	}
	become(job.Status)
	err = h.bucket.Put(h.t.Context(), job.Folder+"/"+name, blob.Media{Type: "application/fhir+ndjson", Encoding: blob.Gzip}, bytes.NewReader(packed))
	if err != nil {
		h.t.Fatal(err)
	}
	return packed
}

// Ensure a compressed file is sent as it is to those who take gzip, with ranges of its own bytes, and whole and plain to others.
func TestCompressedFileIsServedBothWays(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	content := strings.Repeat(`{"resourceType":"Patient"}`+"\n", 50000)
	packed := string(h.addPacked(completed(), "Patient.1.ndjson", content))
	address := h.file("0b6a", "Patient.1.ndjson")
	plain := h.ask(http.MethodGet, address, "Accept-Encoding", "identity").header.Get("ETag")
	coded := h.ask(http.MethodGet, address, "Accept-Encoding", "gzip").header.Get("ETag")
	if plain == coded || plain == "" || coded == "" {
		t.Fatalf("ETags: got %s and %s", plain, coded)
	}
	for _, test := range []struct {
		name, method, accept string
		header               []string
		status               int
		coded                bool
		body                 string
		length               int
	}{
		{"gzip", "GET", "gzip", nil, 200, true, packed, len(packed)},
		{"one of several", "GET", "deflate, GZIP;q=0.5, br", nil, 200, true, packed, len(packed)},
		{"any", "GET", "*", nil, 200, true, packed, len(packed)},
		{"its older name", "GET", "x-gzip", nil, 200, true, packed, len(packed)},
		{"none", "GET", "identity", nil, 200, false, content, len(content)},
		{"refused", "GET", "gzip;q=0, identity", nil, 200, false, content, len(content)},
		{"refused with blanks", "GET", "gzip; q=0.0", nil, 200, false, content, len(content)},
		{"refused, behind any", "GET", "*, gzip;q=0", nil, 200, false, content, len(content)},
		{"refused, before any", "GET", "gzip;q=0, *", nil, 200, false, content, len(content)},
		{"taken, though not any", "GET", "*;q=0, gzip", nil, 200, true, packed, len(packed)},
		{"head of gzip", "HEAD", "gzip", nil, 200, true, "", len(packed)},
		{"head", "HEAD", "identity", nil, 200, false, "", len(content)},
		{"range of gzip", "GET", "gzip", []string{"Range", "bytes=10-19"}, 206, true, packed[10:20], 10},
		{"no ranges", "GET", "identity", []string{"Range", "bytes=10-19"}, 200, false, content, len(content)},
		{"no range beyond", "GET", "identity", []string{"Range", "bytes=99999999-"}, 200, false, content, len(content)},
		{"not modified gzip", "GET", "gzip", []string{"If-None-Match", coded}, 304, true, "", 0},
		{"other than gzip", "GET", "identity", []string{"If-None-Match", coded}, 200, false, content, len(content)},
		{"not modified", "GET", "identity", []string{"If-None-Match", plain}, 304, false, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := h.ask(test.method, address, append(test.header, "Accept-Encoding", test.accept)...)
			if got.status != test.status || got.body != test.body {
				t.Fatalf("answer: got %d and %d bytes, want %d and %d", got.status, len(got.body), test.status, len(test.body))
			}
			if got.header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("Vary: got %q", got.header.Values("Vary"))
			}
			if test.status == http.StatusNotModified {
				return
			}
			if coding := got.header.Get("Content-Encoding"); (coding == "gzip") != test.coded || got.header.Get("Content-Type") != "application/fhir+ndjson" {
				t.Errorf("header: got %q", got.header)
			}
			if ranges := got.header.Get("Accept-Ranges"); (ranges == "bytes") != test.coded {
				t.Errorf("Accept-Ranges: got %q", ranges)
			}
			if got.header.Get("Content-Length") != strconv.Itoa(test.length) {
				t.Errorf("Content-Length: got %s, want %d", got.header.Get("Content-Length"), test.length)
			}
		})
	}
	beyond := h.ask(http.MethodGet, address, "Accept-Encoding", "gzip", "Range", "bytes=99999999-")
	checkOutcome(t, beyond, http.StatusRequestedRangeNotSatisfiable, "processing")
	if beyond.header.Get("Content-Encoding") != "" {
		t.Error("the OperationOutcome is said to be compressed")
	}
}

// Ensure that a damaged file ends in a broken answer, never in one that looks whole.
func TestDamagedCompressedFileBreaksTheDownload(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	content := strings.Repeat(`{"resourceType":"Patient"}`+"\n", 50000)
	packed := h.addPacked(completed(), "Patient.1.ndjson", content)
	name := completed().Folder + "/Patient.1.ndjson"
	err := h.bucket.Put(t.Context(), name, blob.Media{Encoding: blob.Gzip}, bytes.NewReader(packed[:len(packed)/2]))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultTransport.RoundTrip(h.request("GET", h.file("0b6a", "Patient.1.ndjson"), "", "Accept-Encoding", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err == nil {
		t.Errorf("got %d bytes of %d and no error", len(body), len(content))
	}
}

// store is a bucket that gives links, and streams that cannot seek.
type store struct {
	signing
	content string
	opened  []int64
	err     error
}

func (s *store) Open(_ context.Context, _ string, offset int64) (io.ReadCloser, error) {
	s.opened = append(s.opened, offset)
	if s.err != nil {
		return nil, s.err
	}
	return io.NopCloser(strings.NewReader(s.content[offset:])), nil
}

// Ensure that redirects have no body, are signed anew each time, and that HEAD is answered here: a link is signed for GET.
func TestRedirectLinks(t *testing.T) {
	bucket := &store{content: twoFiles["Patient"]}
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Bucket, c.Links, c.LinkLifetime = bucket, proxy.Redirect, time.Minute })
	job := completed()
	job.Kickoff.Base = h.base
	h.addJob(job, twoFiles)
	manifest := h.ask(http.MethodGet, h.base+"/$export-status/0b6a")
	address := h.file("0b6a", "Patient.1.ndjson")
	if !strings.Contains(manifest.body, h.base+"/$export-file/0b6a/Patient.1.ndjson?expires=") {
		t.Errorf("manifest: got %s", manifest.body)
	}
	got := h.ask(http.MethodGet, address)
	if got.status != http.StatusTemporaryRedirect || got.body != "" || got.header.Get("Content-Type") != "" {
		t.Errorf("answer: got %d %q %q", got.status, got.header, got.body)
	}
	if got.header.Get("Location") != "https://store.example/20211208T082800Z_0b6a/Patient.1.ndjson?sig=1" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("header: got %q", got.header)
	}
	head := h.ask(http.MethodHead, address)
	if head.status != http.StatusOK || head.header.Get("Content-Length") != strconv.Itoa(len(twoFiles["Patient"])) {
		t.Errorf("HEAD: got %d %q", head.status, head.header)
	}
	bucket.signing.err = errors.New("secret key is wrong")
	checkOutcome(t, h.ask(http.MethodGet, address), http.StatusServiceUnavailable, "transient")
}

// Ensure a file of a store is sent by the sidecar with ranges, and that each begins where it is asked for.
func TestStreamLinksSendTheFilesOfAStore(t *testing.T) {
	content := twoFiles["Patient"]
	bucket := &store{content: content}
	h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Bucket, c.Links = bucket, proxy.Stream })
	job := completed()
	job.Kickoff.Base = h.base
	h.addJob(job, twoFiles)
	address := h.file("0b6a", "Patient.1.ndjson")
	if manifest := h.ask(http.MethodGet, h.base+"/$export-status/0b6a"); !strings.Contains(manifest.body, h.base+"/$export-file/0b6a/Patient.1.ndjson?expires=") {
		t.Errorf("manifest: got %s", manifest.body)
	}
	for _, test := range []struct {
		ranges string
		status int
		body   string
		opened []int64
	}{
		{"", 200, content, []int64{0}},
		{"bytes=3-7", 206, content[3:8], []int64{3}},
		{"bytes=5-", 206, content[5:], []int64{5}},
		{"bytes=-4", 206, content[len(content)-4:], []int64{0, int64(len(content) - 4)}},
	} {
		bucket.opened = nil
		var header []string
		if test.ranges != "" {
			header = []string{"Range", test.ranges}
		}
		got := h.ask(http.MethodGet, address, header...)
		if got.status != test.status || got.body != test.body {
			t.Errorf("%s: got %d %q, want %d %q", test.ranges, got.status, got.body, test.status, test.body)
		}
		if !slices.Equal(bucket.opened, test.opened) {
			t.Errorf("%s: opened at %v, want %v", test.ranges, bucket.opened, test.opened)
		}
	}
	bucket.err = blob.ErrNotExist
	checkOutcome(t, h.ask(http.MethodGet, address), http.StatusNotFound, "not-found")
}

// Ensure that a download that has begun ends well although the export is deleted meanwhile.
func TestDownloadOutlivesTheExport(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	content := strings.Repeat(`{"resourceType":"Patient"}`+"\n", 1<<20) // more than the sockets hold
	h.addPacked(completed(), "Patient.1.ndjson", content)
	response, err := http.DefaultTransport.RoundTrip(h.request("GET", h.file("0b6a", "Patient.1.ndjson"), "", "Accept-Encoding", "identity"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	begun := make([]byte, 100)
	if _, err := io.ReadFull(response.Body, begun); err != nil {
		t.Fatal(err)
	}
	if got := h.ask(http.MethodDelete, h.base+"/$export-status/0b6a"); got.status != http.StatusAccepted {
		t.Fatalf("DELETE: got %d", got.status)
	}
	if err := h.bucket.Delete(t.Context(), completed().Folder+"/Patient.1.ndjson"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(response.Body)
	if err != nil || string(begun)+string(rest) != content {
		t.Errorf("got %d bytes, %v; want %d", len(begun)+len(rest), err, len(content))
	}
}
