package fhir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Entry is one entry of a Bundle page. It is valid only during the call that it is handed to; its strings stay.
type Entry struct {
	Type, ID, Version string
	// LastUpdated is meta.lastUpdated with the server's precision, zero where there is none.
	LastUpdated time.Time
	// Mode is search.mode: match, include, outcome or empty.
	Mode string
	// FullURL is fullUrl as the server wrote it, empty where there is none.
	FullURL string
	// Resource is the resource as one compact line without its newline, empty where the entry has none. Numbers,
	// escapes, and member order are the server's. It is nil, too, where the resource has more than 1 MiB: Size, Bytes
	// and WriteTo know both.
	Resource []byte
	// Deleted tells, in a history, that the version is a deletion. Type and ID are then taken from the entry, Resource
	// is of no use, and LastUpdated may be zero although the time matters.
	Deleted bool

	noURL bool       // tells that no member is called url; without it nobody has looked
	long  *line      // holds the resource where Resource does not
	seen  *collector // may hold the references
}

// ErrTooLong is returned by Entry.Bytes for a resource above the limit.
var ErrTooLong = errors.New("resource is too long")

// Size returns the bytes of the resource, 0 where the entry has none.
func (e *Entry) Size() int64 {
	if e.long != nil {
		return e.long.spilled
	}
	return int64(len(e.Resource))
}

// WriteTo writes the resource to w. It fails with ErrSpill, wrapped, when a long one cannot be read back, else with w's
// error as it is.
func (e *Entry) WriteTo(w io.Writer) (int64, error) {
	if e.long == nil {
		n, err := w.Write(e.Resource)
		return int64(n), err
	}
	from := &spillReader{Reader: e.reader()}
	n, err := io.Copy(w, from)
	switch {
	case from.err != nil:
		return n, from.err
	case err == nil && n != e.long.spilled:
		return n, fmt.Errorf("%w: %w", ErrSpill, io.ErrUnexpectedEOF)
	}
	return n, err
}

// spillReader tells errors of the file from those of the writer beside it.
type spillReader struct {
	io.Reader
	err error
}

// Read reads on, and keeps an error other than the end.
func (r *spillReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = fmt.Errorf("%w: %w", ErrSpill, err)
		return n, r.err
	}
	return n, err
}

// Bytes returns the resource as a whole, for the caller to keep, nil where the entry has none. It fails with ErrTooLong when it has more than limit
// bytes, and with ErrSpill, wrapped, when a long one cannot be read back.
func (e *Entry) Bytes(limit int64) ([]byte, error) {
	switch size := e.Size(); {
	case size == 0:
		return nil, nil
	case size > limit:
		return nil, ErrTooLong
	}
	whole := bytes.NewBuffer(make([]byte, 0, e.Size()))
	_, err := e.WriteTo(whole)
	return whole.Bytes(), err
}

// reader reads the resource from its start.
func (e *Entry) reader() io.Reader {
	if e.long != nil {
		return io.NewSectionReader(e.long.file, e.long.begin, e.long.spilled)
	}
	return bytes.NewReader(e.Resource)
}

// References calls fn for each reference by which the resource may be in a compartment, as [Compartment.References]
// does, and with its errors. It reads the resource again unless Page.Collect was told of c.
func (e *Entry) References(c *Compartment, fn func(param, reference string) bool) error {
	if e.seen == nil || e.seen.over || e.seen.root == nil || e.seen.root != c.tries[e.Type] {
		return c.scan(e.Type, e.reader(), fn)
	}
	e.seen.each(func(node *pathNode, reference string) bool {
		for _, param := range node.params {
			if !fn(param, reference) {
				return false
			}
		}
		return true
	})
	return nil
}

// AllReferences calls fn for each string called "reference" anywhere in the resource, contained resources and extensions
// included, in order and until fn returns false. It fails as References does, and for an entry without a resource. It
// reads the resource again unless Page.Collect was told so.
func (e *Entry) AllReferences(fn func(reference string) bool) error {
	if e.seen != nil && e.seen.all && !e.seen.over {
		e.seen.each(func(_ *pathNode, reference string) bool { return fn(reference) })
		return nil
	}
	return scanReferences(e.reader(), nil, true, func(_ *pathNode, reference []byte) error {
		if !fn(string(reference)) {
			return errEnough
		}
		return nil
	})
}

// entryParts are the texts of one entry while it is being read. Its buffers are used again for the next.
type entryParts struct {
	typ, id, version, fullURL, mode []byte
	method, url, modified, etag     []byte // of a history's request and response
	updated                         time.Time
	own                             []byte
}

func (t *entryParts) reset() {
	t.resetHeader()
	for _, field := range []*[]byte{&t.fullURL, &t.mode, &t.method, &t.url, &t.modified, &t.etag} {
		*field = (*field)[:0]
	}
}

// resetHeader forgets what is from the resource.
func (t *entryParts) resetHeader() {
	t.typ, t.id, t.version, t.updated = t.typ[:0], t.id[:0], t.version[:0], time.Time{}
}

// fill sets the fields of an entry of a page of type typ. All strings that are not known share one allocation.
func (t *entryParts) fill(entry *Entry, typ string) {
	entry.Type = known(t.typ, typ)
	entry.Mode = known(t.mode, "match", "include", "outcome")
	t.own = append(append(append(t.own[:0], t.id...), t.version...), t.fullURL...)
	own := string(t.own)
	entry.ID, own = own[:len(t.id)], own[len(t.id):]
	entry.Version, entry.FullURL = own[:len(t.version)], own[len(t.version):]
	entry.LastUpdated = t.updated
	t.complete(entry)
}

// known returns text as a string, one of the common ones if it is.
func known(text []byte, common ...string) string {
	for _, s := range common {
		if s == string(text) {
			return s
		}
	}
	return string(text)
}

// complete takes over what stands beside the resource. Servers write deletions in three ways (with a stub, with the old
// body, without a resource), so only the method tells them, and type and id come from the first place that has them.
func (t *entryParts) complete(entry *Entry) {
	entry.Deleted = string(t.method) == "DELETE"
	if entry.Type == "" || entry.ID == "" {
		for _, place := range []string{string(t.url), entry.FullURL} {
			if typ, id, version, ok := splitReference(place); ok {
				entry.Type, entry.ID = typ, id
				if entry.Version == "" {
					entry.Version = version
				}
				break
			}
		}
	}
	if entry.Deleted {
		if _, _, version, _ := splitReference(string(t.url)); version != "" {
			entry.Version = version
		}
		if entry.Version == "" {
			entry.Version = strings.Trim(strings.TrimPrefix(string(t.etag), "W/"), `"`)
		}
		entry.LastUpdated = time.Time{} // a stub repeats the time of the version before
		if modified, err := parseStamp(string(t.modified)); err == nil {
			entry.LastUpdated = modified
		}
	}
}

// splitReference reads "…/Type/id" and "…/Type/id/_history/version".
func splitReference(reference string) (typ, id, version string, ok bool) {
	parts := strings.Split(reference, "/")
	if n := len(parts); n >= 4 && parts[n-2] == "_history" {
		version = parts[n-1]
		parts = parts[:n-2]
	}
	n := len(parts)
	if n < 2 || parts[n-2] == "" || parts[n-1] == "" || parts[n-2][0] < 'A' || parts[n-2][0] > 'Z' {
		return "", "", "", false
	}
	return parts[n-2], parts[n-1], version, true
}
