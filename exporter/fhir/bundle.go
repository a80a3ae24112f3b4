package fhir

import (
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Page is one Bundle that is being read from the upstream. Whatever its size, reading it takes the same memory: 64 KiB,
// and what a resource needs up to 1 MiB. A longer resource goes through a temporary file. Only Buffer takes more. How long
// page and resource may be is said by Config.
type Page struct {
	client *Client
	op     string
	typ    string
	kind   string
	body   io.ReadCloser
	whole  []byte // all of body, where Buffer holds it; nil from Each on

	// Total is Bundle.total, -1 where there is none. Valid after Each.
	Total int64
	// Entries is the number of entries seen, of whatever mode. Valid after Each.
	Entries int

	// filter has to be named by the self link.
	filter []QueryParam

	next, self string
	isBundle   bool
	hasKind    bool

	*scanner
	fn    func(*Entry) error
	entry Entry
	parts entryParts
	refs  collector
	word  []byte // the last text that is not of an entry
}

// Collect asks Each to look for references while it reads, so that Entry.References(c, ...) and, where all is true,
// Entry.AllReferences need not read the resource again. c may be nil. It is called before Each.
func (p *Page) Collect(c *Compartment, all bool) {
	p.refs = collector{all: all}
	if c != nil {
		p.refs.root = c.tries[p.typ]
	}
}

// Each reads the page to its end and hands each entry to fn, in order. It fails with ErrMalformed, wrapped, when the
// answer is not a whole Bundle of the expected kind; fn may have seen entries by then, which the caller has to take
// back. It fails with ErrTooLarge, wrapped, when the page or a resource has more bytes than Config allows, with ErrNotApplied,
// wrapped, when the server did not apply Query.Filter, and with ErrSpill, wrapped, when the temporary file of a long resource
// cannot be written. An error of fn ends the reading and is returned as it is. The body is closed in any case.
func (p *Page) Each(fn func(*Entry) error) (err error) {
	defer func() { err = errors.Join(err, p.body.Close()) }()
	p.whole = nil // the buffer is another page's when this one is closed
	p.scanner = newScanner(&bounded{p.body, p.client.maxPage})
	defer func() { err = errors.Join(err, p.release()); p.scanner = nil }()
	p.kept.dir, p.kept.most = p.client.spill, p.client.maxResource
	p.found = p.refs.add
	p.fn, p.Total = fn, -1
	if err := p.bundle(); err != nil {
		return p.explain(err)
	}
	if !p.isBundle || !p.hasKind {
		return fmt.Errorf("%s: not a %s Bundle: %w", p.op, p.kind, ErrMalformed)
	}
	if !names(p.self, p.filter) {
		return fmt.Errorf("%s: %w", p.op, ErrNotApplied)
	}
	return nil
}

// callerError marks an error of Each's fn, so that it is not taken for one of the answer.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// bounded is a body that fails beyond a number of bytes.
type bounded struct {
	io.Reader
	left int64
}

// Read reads up to one byte more than is allowed, so that an end behind the last one is seen.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("page: %w", ErrTooLarge)
	}
	return n, err
}

// explain tells the four sources of an error apart: the caller, the disk, the connection, the answer.
func (p *Page) explain(err error) error {
	var caller *callerError
	switch {
	case errors.As(err, &caller):
		return caller.err
	case errors.Is(err, ErrSpill), errors.Is(err, ErrTooLarge):
		return fmt.Errorf("%s: %w", p.op, err)
	case p.trouble != nil:
		return unreachable(p.op, p.trouble)
	}
	return fmt.Errorf("%s: not a whole Bundle: %w", p.op, ErrMalformed)
}

// errShape tells that a member is not of the kind that FHIR says.
var errShape = errors.New("unexpected shape")

func (p *Page) bundle() error {
	err := p.members(func(name []byte) error {
		switch string(name) {
		case "resourceType":
			err := p.required(&p.word)
			p.isBundle = string(p.word) == "Bundle"
			return err
		case "type":
			err := p.required(&p.word)
			p.hasKind = string(p.word) == p.kind
			return err
		case "total":
			return p.orNull(p.total)
		case "link":
			return p.orNull(func() error { return p.elements(p.link) })
		case "entry":
			return p.elements(p.readEntry)
		}
		return p.value(nil)
	})
	if err != nil {
		return err
	}
	return p.finish()
}

