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

// sorterBytes is how many bytes of lines are sorted at once.
const sorterBytes = 8 << 20

// sorter sorts lines, such as ids, by their bytes on the disk: there may be more of them than fit into memory. A line that is
// added twice comes once.
type sorter struct {
	path  string // of its runs, without their numbers
	limit int    // of bytes in memory
	lines []string
	bytes int
	runs  []*os.File
}

// newSorter returns a sorter whose files begin with a name. A name is free again when the sorter is closed.
func newSorter(dir, name string) *sorter {
	return &sorter{path: filepath.Join(dir, name), limit: sorterBytes}
}

// add takes a line up, without its newline.
func (s *sorter) add(line string) error {
	s.lines, s.bytes = append(s.lines, line), s.bytes+len(line)+16
	if s.bytes < s.limit {
		return nil
	}
	return s.flush()
}

// flush writes what is in memory as one sorted run.
func (s *sorter) flush() error {
	slices.Sort(s.lines)
	file, err := os.OpenFile(fmt.Sprintf("%s.%d", s.path, len(s.runs)), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return local(err)
	}
	s.runs = append(s.runs, file)
	out := bufio.NewWriterSize(file, 64<<10)
	for _, line := range s.lines {
		if _, err := out.WriteString(line + "\n"); err != nil {
			return local(err)
		}
	}
	s.lines, s.bytes = s.lines[:0], 0
	return local(out.Flush())
}

// sorted returns the lines in order. It may be called again, also after more were added, and ends what it returned before.
// Lines that all fit into memory are in no file.
func (s *sorter) sorted() (*sortedLines, error) {
	all := &sortedLines{}
	if len(s.runs) == 0 {
		slices.Sort(s.lines)
		return all, all.take(&lineRun{memory: s.lines})
	}
	if len(s.lines) > 0 {
		if err := s.flush(); err != nil {
			return nil, err
		}
		s.lines = nil
	}
	for _, run := range s.runs {
		if _, err := run.Seek(0, 0); err != nil {
			return nil, local(err)
		}
		if err := all.take(&lineRun{lines: bufio.NewScanner(run)}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// close removes the files.
func (s *sorter) close() error {
	var errs []error
	for _, file := range s.runs {
		errs = append(errs, local(file.Close()), local(os.Remove(file.Name())))
	}
	return errors.Join(errs...)
}

// sortedLines merges sorted runs into one sequence without repeats.
type sortedLines struct {
	runs lineHeap
	last string
	any  bool
}

// take adds a run, unless it is at its end.
func (s *sortedLines) take(run *lineRun) error {
	more, err := run.next()
	if more {
		heap.Push(&s.runs, run)
	}
	return err
}

// next returns the next line; more is false behind the last one.
func (s *sortedLines) next() (line string, more bool, err error) {
	for len(s.runs) > 0 {
		line = s.runs[0].line
		more, err := s.runs[0].next()
		switch {
		case err != nil:
			return "", false, err
		case more:
			heap.Fix(&s.runs, 0)
		default:
			heap.Pop(&s.runs)
		}
		if !s.any || line != s.last {
			s.any, s.last = true, line
			return line, true, nil
		}
	}
	return "", false, nil
}

// lineRun is one sorted file, or what of it is in memory, with the line that is its turn.
type lineRun struct {
	lines  *bufio.Scanner // nil where they are in memory
	memory []string
	line   string
}

func (r *lineRun) next() (more bool, err error) {
	if r.lines == nil {
		if len(r.memory) == 0 {
			return false, nil
		}
		r.line, r.memory = r.memory[0], r.memory[1:]
		return true, nil
	}
	if !r.lines.Scan() {
		return false, local(r.lines.Err())
	}
	r.line = r.lines.Text()
	return true, nil
}

// lineHeap has the run with the smallest line first.
type lineHeap []*lineRun

func (h lineHeap) Len() int           { return len(h) }
func (h lineHeap) Less(i, j int) bool { return h[i].line < h[j].line }
func (h lineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *lineHeap) Push(x any)        { *h = append(*h, x.(*lineRun)) }
func (h *lineHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
