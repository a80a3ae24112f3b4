package exporter

import (
	"bufio"
	"bytes"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
)

const (
	// targetBytes is the size of a name in a targets file: 128 bits of hash, of which two that are equal are less likely
	// than a broken disk.
	targetBytes = 16
	// targetsInMemory is how many names are sorted at once: 16 MiB.
	targetsInMemory = 1 << 20
)

type targetKey [targetBytes]byte

// targets is a set of names on the disk, built once and then asked: it may hold more than fits into memory.
type targets struct {
	dir    string
	keys   []targetKey
	runs   []*os.File
	sorted *os.File
	n      int64
}

func targetKeyOf(name string) (key targetKey) {
	a, b := metKey(name), metKey("\x00"+name)
	for i := range 8 {
		key[i], key[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	return key
}

// add takes a name up, before build.
func (t *targets) add(name string) error {
	t.keys = append(t.keys, targetKeyOf(name))
	if len(t.keys) < targetsInMemory {
		return nil
	}
	return t.flush()
}

// flush writes what is in memory as one sorted run.
func (t *targets) flush() error {
	slices.SortFunc(t.keys, func(a, b targetKey) int { return bytes.Compare(a[:], b[:]) })
	file, err := os.OpenFile(filepath.Join(t.dir, fmt.Sprintf("targets.%d", len(t.runs))), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return local(err)
	}
	t.runs = append(t.runs, file)
	out := bufio.NewWriterSize(file, 64<<10)
	for i := range t.keys {
		if _, err := out.Write(t.keys[i][:]); err != nil {
			return local(err)
		}
	}
	t.keys = t.keys[:0]
	return local(out.Flush())
}

// build merges the runs into one sorted file.
func (t *targets) build() error {
	if err := t.flush(); err != nil {
		return err
	}
	t.keys = nil
	if len(t.runs) == 1 {
		t.sorted = t.runs[0]
		return t.measure()
	}
	var err error
	if t.sorted, err = os.OpenFile(filepath.Join(t.dir, "targets"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
		return local(err)
	}
	out := bufio.NewWriterSize(t.sorted, 64<<10)
	var merge runHeap
	for _, run := range t.runs {
		head := &runHead{in: bufio.NewReaderSize(io.NewSectionReader(run, 0, 1<<62), 16<<10)}
		if err := head.next(); err == nil {
			merge = append(merge, head)
		} else if !errors.Is(err, io.EOF) {
			return local(err)
		}
	}
	heap.Init(&merge)
	for len(merge) > 0 {
		if _, err := out.Write(merge[0].key[:]); err != nil {
			return local(err)
		}
		switch err := merge[0].next(); {
		case errors.Is(err, io.EOF):
			heap.Pop(&merge)
		case err != nil:
			return local(err)
		default:
			heap.Fix(&merge, 0)
		}
	}
	if err := out.Flush(); err != nil {
		return local(err)
	}
	return t.measure()
}

func (t *targets) measure() error {
	info, err := t.sorted.Stat()
	if err != nil {
		return local(err)
	}
	t.n = info.Size() / targetBytes
	return nil
}

// has tells whether a name was added.
func (t *targets) has(name string) (bool, error) {
	want := targetKeyOf(name)
	var key targetKey
	var failed error
	at := func(i int) bool {
		if _, err := t.sorted.ReadAt(key[:], int64(i)*targetBytes); err != nil && failed == nil {
			failed = local(err)
		}
		return failed != nil || bytes.Compare(key[:], want[:]) >= 0
	}
	i := sort.Search(int(t.n), at)
	if failed != nil || int64(i) == t.n {
		return false, failed
	}
	at(i)
	return key == want, failed
}

// close removes the set. It may be called on nil.
func (t *targets) close() error {
	if t == nil {
		return nil
	}
	files := t.runs
	if t.sorted != nil && !slices.Contains(files, t.sorted) {
		files = append(files, t.sorted)
	}
	var errs []error
	for _, file := range files {
		errs = append(errs, local(file.Close()), local(os.Remove(file.Name())))
	}
	return errors.Join(errs...)
}

// runHead is the first name of a run that is not merged yet.
type runHead struct {
	in  *bufio.Reader
	key targetKey
}

func (h *runHead) next() error {
	_, err := io.ReadFull(h.in, h.key[:])
	return err
}

// runHeap has the smallest name first.
type runHeap []*runHead

func (h runHeap) Len() int           { return len(h) }
func (h runHeap) Less(i, j int) bool { return bytes.Compare(h[i].key[:], h[j].key[:]) < 0 }
func (h runHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)        { *h = append(*h, x.(*runHead)) }
func (h *runHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
