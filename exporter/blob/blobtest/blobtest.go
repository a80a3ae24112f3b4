// Package blobtest proves that a bucket keeps the contract of package blob: one
// suite for all back ends, run by [Run] against the real thing.
package blobtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
)

const (
	ndjson   = "application/fhir+ndjson"
	bigSize  = 8<<20 + 13 // several chunks of any back end, and no multiple of one
	ttl      = 10 * time.Minute
	jobName  = "20261124T104900Z_0b0f6a9e-2b61-4b0e-9a55-3f1f5a1d9c11"
	fileName = jobName + "/Patient.1.ndjson"
)

// Run runs the suite. Open returns an empty bucket, a fresh one for each part or
// the same again: the parts leave nothing behind that another part looks at. What
// a bucket may lack, signed links, is told by errors.ErrUnsupported alone.
func Run(t *testing.T, open func(t *testing.T) blob.Bucket) {
	t.Helper()
	for _, part := range []struct {
		name string
		run  func(t *testing.T, b blob.Bucket)
	}{
		{"PutThenOpen", testPutThenOpen},
		{"PutRewindsTheBody", testPutRewinds},
		{"PutReplaces", testPutReplaces},
		{"EmptyObject", testEmptyObject},
		{"NestedNames", testNestedNames},
		{"BigObject", testBigObject},
		{"CompressedObject", testCompressed},
		{"OpenFromAnOffset", testOpenFrom},
		{"OpenOfMissingObject", testOpenMissing},
		{"Delete", testDelete},
		{"CancelledPutPublishesNothing", testCancelledPut},
		{"PutCancelledMidwayPublishesNothing", testPutCancelledMidway},
		{"FailingReaderPublishesNothing", testFailingReader},
		{"FailedReplaceKeepsTheOldObject", testFailedReplace},
		{"BadNamesAreRefused", testBadNames},
		{"SignedLink", testSignedLink},
		{"LinkOfMissingObject", testLinkOfMissing},
		{"Check", testCheck},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, open(t)) })
	}
}

func testPutThenOpen(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, "{\"resourceType\":\"Patient\"}\n")
	wantContent(t, b, fileName, "{\"resourceType\":\"Patient\"}\n")
}

// Ensure the whole body is stored although it was read before: the engine hashes
// or counts a file and then puts it.
func testPutRewinds(t *testing.T, b blob.Bucket) {
	body := strings.NewReader("first line\nsecond line\n")
	if _, err := body.Seek(6, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), fileName, blob.Media{Type: ndjson}, body); err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, fileName, "first line\nsecond line\n")
}

func testPutReplaces(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, strings.Repeat("long\n", 1000))
	put(t, b, fileName, "short\n")
	wantContent(t, b, fileName, "short\n")
}

func testEmptyObject(t *testing.T, b blob.Bucket) {
	put(t, b, jobName+"/empty.ndjson", "")
	wantContent(t, b, jobName+"/empty.ndjson", "")
}

func testNestedNames(t *testing.T, b blob.Bucket) {
	nested := blob.WithPrefix(b, "exports/north")
	put(t, nested, fileName, "nested\n")
	put(t, nested, jobName+"/Observation.12.ndjson", "sibling\n")
	wantContent(t, b, "exports/north/"+fileName, "nested\n")
	if err := nested.Delete(t.Context(), fileName); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, nested, fileName)
	wantContent(t, nested, jobName+"/Observation.12.ndjson", "sibling\n")
}

