package fhir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// Output is how resources are written to output files: as the server wrote them, but for two things that the Bulk Data
// guide asks for. A relative Attachment.url is made absolute, as nobody knows the server's base who has the file alone; that
// of a Binary may become a link of its own. And where elements were asked for, the others are left out. It is safe for
// concurrent use and never changes. A nil Output writes resources as they are.
type Output struct {
	// base, origin and scheme are what a relative URL lacks, as they stand in a JSON string; empty where it stays.
	base, origin, scheme string
	attachments          *pathNode
	kept                 map[string]map[string]bool // members by type, no entry for types that keep all
	// bases are how URLs on the server begin, and binary gives the URL in whose stead a path below them is written.
	bases  []string
	binary func(path string) (url string, ok bool)
}

// NewOutput returns the Output of an export for whose clients the server's base is base, without a slash at its end.
// elements are "Type.element" or "element", none for all. It fails where elements are asked for and the release has no
// table, and where base is no URL.
func NewOutput(fhirVersion, base string, elements []string) (*Output, error) {
	table, err := Elements(fhirVersion)
	if err != nil && len(elements) > 0 {
		return nil, err
	}
	if err != nil { // an Attachment is called the same in every release
		if table, err = Elements("4.0"); err != nil {
			return nil, err
		}
	}
	o := &Output{attachments: &pathNode{}, kept: map[string]map[string]bool{}}
	for _, name := range table.attachments {
		o.attachments.children = append(o.attachments.children, &pathNode{name: name, children: []*pathNode{{name: "url", end: true}}})
	}
	if len(elements) > 0 {
		for typ := range table.types {
			if kept := table.kept(typ, elements); kept != nil {
				o.kept[typ] = kept
			}
		}
	}
	if base == "" {
		return o, nil
	}
	parsed, err := url.Parse(base)
	if err != nil || parsed.Scheme == "" || parsed.Host == "" {
		return nil, errors.New("the public base is not an absolute URL")
	}
	o.bases = []string{base + "/", strings.TrimRight(parsed.EscapedPath(), "/") + "/"}
	o.base, o.origin, o.scheme = escaped(base+"/"), escaped(parsed.Scheme+"://"+parsed.Host), escaped(parsed.Scheme+":")
	return o, nil
}

// LinkBinaries makes o write another URL in place of an Attachment's that is on the server, where link has one for its path
// below the FHIR base. On the server is what is relative, and what begins with the public base or with one of bases, which
// have no slash at their ends. It must be called before the first Write, and does nothing where NewOutput was given no base.
func (o *Output) LinkBinaries(bases []string, link func(path string) (url string, ok bool)) {
	if o.base == "" {
		return
	}
	o.binary = link
	for _, base := range bases {
		o.bases = append(o.bases, base+"/")
	}
}

// escaped is a text as it stands in a JSON string.
func escaped(text string) string {
	quoted, _ := json.Marshal(text) // it does not fail for a string
	return string(quoted[1 : len(quoted)-1])
}

// Write writes an entry's resource to w, as one line without its newline, and returns how many bytes that took. Members
// that stay keep their bytes and their order. It fails as Entry.WriteTo does, and with ErrMalformed, wrapped, when the
// resource is not one JSON object.
func (o *Output) Write(w io.Writer, e *Entry) (n int64, err error) {
	if o == nil || o.kept[e.Type] == nil && e.long == nil && (o.base == "" || e.noURL || !o.mayChangeURL(e.Resource)) {
		return e.WriteTo(w)
	}
	counted := &countingWriter{to: w}
	p := &projection{scanner: newScanner(e.reader()), kept: o.kept[e.Type]}
	defer func() { n, err = counted.n, errors.Join(err, p.release()) }()
	p.out, p.anywhere = counted, o.attachments
	p.found = func(_ *pathNode, url []byte) error {
		if link, ok := o.linked(url); ok {
			return p.instead(escaped(link))
		}
		return p.complete(o.missing(url))
	}
	if err = p.resource(); err == nil {
		err = p.finish()
	}
	switch {
	case p.trouble != nil:
		err = fmt.Errorf("write resource: %w: %w", ErrSpill, p.trouble)
	case counted.err != nil:
		err = counted.err
	case err != nil:
		err = fmt.Errorf("write resource: %w", ErrMalformed)
	}
	return n, err
}

// mayChangeURL tells whether a member called url may hold anything but an absolute URL that stays. It looks at the text alone,
// which takes a fraction of the time of a reading. A letter of the name could be
// escaped.
func (o *Output) mayChangeURL(resource []byte) bool {
	name := []byte(`"url":"`)
	for rest := resource; ; {
		at := bytes.Index(rest, name)
		if at < 0 {
			return bytes.Contains(resource, []byte(`\u00`))
		}
		if rest = rest[at+len(name):]; !isAbsolute(rest) || o.mayLink(rest) {
			return true
		}
	}
}

// mayLink tells whether a URL, with what stands behind it, may be on the server. A character of it could be escaped.
func (o *Output) mayLink(rest []byte) bool {
	if o.binary == nil {
		return false
	}
	for _, base := range o.bases {
		if bytes.HasPrefix(rest, []byte(base)) {
			return true
		}
	}
	url, _, _ := bytes.Cut(rest, []byte(`"`))
	return bytes.IndexByte(url, '\\') >= 0
}

// linked returns what is written in place of a URL; ok is false where nothing is.
func (o *Output) linked(url []byte) (link string, ok bool) {
	if o.binary == nil {
		return "", false
	}
	for _, base := range o.bases {
		if path, below := bytes.CutPrefix(url, []byte(base)); below {
			if link, ok := o.binary(string(path)); ok {
				return link, true
			}
		}
	}
	return o.binary(string(url))
}

