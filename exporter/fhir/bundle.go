package fhir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// lenient is how pages are read: one odd resource (a name twice, a lone surrogate) must not stop an export, and its
// bytes are passed on as they are.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// Entry is one entry of a Bundle page. It is valid only during the call that it is handed to.
type Entry struct {
	Type, ID, Version string
	// LastUpdated is meta.lastUpdated with the server's precision, zero where there is none.
	LastUpdated time.Time
	// Mode is search.mode: match, include, outcome or empty.
	Mode string
	// Resource is the resource as one compact line without its newline, empty where the entry has none. Numbers,
	// escapes, and member order are the server's.
	Resource []byte
	// Deleted tells, in a history, that the version is a deletion. Type and ID are then taken from the entry, Resource
	// is of no use, and LastUpdated may be zero although the time matters.
	Deleted bool
}

// Page is one Bundle that is being read from the upstream.
type Page struct {
	client *Client
	op     string
	typ    string
	kind   string
	body   io.ReadCloser

	// Total is Bundle.total, -1 where there is none. Valid after Each.
	Total int64
	// Entries is the number of entries seen, of whatever mode. Valid after Each.
	Entries int

	next, self string
	isBundle   bool
	hasKind    bool

	line   []byte
	header *jsontext.Decoder
	reader bytesReader
}

// Each reads the page to its end and hands each entry to fn, in order. It fails with ErrMalformed, wrapped, when the
// answer is not a whole Bundle of the expected kind; fn may have seen entries by then, which the caller has to take
// back. An error of fn ends the reading and is returned as it is. The body is closed in any case.
func (p *Page) Each(fn func(*Entry) error) (err error) {
	defer func() { err = errors.Join(err, p.body.Close()) }()
	body := &bodyReader{Reader: p.body}
	dec := jsontext.NewDecoder(body, lenient...)
	p.header = jsontext.NewDecoder(&p.reader, lenient...)
	p.Total = -1
	if err := p.decode(dec, fn); err != nil {
		return p.explain(err, body.trouble)
	}
	if !p.isBundle || !p.hasKind {
		return fmt.Errorf("%s: not a %s Bundle: %w", p.op, p.kind, ErrMalformed)
	}
	return nil
}

// callerError marks an error of Each's fn, so that it is not taken for one of the answer.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// bodyReader remembers what ended the body early. The JSON decoder hides it: inside of a value it turns an error of its
// reader into one of syntax.
type bodyReader struct {
	io.Reader
	trouble error
}

// Read reads, and keeps an error other than the body's end.
func (r *bodyReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		r.trouble = err
	}
	return n, err
}

// explain tells the three sources of an error apart: the caller, the connection (trouble), the answer. The text of JSON
// errors is dropped, since it quotes the answer.
func (p *Page) explain(err, trouble error) error {
	var caller *callerError
	switch {
	case errors.As(err, &caller):
		return caller.err
	case trouble != nil:
		return unreachable(p.op, trouble)
	}
	return fmt.Errorf("%s: not a whole Bundle: %w", p.op, ErrMalformed)
}

var errShape = errors.New("unexpected shape")

func (p *Page) decode(dec *jsontext.Decoder, fn func(*Entry) error) error {
	err := eachMember(dec, func(name string) error {
		switch name {
		case "resourceType":
			value, err := readString(dec)
			p.isBundle = value == "Bundle"
			return err
		case "type":
			value, err := readString(dec)
			p.hasKind = value == p.kind
			return err
		case "total":
			value, err := dec.ReadValue()
			if err != nil || json.Unmarshal(value, &p.Total) != nil {
				return errors.Join(err, errShape)
			}
			return nil
		case "link":
			return p.links(dec)
		case "entry":
			return eachElement(dec, func() error { return p.entry(dec, fn) })
		}
		return dec.SkipValue()
	})
	if err != nil {
		return err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) { // something stands behind the Bundle
		return errors.Join(err, errShape)
	}
	return nil
}

func (p *Page) links(dec *jsontext.Decoder) error {
	value, err := dec.ReadValue()
	if err != nil {
		return err
	}
	var links []struct{ Relation, URL string }
	if json.Unmarshal(value, &links) != nil {
		return errShape
	}
	for _, link := range links {
		switch link.Relation {
		case "next":
			p.next = link.URL
		case "self":
			p.self = link.URL
		}
	}
	return nil
}

// Next returns the address of the next page, below the upstream's base, or "" where there is none. It fails with
// ErrForeignLink when the server's link leads elsewhere. Valid after Each.
func (p *Page) Next() (string, error) {
	if p.next == "" {
		return "", nil
	}
	return p.client.rebase(p.next, p.self, p.typ)
}

// Close ends a page that is not going to be read.
func (p *Page) Close() error { return p.body.Close() }

// entryMeta are the members of an entry beside its resource.
type entryMeta struct {
	fullURL string
	search  struct{ Mode string }
	request struct{ Method, URL string }
	respond struct{ LastModified, ETag string }
}

