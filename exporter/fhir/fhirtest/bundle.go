package fhirtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Bundle types of answers.
const (
	searchset  = "searchset"
	historySet = "history"
)

// page is one Bundle to write.
type page struct {
	kind       string
	rows       []*row
	total      *int
	self, next string
	notes      [][]byte
	// elements are the members of the resources to show, nil for all.
	elements []string
}

// bundleWriter writes a Bundle member by member, so that a page is never held as a whole. The first error stays.
type bundleWriter struct {
	w       *bufio.Writer
	pretty  bool
	scratch bytes.Buffer
	err     error
}

func (b *bundleWriter) text(s string) {
	if b.err == nil {
		_, b.err = b.w.WriteString(s)
	}
}

// line begins a new line of pretty output.
func (b *bundleWriter) line(depth int) {
	if b.pretty {
		b.text("\n" + strings.Repeat("  ", depth))
	}
}

// member writes a member of the object at the given depth; first tells whether a comma is due.
func (b *bundleWriter) member(depth int, first bool, name string, value []byte) {
	if !first {
		b.text(",")
	}
	b.line(depth)
	b.text(`"` + name + `":`)
	if b.pretty && b.err == nil {
		b.text(" ")
		b.scratch.Reset()
		b.err = json.Indent(&b.scratch, value, strings.Repeat("  ", depth), "  ")
		value = b.scratch.Bytes()
	}
	if b.err == nil {
		_, b.err = b.w.Write(value)
	}
}

// entry writes one entry; parts are pairs of member name and value, and pairs with a nil value are left out.
func (b *bundleWriter) entry(first bool, names []string, values ...[]byte) {
	if !first {
		b.text(",")
	}
	b.line(2)
	b.text("{")
	begun := false
	for i, name := range names {
		if values[i] != nil {
			b.member(3, !begun, name, values[i])
			begun = true
		}
	}
	b.line(2)
	b.text("}")
}

// writePage writes a searchset or history Bundle.
func (s *Server) writePage(w http.ResponseWriter, c *call, p *page) error {
	if err := s.prepare(c, p); err != nil {
		return err
	}
	w.Header().Set("Content-Type", fhirJSON)
	w.WriteHeader(http.StatusOK)
	b := &bundleWriter{w: bufio.NewWriterSize(w, 1<<15), pretty: c.pretty}
	b.text("{")
	b.member(1, true, "resourceType", []byte(`"Bundle"`))
	b.member(1, false, "meta", []byte(`{"lastUpdated":`+quote(s.p.instant(c.now))+`}`))
	b.member(1, false, "type", []byte(quote(p.kind)))
	if p.total != nil {
		b.member(1, false, "total", strconv.AppendInt(nil, int64(*p.total), 10))
	}
	links := `[{"relation":"self","url":` + quote(p.self) + `}`
	if p.next != "" {
		links += `,{"relation":"next","url":` + quote(p.next) + `}`
	}
	b.member(1, false, "link", []byte(links+"]"))
	if len(p.rows)+len(p.notes) > 0 {
		s.writeEntries(b, c, p)
	}
	b.line(0)
	b.text("}")
	if b.err == nil {
		b.err = b.w.Flush()
	}
	if b.err != nil {
		return fmt.Errorf("write bundle: %w", b.err)
	}
	return nil
}

func (s *Server) writeEntries(b *bundleWriter, c *call, p *page) {
	b.text(",")
	b.line(1)
	b.text(`"entry":`)
	if b.pretty {
		b.text(" ")
	}
	b.text("[")
	for i, note := range p.notes {
		b.entry(i == 0, []string{"resource", "search"}, note, []byte(`{"mode":"outcome"}`))
	}
	match := []byte(`{"mode":"match"}`)
	names := []string{"fullUrl", "resource", "request", "response"}
	for i, r := range p.rows {
		first := i == 0 && len(p.notes) == 0
		full := []byte(quote(c.base + "/" + r.name()))
		if p.kind == searchset {
			b.entry(first, []string{"fullUrl", "resource", "search"}, full, s.matchBody(b, p, r), match)
			continue
		}
		if s.p.RelativeFullURL {
			full = []byte(quote(r.name()))
		}
		resource, request, response := s.historyParts(r)
		b.entry(first, names, full, resource, request, response)
	}
	if p.kind == searchset && c.values.Get("_revinclude") != "" && s.p.RevIncludes {
		s.writeProvenance(b, c, p)
	}
	b.line(1)
	b.text("]")
}

// matchBody is what a searchset shows of a row, nil for nothing.
func (s *Server) matchBody(b *bundleWriter, p *page, r *row) []byte {
	switch {
	case s.p.LinkEntries:
		return nil
	case p.elements == nil:
		return r.body
	}
	body, err := onlyElements(r.body, p.elements)
	if err != nil && b.err == nil {
		b.err = err
	}
	return body
}
