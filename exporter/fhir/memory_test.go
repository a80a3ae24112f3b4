package fhir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
)

// longResource is the size in bytes up to which an entry's Resource holds the resource.
const longResource = 1 << 20

// repeated is a long answer that takes no memory itself: head, n times the middle with sep between, tail.
func repeated(head, middle, sep string, n int, tail string) io.Reader {
	parts := []io.Reader{strings.NewReader(head)}
	unit := middle + sep
	chunk := strings.Repeat(unit, max(1, min(n, (1<<20)/len(unit))))
	for per := len(chunk) / len(unit); n > 1; {
		take := min(per, n-1)
		parts = append(parts, strings.NewReader(chunk[:take*len(unit)]))
		n -= take
	}
	return io.MultiReader(append(parts, strings.NewReader(middle), strings.NewReader(tail))...)
}

// heapProbe passes an answer on and notes now and then how much heap is in use.
type heapProbe struct {
	io.Reader
	read, next int64
	peak       uint64
}

func (p *heapProbe) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if p.read += int64(n); p.read >= p.next {
		p.next = p.read + 4<<20
		p.peak = max(p.peak, heapInUse())
	}
	return n, err
}

func heapInUse() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapInuse
}

// Ensure that neither the size of a page nor that of a resource shows in the memory: 2 MB at most, for whatever page.
func TestPageTakesTheSameMemoryWhateverItsSize(t *testing.T) {
	resource := `{ "resource" : ` + observations(1)[0] + ` }`
	const head, tail = `{"resourceType":"Bundle","type":"searchset","entry":[`, `]}`
	const (
		binary, binaryEnd = `{"resourceType":"Binary","id":"b","data":"`, `"}`
		group, groupEnd   = `{"resourceType":"Group","member":[`, `]}`
		member            = `{"entity":{"reference":"Patient/1"}}`
		open              = head + `{"resource":`
	)
	for _, test := range []struct {
		name    string
		body    io.Reader
		entries int
		size    int64 // of the last resource
	}{
		{"a page of 48 MB", repeated(head, resource, ",\n  ", 50_000, tail), 50_000, int64(len(observations(1)[0]))},
		{"a page of 488 MB", repeated(head, resource, ",\n  ", 500_000, tail), 500_000, int64(len(observations(1)[0]))},
		{"a Binary of 30 MB", repeated(open+binary, "QUJD", "", 30<<18, binaryEnd+"}"+tail), 1, 30<<20 + int64(len(binary+binaryEnd))},
		{"a Group of 25 MB", repeated(open+group, member, ",", 700_000, groupEnd+"}"+tail), 1, 700_000*int64(len(member+",")) + int64(len(group+groupEnd)) - 1},
		{"blanks of 30 MB", repeated(head, strings.Repeat(" ", 1024), "", 30<<10, tail), 0, 0},
		{"a name of 30 MB", repeated(head+`{"`, "abcdefgh", "", 30<<17, `":1}`+tail), 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			probe := &heapProbe{Reader: test.body}
			page, err := streaming(t, probe).Search(t.Context(), fhir.Query{Type: "Group"})
			if err != nil {
				t.Fatal(err)
			}
			page.Collect(compartment(t, "4.0.1"), true)
			before := heapInUse()
			size := int64(0)
			err = page.Each(func(e *fhir.Entry) error { size = e.Size(); return nil })
			if err != nil || page.Entries != test.entries || size != test.size {
				t.Fatalf("%d entries, the last of %d bytes, %v; want %d of %d", page.Entries, size, err, test.entries, test.size)
			}
			if limit := uint64(4 << 20); probe.peak > before+limit {
				t.Errorf("the heap grew by %d bytes over %d bytes of page, want at most %d", probe.peak-before, probe.read, limit)
			}
		})
	}
}

// Ensure that asking whether a client may search Binaries does not hold the one that is shown.
func TestAccessHoldsNoRow(t *testing.T) {
	const head = `{"resourceType":"Bundle","type":"searchset","entry":[{"resource":{"resourceType":"Binary","id":"b","data":"`
	probe := &heapProbe{Reader: repeated(head, "QUJD", "", 30<<18, `"}}]}`)}
	client, before := streaming(t, probe), heapInUse()
	if err := client.MaySearch(t.Context(), "Binary", nil); err != nil {
		t.Fatal(err)
	}
	if limit := uint64(4 << 20); probe.read < 30<<20 || probe.peak > before+limit {
		t.Errorf("the heap grew by %d bytes over %d bytes of answer, want at most %d", probe.peak-before, probe.read, limit)
	}
}