func (p *Page) total() (err error) {
	c, err := p.token()
	if err != nil {
		return err
	}
	if c != '-' && (c < '0' || c > '9') {
		return errShape
	}
	p.mark = p.pos
	err = p.number()
	mark := p.mark
	p.mark = -1
	if err != nil || mark < 0 {
		return errors.Join(err, errShape)
	}
	if p.Total, err = strconv.ParseInt(string(p.buf[mark:p.pos]), 10, 64); err != nil {
		return errShape
	}
	return nil
}

// link reads one link of the page.
func (p *Page) link() error {
	return p.orNull(func() error {
		var relation, url []byte
		err := p.members(func(name []byte) error {
			switch string(name) {
			case "relation":
				return p.field(&relation)
			case "url":
				return p.field(&url)
			}
			return p.value(nil)
		})
		switch string(relation) {
		case "next":
			p.next = string(url)
		case "self":
			p.self = string(url)
		}
		return err
	})
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

// readEntry reads one entry and hands it to the caller.
func (p *Page) readEntry() error {
	p.entry = Entry{seen: &p.refs}
	p.parts.reset()
	p.refs.reset()
	p.kept.reset()
	if err := p.members(p.entryMember); err != nil {
		return err
	}
	p.parts.fill(&p.entry, p.typ)
	p.Entries++
	if err := p.fn(&p.entry); err != nil {
		return &callerError{err}
	}
	return nil
}

func (p *Page) entryMember(name []byte) error {
	switch string(name) {
	case "resource":
		return p.resource()
	case "fullUrl":
		return p.field(&p.parts.fullURL)
	case "search":
		return p.fields(pair{"mode", &p.parts.mode})
	case "request":
		return p.fields(pair{"method", &p.parts.method}, pair{"url", &p.parts.url})
	case "response":
		return p.fields(pair{"lastModified", &p.parts.modified}, pair{"etag", &p.parts.etag})
	}
	return p.value(nil)
}

// pair says where the text of a member goes.
type pair struct {
	name string
	dst  *[]byte
}

// fields reads an object or null.
func (p *Page) fields(pairs ...pair) error {
	return p.orNull(func() error {
		return p.members(func(name []byte) error {
			for _, pair := range pairs {
				if pair.name == string(name) {
					return p.field(pair.dst)
				}
			}
			return p.value(nil)
		})
	})
}

// resource reads the resource of an entry, keeps it, and takes its header and references on the way. Of several in an
// entry the last counts.
func (p *Page) resource() error {
	p.parts.resetHeader()
	p.refs.reset()
	p.kept.reset()
	if err := p.expect('{'); err != nil {
		return err
	}
	p.keep, p.start, p.urls = true, p.pos, false
	if p.refs.all {
		p.anywhere = allReferences
	}
	err := p.members(p.resourceMember)
	if err == nil {
		err = p.flush()
	}
	p.keep, p.anywhere = false, nil
	if err != nil {
		return err
	}
	if err := p.kept.finish(); err != nil {
		return err
	}
	if len(p.parts.typ) == 0 {
		return errShape
	}
	p.entry.noURL = !p.urls
	if p.entry.Resource, p.entry.long = p.kept.buf, nil; p.kept.spilled > 0 {
		p.entry.Resource, p.entry.long = nil, &p.kept
	}
	return nil
}

func (p *Page) resourceMember(name []byte) error {
	switch string(name) {
	case "resourceType":
		return p.required(&p.parts.typ)
	case "id":
		return p.required(&p.parts.id)
	case "meta":
		return p.members(p.metaMember)
	}
	return p.value(p.child(p.refs.root, name))
}

func (p *Page) metaMember(name []byte) error {
	switch string(name) {
	case "versionId":
		return p.required(&p.parts.version)
	case "lastUpdated":
		stamp, ok, err := p.text()
		if err != nil {
			return err
		}
		if p.parts.updated, err = parseStampText(stamp); err != nil || !ok {
			return errShape
		}
		return nil
	}
	return p.value(p.child(nil, name))
}
