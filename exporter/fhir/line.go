package fhir

import (
	"errors"
	"fmt"
	"os"
)

// longResource is the size in bytes up to which a resource is held in memory; a longer one goes into a file.
const longResource = 1 << 20

// ErrSpill is returned, wrapped, when the file beside a long resource cannot be written or read. The upstream has no
// part in it.
var ErrSpill = errors.New("temporary file of a long resource")

// line is the resource that is being read, without the white space between its tokens. It holds health data, so its file
// has no name and no reader but the process.
type line struct {
	dir     string
	buf     []byte
	file    *os.File
	begin   int64 // where in file the line begins
	spilled int64 // the first bytes of the line, which are in file
	most    int64 // the bytes that a line may have
}

// reset begins a new line.
func (l *line) reset() { l.buf, l.spilled = l.buf[:0], 0 }

// add appends to the line. span is not longer than longResource.
func (l *line) add(span []byte) error {
	if l.spilled+int64(len(l.buf)+len(span)) > l.most {
		return fmt.Errorf("resource of more than %d bytes: %w", l.most, ErrTooLarge)
	}
	if size := len(l.buf) + len(span); size > cap(l.buf) {
		if size > longResource {
			if err := l.spill(); err != nil {
				return err
			}
		}
		if size = len(l.buf) + len(span); size > cap(l.buf) {
			// What it grows out of is garbage at the peak: doubling would leave three times as much.
			grown := make([]byte, len(l.buf), min(max(4*cap(l.buf), size, scanBuffer), longResource))
			copy(grown, l.buf)
			l.buf = grown
		}
	}
	l.buf = append(l.buf, span...)
	return nil
}

// finish ends the line: all of it is in buf, or all of it in file.
func (l *line) finish() error {
	if l.spilled == 0 {
		return nil
	}
	return l.spill()
}

// spill moves what is in memory to the file.
func (l *line) spill() error {
	if l.file == nil {
		file, err := os.CreateTemp(l.dir, "long-*") // mode 0600
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSpill, err)
		}
		l.file = file
		if err := os.Remove(file.Name()); err != nil {
			return fmt.Errorf("%w: %w", ErrSpill, err)
		}
	}
	if _, err := l.file.WriteAt(l.buf, l.spilled); err != nil {
		return fmt.Errorf("%w: %w", ErrSpill, err)
	}
	l.spilled += int64(len(l.buf))
	l.buf = l.buf[:0]
	return nil
}

// close ends the use of the line and of its file, with which the file is gone.
func (l *line) close() error {
	file := l.file
	l.dir, l.file = "", nil
	l.reset()
	if file == nil {
		return nil
	}
	return file.Close()
}
