package exporter

import (
	"bufio"
	"container/heap"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// sortedInMemory is how many bytes of ids are sorted at once.
const sortedInMemory = 8 << 20

// idSorter sorts ids on the disk: there may be more of them than fit into memory. An id that is added twice comes once.
type idSorter struct {
	path  string // of its runs, without their numbers
	ids   []string
	bytes int
	runs  []*os.File
}

// newIDSorter returns a sorter whose files begin with a name. A name is free again when the sorter is closed.
func newIDSorter(dir, name string) *idSorter { return &idSorter{path: filepath.Join(dir, name)} }

// add takes an id up, before sorted.
func (s *idSorter) add(id string) error {
	s.ids, s.bytes = append(s.ids, id), s.bytes+len(id)+16
	if s.bytes < sortedInMemory {
		return nil
	}
	return s.flush()
}

// flush writes what is in memory as one sorted run.
func (s *idSorter) flush() error {
	slices.Sort(s.ids)
	file, err := os.OpenFile(fmt.Sprintf("%s.%d", s.path, len(s.runs)), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return local(err)
	}
	s.runs = append(s.runs, file)
	out := bufio.NewWriterSize(file, 64<<10)
	for _, id := range s.ids {
		if _, err := out.WriteString(id + "\n"); err != nil {
			return local(err)
		}
	}
	s.ids, s.bytes = s.ids[:0], 0
	return local(out.Flush())
}

// sorted returns the ids in order. Nothing is added any more.
func (s *idSorter) sorted() (*sortedIDs, error) {
	if err := s.flush(); err != nil {
		return nil, err
	}
	all := &sortedIDs{}
	for _, run := range s.runs {
		if _, err := run.Seek(0, 0); err != nil {
			return nil, local(err)
		}
		head := &idRun{lines: bufio.NewScanner(run)}
		if err := all.take(head); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// close removes the files.
func (s *idSorter) close() error {
	var errs []error
	for _, file := range s.runs {
		errs = append(errs, local(file.Close()), local(os.Remove(file.Name())))
	}
	return errors.Join(errs...)
}

// sortedIDs merges sorted runs into one sequence without repeats.
type sortedIDs struct {
	runs idHeap
	last string
	any  bool
}

// take adds a run, unless it is at its end.
func (s *sortedIDs) take(run *idRun) error {
	more, err := run.next()
	if more {
		heap.Push(&s.runs, run)
	}
	return err
}

// next returns the next id; more is false behind the last one.
func (s *sortedIDs) next() (id string, more bool, err error) {
	for len(s.runs) > 0 {
		id = s.runs[0].id
		more, err := s.runs[0].next()
		switch {
		case err != nil:
			return "", false, err
		case more:
			heap.Fix(&s.runs, 0)
		default:
			heap.Pop(&s.runs)
		}
		if !s.any || id != s.last {
			s.any, s.last = true, id
			return id, true, nil
		}
	}
	return "", false, nil
}

// idRun is one sorted file with the id that is its turn.
type idRun struct {
	lines *bufio.Scanner
	id    string
}

func (r *idRun) next() (more bool, err error) {
	if !r.lines.Scan() {
		return false, local(r.lines.Err())
	}
	r.id = r.lines.Text()
	return true, nil
}

// idHeap has the run with the smallest id first.
type idHeap []*idRun

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(i, j int) bool { return h[i].id < h[j].id }
func (h idHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idHeap) Push(x any)        { *h = append(*h, x.(*idRun)) }
func (h *idHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