// isAbsolute tells whether a URL begins with a scheme (RFC 3986, section 3.1).
func isAbsolute(url []byte) bool {
	for i, c := range url {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		default:
			return i > 0 && c == ':'
		}
	}
	return false
}

// missing returns what has to stand before a URL for it to be absolute. A relative one is relative to the server's base
// (FHIR, Attachment.url); one that names no document but a place in this one stays.
func (o *Output) missing(url []byte) string {
	switch {
	case len(url) == 0, url[0] == '#', url[0] == '?', isAbsolute(url):
		return ""
	case bytes.HasPrefix(url, []byte("//")):
		return o.scheme
	case url[0] == '/':
		return o.origin
	}
	return o.base
}

// countingWriter counts what is written, and keeps the error that ended it.
type countingWriter struct {
	to  io.Writer
	n   int64
	err error
}

// Write writes on.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.n += int64(n)
	c.err = err
	return n, err
}

// subsetted tells readers that a resource is not whole, so that nobody overwrites a whole one with it.
const (
	subsettedSystem = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	subsettedCode   = "SUBSETTED"
	subsetted       = `{"system":"` + subsettedSystem + `","code":"` + subsettedCode + `"}`
)

// projection writes one resource.
type projection struct {
	*scanner
	kept map[string]bool // members, nil for all
}

// complete puts text before the string that was read last.
func (p *projection) complete(text string) error {
	if text == "" || !p.keep {
		return nil
	}
	return p.insert(p.at, text)
}

// instead writes text in place of the string that was read last.
func (p *projection) instead(text string) error {
	if !p.keep {
		return nil
	}
	err := p.insert(p.at, text)
	p.start = p.pos - 1 // its closing quote stays
	return err
}

// insert writes text before the byte at, which is not kept yet.
func (p *projection) insert(at int, text string) error {
	if err := p.flushTo(at); err != nil {
		return err
	}
	_, err := io.WriteString(p.out, text)
	return err
}

// replace reads a value and writes text in its place.
func (p *projection) replace(text string) error {
	if err := p.insert(p.pos, text); err != nil {
		return err
	}
	p.keep = false
	err := p.value(nil)
	p.keep, p.start = true, p.pos
	return err
}

// resource writes the resource.
func (p *projection) resource() error {
	if err := p.expect('{'); err != nil {
		return err
	}
	if p.kept != nil {
		return p.chosen()
	}
	p.keep, p.start = true, p.pos
	err := p.object(nil)
	if err == nil {
		err = p.flush()
	}
	p.keep = false
	return err
}

// chosen writes the root members that are kept. What separates them is written anew, and nothing else.
func (p *projection) chosen() error {
	separator, tagged := "{", false
	more, err := p.open('}')
	for more && err == nil {
		name, ok, err := p.text()
		if err != nil {
			return err
		}
		node := p.child(nil, name)
		read := func() error { return p.value(node) }
		if ok && p.keeps(name) {
			if string(name) == "meta" {
				read, tagged = p.meta, true
			}
			if _, err := io.WriteString(p.out, separator+`"`); err != nil {
				return err
			}
			separator = ","
			p.keep, p.start = true, p.at
		}
		if err := p.colon(); err != nil {
			return err
		}
		if err := read(); err != nil {
			return err
		}
		if err := p.flush(); err != nil {
			return err
		}
		p.keep = false
		if more, err = p.close('}'); err != nil {
			return err
		}
	}
	if err == nil && !tagged {
		_, err = io.WriteString(p.out, separator+`"meta":{"tag":[`+subsetted+`]}`)
	}
	if err == nil {
		_, err = io.WriteString(p.out, "}")
	}
	return err
}

// keeps tells whether a root member stays. "_birthDate" holds the id and the extensions of "birthDate" and goes with it.
func (p *projection) keeps(name []byte) bool {
	return p.kept[string(bytes.TrimPrefix(name, []byte("_")))]
}

// meta writes meta with the tag in it. Where it is no object it is not FHIR and holds nothing that could be kept.
func (p *projection) meta() error {
	const tags = `"tag":[` + subsetted + `]`
	c, err := p.token()
	if err != nil {
		return err
	}
	if c != '{' {
		return p.replace("{" + tags + "}")
	}
	separator, tagged := "", false
	err = p.members(func(name []byte) error {
		if separator = ","; string(name) != "tag" {
			return p.value(nil)
		}
		tagged = true
		return p.tags()
	})
	if err != nil || tagged {
		return err
	}
	return p.insert(p.pos-1, separator+tags)
}

// tags writes the tags of meta, with ours at their end unless it is among them. As with meta, what is no array is no tags.
func (p *projection) tags() error {
	c, err := p.token()
	if err != nil {
		return err
	}
	if c != '[' {
		return p.replace("[" + subsetted + "]")
	}
	separator, tagged := "", false
	err = p.elements(func() error {
		ours, err := p.isSubsetted()
		separator, tagged = ",", tagged || ours
		return err
	})
	if err != nil || tagged {
		return err
	}
	return p.insert(p.pos-1, separator+subsetted)
}

// isSubsetted reads a tag and tells whether it is ours.
func (p *projection) isSubsetted() (bool, error) {
	c, err := p.token()
	if err != nil {
		return false, err
	}
	if c != '{' {
		return false, p.value(nil)
	}
	system, code := false, false
	err = p.members(func(name []byte) error {
		isSystem, isCode := string(name) == "system", string(name) == "code"
		c, err := p.token()
		if err != nil {
			return err
		}
		if c != '"' || !isSystem && !isCode {
			return p.value(nil)
		}
		text, _, err := p.text()
		system = system || isSystem && string(text) == subsettedSystem
		code = code || isCode && string(text) == subsettedCode
		return err
	})
	return system && code, err
}