// Ensure that a resource is one allocation, its text; references are another, where somebody asks for them.
func TestPageAllocatesOncePerResource(t *testing.T) {
	const rows = 1000
	text := []byte(pretty(t, searchset(observations(rows)...)))
	for _, test := range []struct {
		name   string
		member bool
		atMost float64
	}{{"fields", false, 1}, {"fields and references", true, 2}} {
		c := compartment(t, "4.0.1")
		client := mockClient(t, fixed(text))
		read := func() {
			page, err := client.Search(t.Context(), fhir.Query{Type: "Observation"})
			if err != nil {
				t.Fatal(err)
			}
			page.Collect(c, true)
			n := 0
			count := func(string, string) bool { n++; return true }
			err = page.Each(func(e *fhir.Entry) error {
				if e.ID == "" || e.Version == "" || e.LastUpdated.IsZero() || e.FullURL == "" || e.Mode == "" {
					t.Error("a field is missing")
				}
				n++
				if !test.member {
					return nil
				}
				return e.References(c, count)
			})
			if err != nil || n != rows && !test.member || n != 2*rows && test.member {
				t.Fatalf("%d rows and references, %v", n, err)
			}
		}
		const request = 150 // what the client allocates for one page, whatever it holds
		if got := testing.AllocsPerRun(5, read); got > test.atMost*rows+request {
			t.Errorf("%s: %.0f allocations for %d resources", test.name, got, rows)
		}
	}
}

// Ensure that a long resource is the same as a short one for whoever reads it, and leaves no file.
func TestEntryOfALongResource(t *testing.T) {
	dir := t.TempDir()
	line := func(id string, size int) string {
		head := `{"resourceType":"Binary","id":"` + id + `","subject":{"reference":"Patient/` + id + `"},"data":"`
		return head + strings.Repeat("é", (size-len(head)-2)/2) + strings.Repeat("x", (size-len(head)-2)%2) + `"}`
	}
	var want []string
	for i, size := range []int{longResource, longResource + 1, 100, 3*longResource + 17, 2 * longResource, longResource - 1} {
		want = append(want, line(fmt.Sprint(i), size))
	}
	text := searchset(want...)
	client, err := fhir.NewClient(fhir.Config{BaseURL: upstreamBase, Transport: fixed(text), Spill: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, collect := range []bool{true, false} {
		page, err := client.Search(t.Context(), fhir.Query{Type: "Binary"})
		if err != nil {
			t.Fatal(err)
		}
		page.Collect(nil, collect)
		n := 0
		err = page.Each(func(e *fhir.Entry) error {
			checkLong(t, e, want[n])
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%d files are to be seen, %v", len(left), err)
			}
			n++
			return nil
		})
		if err != nil || n != len(want) {
			t.Errorf("%d entries, %v", n, err)
		}
	}
}

func checkLong(t *testing.T, e *fhir.Entry, want string) {
	t.Helper()
	var written bytes.Buffer
	n, err := e.WriteTo(&written)
	if err != nil || n != int64(len(want)) || e.Size() != n || written.String() != want {
		t.Errorf("resource %s: wrote %d bytes of %d, %v", e.ID, n, len(want), err)
	}
	if (e.Resource == nil) != (len(want) > longResource) {
		t.Errorf("resource %s of %d bytes: %d in memory", e.ID, len(want), len(e.Resource))
	}
	if whole, err := e.Bytes(int64(len(want))); err != nil || string(whole) != want {
		t.Errorf("resource %s: %d bytes of %d, %v", e.ID, len(whole), len(want), err)
	}
	if _, err := e.Bytes(int64(len(want)) - 1); err == nil {
		t.Errorf("resource %s: no error above the limit", e.ID)
	}
	var found []string
	err = e.AllReferences(func(reference string) bool { found = append(found, reference); return true })
	if err != nil || len(found) != 1 || found[0] != "Patient/"+e.ID {
		t.Errorf("resource %s: references %q, %v", e.ID, found, err)
	}
}

// Ensure that trouble with the disk is not taken for an answer that may come better.
func TestPageTellsThatItsFileCannotBeWritten(t *testing.T) {
	text := searchset(`{"resourceType":"Binary","data":"` + strings.Repeat("x", longResource) + `"}`)
	client, err := fhir.NewClient(fhir.Config{BaseURL: upstreamBase, Transport: fixed(text), Spill: t.TempDir() + "/gone"})
	if err != nil {
		t.Fatal(err)
	}
	page, err := client.Search(t.Context(), fhir.Query{Type: "Binary"})
	if err != nil {
		t.Fatal(err)
	}
	err = page.Each(func(*fhir.Entry) error { return nil })
	if !errors.Is(err, fhir.ErrSpill) || errors.Is(err, fhir.ErrMalformed) {
		t.Errorf("got %v, want ErrSpill alone", err)
	}
}