func (p *Page) entry(dec *jsontext.Decoder, fn func(*Entry) error) error {
	var entry Entry
	var meta entryMeta
	p.line = p.line[:0]
	err := eachMember(dec, func(name string) error {
		var target any
		switch name {
		case "resource":
			value, err := dec.ReadValue()
			if err != nil {
				return err
			}
			if value.Kind() != '{' {
				return errShape
			}
			p.line = compact(p.line[:0], value)
			return nil
		case "fullUrl":
			target = &meta.fullURL
		case "search":
			target = &meta.search
		case "request":
			target = &meta.request
		case "response":
			target = &meta.respond
		default:
			return dec.SkipValue()
		}
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if json.Unmarshal(value, target) != nil {
			return errShape
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(p.line) > 0 {
		if err := p.readHeader(&entry); err != nil {
			return err
		}
		entry.Resource = p.line
	}
	meta.complete(&entry)
	p.Entries++
	if err := fn(&entry); err != nil {
		return &callerError{err}
	}
	return nil
}

// complete takes over what stands beside the resource. Servers write deletions in three ways (with a stub, with the old
// body, without a resource), so only the method tells them, and type and id come from the first place that has them.
func (m *entryMeta) complete(entry *Entry) {
	entry.Mode = m.search.Mode
	entry.Deleted = m.request.Method == "DELETE"
	if entry.Type == "" || entry.ID == "" {
		for _, place := range []string{m.request.URL, m.fullURL} {
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
		if _, _, version, _ := splitReference(m.request.URL); version != "" {
			entry.Version = version
		}
		if entry.Version == "" {
			entry.Version = strings.Trim(strings.TrimPrefix(m.respond.ETag, "W/"), `"`)
		}
		entry.LastUpdated = time.Time{} // a stub repeats the time of the version before
		if modified, err := parseStamp(m.respond.LastModified); err == nil {
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

// readHeader reads the type, id, version and time of the resource in p.line. It stops as soon as it has them.
func (p *Page) readHeader(entry *Entry) error {
	p.reader.b = p.line
	p.header.Reset(&p.reader, lenient...)
	var found struct{ typ, id, meta bool } // a name may come twice, so a count would end too early
	err := eachMember(p.header, func(name string) error {
		var err error
		switch name {
		case "resourceType":
			entry.Type, err = readString(p.header)
			found.typ = true
		case "id":
			entry.ID, err = readString(p.header)
			found.id = true
		case "meta":
			err = readMeta(p.header, entry)
			found.meta = true
		default:
			return p.header.SkipValue()
		}
		if err == nil && found.typ && found.id && found.meta {
			return errEnough
		}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if entry.Type == "" {
		return errShape
	}
	return nil
}

var errEnough = errors.New("enough")

func readMeta(dec *jsontext.Decoder, entry *Entry) error {
	return eachMember(dec, func(name string) error {
		switch name {
		case "versionId":
			var err error
			entry.Version, err = readString(dec)
			return err
		case "lastUpdated":
			value, err := readString(dec)
			if err != nil {
				return err
			}
			if entry.LastUpdated, err = parseStamp(value); err != nil {
				return errShape
			}
			return nil
		}
		return dec.SkipValue()
	})
}

// eachMember reads an object and calls fn with each name; fn reads or skips the value.
func eachMember(dec *jsontext.Decoder, fn func(name string) error) error {
	token, err := dec.ReadToken()
	if err != nil {
		return err
	}
	if token.Kind() != '{' {
		return errShape
	}
	for {
		token, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if token.Kind() == '}' {
			return nil
		}
		if err := fn(token.String()); err != nil {
			return err
		}
	}
}

// eachElement reads an array and calls fn before each element; fn reads it.
func eachElement(dec *jsontext.Decoder, fn func() error) error {
	token, err := dec.ReadToken()
	if err != nil {
		return err
	}
	if token.Kind() != '[' {
		return errShape
	}
	for dec.PeekKind() != ']' {
		if dec.PeekKind() == 0 { // the error comes with the next read
			_, err := dec.ReadToken()
			return err
		}
		if err := fn(); err != nil {
			return err
		}
	}
	_, err = dec.ReadToken()
	return err
}

func readString(dec *jsontext.Decoder) (string, error) {
	token, err := dec.ReadToken()
	if err != nil {
		return "", err
	}
	if token.Kind() != '"' {
		return "", errShape
	}
	return token.String(), nil
}

// compact appends src to dst without the white space between tokens. src is valid JSON.
func compact(dst, src []byte) []byte {
	for i := 0; i < len(src); {
		switch c := src[i]; c {
		case ' ', '\n', '\r', '\t':
			i++
		case '"':
			end := i + 1
			for src[end] != '"' {
				if src[end] == '\\' {
					end++
				}
				end++
			}
			dst = append(dst, src[i:end+1]...)
			i = end + 1
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// bytesReader reads a slice without a copy being kept, so that one decoder serves all resources.
type bytesReader struct{ b []byte }

func (r *bytesReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}
