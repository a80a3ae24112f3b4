package fhir

import (
	"fmt"
	"os"
)

// EntryAt returns the resource that stands in a file as one compact line: size bytes from at on, without a newline. It is
// valid as long as the file is open and the bytes stay. It fails with ErrSpill, wrapped, when the file cannot be read.
func EntryAt(typ, id string, file *os.File, at, size int64) (*Entry, error) {
	entry := &Entry{Type: typ, ID: id}
	if size > longResource {
		entry.long = &line{file: file, begin: at, spilled: size}
		return entry, nil
	}
	entry.Resource = make([]byte, size)
	if _, err := file.ReadAt(entry.Resource, at); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSpill, err)
	}
	return entry, nil
}