func testBigObject(t *testing.T, b blob.Bucket) {
	content := bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz\n"), bigSize/37+1)[:bigSize]
	name := jobName + "/big.ndjson"
	if err := b.Put(t.Context(), name, blob.Media{Type: ndjson}, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if got := read(t, b, name); !bytes.Equal(got, content) {
		t.Errorf("content of %d bytes differs from the %d bytes written", len(got), len(content))
	}
}

// Ensure what is compressed stays so, and is said to be so to those who follow a
// link. A store may unpack it for those who do not say that they take it.
func testCompressed(t *testing.T, b blob.Bucket) {
	rows := strings.Repeat("{}\n", 1000)
	var packed bytes.Buffer
	packer := gzip.NewWriter(&packed)
	if _, err := packer.Write([]byte(rows)); err != nil {
		t.Fatal(err)
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	put(t, b, fileName, "not compressed\n")
	err := b.Put(t.Context(), fileName, blob.Media{Type: ndjson, Encoding: blob.Gzip}, bytes.NewReader(packed.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, b, fileName, packed.String())
	if link, _, err := b.SignURL(t.Context(), fileName, ttl); !errors.Is(err, errors.ErrUnsupported) {
		if err != nil {
			t.Fatal(err)
		}
		for _, accept := range []string{"gzip", "identity"} {
			got := get(t, link, "Accept-Encoding", accept)
			want := answer{status: http.StatusOK, contentType: ndjson, encoding: blob.Gzip, body: packed.String()}
			unpacked := answer{status: http.StatusOK, contentType: ndjson, body: rows}
			if got != want && (accept == "gzip" || got != unpacked) {
				t.Errorf("link, %s: got %d, %s, %s, %d bytes", accept, got.status, got.contentType, got.encoding, len(got.body))
			}
		}
	}
	put(t, b, fileName, "plain again\n")
	wantContent(t, b, fileName, "plain again\n")
	err = b.Put(t.Context(), fileName, blob.Media{Type: ndjson, Encoding: blob.Gzip}, bytes.NewReader(packed.Bytes()))
	if err := errors.Join(err, b.Delete(t.Context(), fileName)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, b, fileName)
}

func testOpenFrom(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, "0123456789")
	for _, offset := range []int64{0, 1, 9} {
		body, err := b.Open(t.Context(), fileName, offset)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil {
			t.Fatal(err)
		}
		if want := "0123456789"[offset:]; string(got) != want {
			t.Errorf("from %d: got %q, want %q", offset, got, want)
		}
	}
}

func testOpenMissing(t *testing.T, b blob.Bucket) {
	wantMissing(t, b, jobName+"/missing.ndjson")
	wantMissing(t, b, "no-such-job/missing.ndjson")
}

func testDelete(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, "gone soon\n")
	for _, name := range []string{fileName, fileName, jobName + "/never.ndjson", "no-such-job/never.ndjson"} {
		if err := b.Delete(t.Context(), name); err != nil {
			t.Errorf("delete %s: got %v, want nil", name, err)
		}
	}
	wantMissing(t, b, fileName)
	put(t, b, fileName, "back\n")
	wantContent(t, b, fileName, "back\n")
}

func testCancelledPut(t *testing.T, b blob.Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	name := jobName + "/cancelled.ndjson"
	err := b.Put(ctx, name, blob.Media{Type: ndjson}, strings.NewReader("never\n"))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	wantMissing(t, b, name)
}

func testPutCancelledMidway(t *testing.T, b blob.Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	name := jobName + "/midway.ndjson"
	body := &brokenBody{size: bigSize, at: bigSize / 2, broke: func() error { cancel(); return nil }}
	if err := b.Put(ctx, name, blob.Media{Type: ndjson}, body); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	wantMissing(t, b, name)
}

func testFailingReader(t *testing.T, b blob.Bucket) {
	for _, size := range []int64{4 << 10, bigSize} {
		name := fmt.Sprintf("%s/failing.%d.ndjson", jobName, size)
		body := &brokenBody{size: size, at: size / 2, broke: func() error { return errDisk }}
		if err := b.Put(t.Context(), name, blob.Media{Type: ndjson}, body); !errors.Is(err, errDisk) {
			t.Errorf("size %d: got %v, want %v", size, err, errDisk)
		}
		wantMissing(t, b, name)
	}
}

func testFailedReplace(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, "old\n")
	body := &brokenBody{size: bigSize, at: bigSize - 1, broke: func() error { return errDisk }}
	if err := b.Put(t.Context(), fileName, blob.Media{Type: ndjson}, body); err == nil {
		t.Error("put of a body that cannot be read: got nil, want an error")
	}
	wantContent(t, b, fileName, "old\n")
}

