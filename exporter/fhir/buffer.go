package fhir

import (
	"bytes"
	"io"
	"iter"
	"sync"
	"time"
)

var pageBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// buffered is a body of which the beginning, or all, is in memory.
type buffered struct {
	io.Reader
	from io.Closer
	held *bytes.Buffer
}

// Close ends the request and gives the buffer back.
func (b *buffered) Close() error {
	if b.held != nil {
		b.held.Reset()
		pageBuffers.Put(b.held)
		b.held = nil
	}
	return b.from.Close()
}

// failing is the rest of a body that has broken off.
type failing struct{ err error }

// Read fails.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Buffer takes a page of at most limit bytes into memory, where Times can look at its end before Each reads it, and tells
// whether it did. Each reads a longer page, and one that breaks off, as it does without Buffer. It is called once, with the
// same limit for all pages of the process, before Each.
func (p *Page) Buffer(limit int) bool {
	held := pageBuffers.Get().(*bytes.Buffer)
	held.Grow(limit + 1 + bytes.MinRead) // ReadFrom wants that much room to see the end
	n, err := held.ReadFrom(io.LimitReader(p.body, int64(limit)+1))
	body := &buffered{from: p.body, held: held}
	switch begin := bytes.NewReader(held.Bytes()); {
	case err != nil:
		body.Reader = io.MultiReader(begin, failing{err})
	case n > int64(limit):
		body.Reader = io.MultiReader(begin, p.body)
	default:
		body.Reader, p.whole = begin, held.Bytes()
	}
	p.body = body
	return p.whole != nil
}

// headBytes is where the links of a page are looked for: most servers write them first.
const headBytes = 8 << 10

var lastUpdatedName = []byte(`"lastUpdated"`)

// Full tells whether a buffered page seems to have n rows or more, or more behind it: by a next link before its rows, else
// by its members lastUpdated, of which it has at least as many as rows. It is called before Each.
func (p *Page) Full(n int) bool {
	head, _, _ := bytes.Cut(p.whole[:min(len(p.whole), headBytes)], []byte(`"entry"`))
	return bytes.Contains(head, []byte(`"next"`)) || bytes.Count(p.whole, lastUpdatedName) >= n
}

// Times are the members lastUpdated of a buffered page, the last one first. It looks for their text alone, wherever that
// stands, so that they are good for a guess and for nothing else. It is called before Each.
func (p *Page) Times() iter.Seq[time.Time] {
	return func(yield func(time.Time) bool) {
		for text := p.whole; ; {
			at := bytes.LastIndex(text, lastUpdatedName)
			if at < 0 {
				return
			}
			_, value, _ := bytes.Cut(text[at+len(lastUpdatedName):], []byte(`"`))
			value, _, _ = bytes.Cut(value, []byte(`"`))
			text = text[:at]
			if stamp, err := parseStampText(value); err == nil && !yield(stamp) {
				return
			}
		}
	}
}