func testBadNames(t *testing.T, b blob.Bucket) {
	for _, name := range []string{"", ".", "/", "/etc/x", "../x", "a/../x", "a/./x", "a//x", "a/", `a\x`, "a\nx", "a\x00x"} {
		if err := b.Put(t.Context(), name, blob.Media{Type: ndjson}, strings.NewReader("x")); err == nil {
			t.Errorf("put %q: got nil, want an error", name)
		}
		if body, err := b.Open(t.Context(), name, 0); err == nil {
			t.Errorf("open %q: got a stream, want an error (close: %v)", name, body.Close())
		}
		if err := b.Delete(t.Context(), name); err == nil {
			t.Errorf("delete %q: got nil, want an error", name)
		}
		if _, _, err := b.SignURL(t.Context(), name, ttl); err == nil {
			t.Errorf("sign %q: got nil, want an error", name)
		}
	}
}

func testSignedLink(t *testing.T, b blob.Bucket) {
	put(t, b, fileName, "through a link\n")
	before := time.Now()
	link, expires, err := b.SignURL(t.Context(), fileName, ttl)
	if errors.Is(err, errors.ErrUnsupported) {
		return // the sidecar serves the bytes, nothing to prove here
	}
	if err != nil {
		t.Fatal(err)
	}
	// A signer works in whole seconds, so the link may die a second early.
	if early, late := before.Add(ttl-2*time.Second), time.Now().Add(ttl); expires.Before(early) || expires.After(late) {
		t.Errorf("expires: got %v, want between %v and %v", expires, early, late)
	}
	got := get(t, link)
	want := answer{status: http.StatusOK, contentType: ndjson, body: "through a link\n"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Ensure a link can be made for what is not there, and then gives 404: the
// manifest is not slowed down by a look at each object.
func testLinkOfMissing(t *testing.T, b blob.Bucket) {
	link, _, err := b.SignURL(t.Context(), jobName+"/missing.ndjson", ttl)
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, want := get(t, link).status, http.StatusNotFound; got != want {
		t.Errorf("status: got %d, want %d", got, want)
	}
}

func testCheck(t *testing.T, b blob.Bucket) {
	if err := blob.Check(t.Context(), b, http.DefaultClient); err != nil {
		t.Errorf("check: got %v, want nil", err)
	}
	if err := blob.Check(t.Context(), blob.WithPrefix(b, "a/b"), http.DefaultClient); err != nil {
		t.Errorf("check below a prefix: got %v, want nil", err)
	}
}

func put(t *testing.T, b blob.Bucket, name, content string) {
	t.Helper()
	if err := b.Put(t.Context(), name, blob.Media{Type: ndjson}, strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, b blob.Bucket, name string) []byte {
	t.Helper()
	body, err := b.Open(t.Context(), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(body)
	if err := errors.Join(err, body.Close()); err != nil {
		t.Fatal(err)
	}
	return content
}

func wantContent(t *testing.T, b blob.Bucket, name, want string) {
	t.Helper()
	if got := string(read(t, b, name)); got != want {
		t.Errorf("content of %s: got %q, want %q", name, got, want)
	}
}

func wantMissing(t *testing.T, b blob.Bucket, name string) {
	t.Helper()
	body, err := b.Open(t.Context(), name, 0)
	if err == nil {
		t.Errorf("open %s: got a stream, want ErrNotExist (close: %v)", name, body.Close())
		return
	}
	if !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("open %s: got %v, want ErrNotExist", name, err)
	}
}

// answer is what a client sees of a link.
type answer struct {
	status                      int
	contentType, encoding, body string
}

func get(t *testing.T, link string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, link, nil)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{status: resp.StatusCode, contentType: resp.Header.Get("Content-Type"), encoding: resp.Header.Get("Content-Encoding"), body: string(body)}
}

var errDisk = errors.New("disk error")

// brokenBody reads as size bytes; broke is called when a read comes to at, and
// what it returns ends the read.
type brokenBody struct {
	size, at, pos int64
	broke         func() error
}

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.pos >= b.at {
		if err := b.broke(); err != nil {
			return 0, err
		}
	}
	if b.pos >= b.size {
		return 0, io.EOF
	}
	end := b.size
	if b.pos < b.at {
		end = b.at
	}
	n := int(min(int64(len(p)), end-b.pos))
	for i := range p[:n] {
		p[i] = 'x'
	}
	b.pos += int64(n)
	return n, nil
}

func (b *brokenBody) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += b.pos
	case io.SeekEnd:
		offset += b.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	b.pos = offset
	return offset, nil
}
