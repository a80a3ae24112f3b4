package fhirtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// span is the place of one member's value in the bytes of its object.
type span struct {
	name     string
	from, to int
}

// ref is one reference of a row under the search parameter that finds it. The key is Type/id, or the whole address of an
// absolute reference.
type ref struct{ param, key string }

// parsed is a resource that was read once, so that a search need not read it again.
type parsed struct {
	typ, id string
	raw     []byte
	spans   []span
	refs    []ref
}

func newDecoder(b []byte) *jsontext.Decoder {
	return jsontext.NewDecoder(bytes.NewBuffer(b), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// members lists the members of one JSON object; anything else, and anything after it, is an error.
func members(object []byte) ([]span, error) {
	dec := newDecoder(object)
	if dec.PeekKind() != '{' {
		return nil, errors.New("not a JSON object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	var spans []span
	for dec.PeekKind() == '"' {
		token, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		name := token.String()
		value, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		to := int(dec.InputOffset())
		spans = append(spans, span{name, to - len(value), to})
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("bytes after the object")
	}
	return spans, nil
}

// parse reads the keys of a resource. The bytes are copied where they must outlive the caller's buffer. It fails for
// anything but one JSON object with a resourceType.
func (t *paramTable) parse(resource []byte, compact bool) (*parsed, error) {
	raw := bytes.TrimSpace(resource)
	if compact {
		var b bytes.Buffer
		if err := json.Compact(&b, raw); err != nil {
			return nil, errors.New("parse resource: malformed JSON")
		}
		raw = b.Bytes()
	} else {
		raw = bytes.Clone(raw)
	}
	spans, err := members(raw)
	if err != nil {
		return nil, errors.New("parse resource: malformed JSON")
	}
	p := &parsed{raw: raw, spans: spans}
	for _, m := range spans {
		switch m.name {
		case "resourceType":
			err = json.Unmarshal(raw[m.from:m.to], &p.typ)
		case "id":
			err = json.Unmarshal(raw[m.from:m.to], &p.id)
		}
		if err != nil {
			return nil, fmt.Errorf("parse resource: %s is not a string", m.name)
		}
	}
	if p.typ == "" || strings.ContainsAny(p.typ, "/?#$") {
		return nil, errors.New("parse resource: no usable resourceType")
	}
	if strings.ContainsAny(p.id, "/?#") {
		return nil, errors.New("parse resource: no usable id")
	}
	p.refs, err = t.references(p)
	return p, err
}

// references lists what the reference parameters of the type find in the resource.
func (t *paramTable) references(p *parsed) ([]ref, error) {
	var refs []ref
	for _, param := range t.byType[p.typ] {
		for _, path := range param.paths {
			for _, m := range p.spans {
				if m.name != path[0] {
					continue
				}
				err := walk(newDecoder(p.raw[m.from:m.to]), path[1:], func(reference string) {
					if key, ok := referenceKey(reference); ok && param.accepts(key) {
						refs = append(refs, ref{param.name, key})
					}
				})
				if err != nil {
					return nil, errors.New("parse resource: malformed JSON")
				}
			}
		}
	}
	return refs, nil
}

// walk calls fn for each string at the path; arrays on the way are entered.
func walk(dec *jsontext.Decoder, path []string, fn func(string)) error {
	switch kind := dec.PeekKind(); {
	case kind == '[':
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		for dec.PeekKind() != ']' {
			if err := walk(dec, path, fn); err != nil {
				return err
			}
		}
		_, err := dec.ReadToken()
		return err
	case kind == '{' && len(path) > 0:
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		for dec.PeekKind() == '"' {
			name, err := dec.ReadToken()
			if err != nil {
				return err
			}
			if name.String() == path[0] {
				err = walk(dec, path[1:], fn)
			} else {
				err = dec.SkipValue()
			}
			if err != nil {
				return err
			}
		}
		_, err := dec.ReadToken()
		return err
	case kind == '"' && len(path) == 0:
		token, err := dec.ReadToken()
		if err != nil {
			return err
		}
		fn(token.String())
		return nil
	}
	return dec.SkipValue()
}

// referenceKey brings a literal reference into the form in which it is compared: without its version. Contained and urn
// references are never found by a search.
func referenceKey(reference string) (string, bool) {
	reference, _, _ = strings.Cut(reference, "/_history/")
	if strings.Contains(reference, "://") {
		return reference, true
	}
	typ, id, ok := strings.Cut(reference, "/")
	if !ok || typ == "" || id == "" || strings.Contains(id, "/") || strings.ContainsAny(typ, "#:") {
		return "", false
	}
	return reference, true
}

// edit replaces the bytes of a resource between two places.
type edit struct {
	from, to int
	text     string
}

// stamped returns the resource with the given id, versionId and lastUpdated; all other bytes stay. It fails when meta is
// not an object.
func (p *parsed) stamped(id, version, updated string) ([]byte, error) {
	stamp := `"versionId":` + quote(version) + `,"lastUpdated":` + quote(updated)
	var edits []edit
	after, haveMeta, haveID := 0, false, false
	for _, m := range p.spans {
		switch m.name {
		case "resourceType":
			after = m.to
		case "id":
			haveID = true
			if p.id != id {
				edits = append(edits, edit{m.from, m.to, quote(id)})
			}
		case "meta":
			haveMeta = true
			changes, err := stampMeta(p.raw[m.from:m.to], m.from, quote(version), quote(updated))
			if err != nil {
				return nil, fmt.Errorf("stamp meta: %w", err)
			}
			edits = append(edits, changes...)
		}
	}
	insert := ""
	if !haveID {
		insert = `,"id":` + quote(id)
	}
	if !haveMeta {
		insert += `,"meta":{` + stamp + `}`
	}
	if !haveMeta && haveID {
		for _, m := range p.spans {
			if m.name == "id" {
				after = m.to
			}
		}
	}
	if insert != "" {
		edits = append(edits, edit{after, after, insert})
	}
	return apply(p.raw, edits), nil
}

// stampMeta lists the edits of a meta object that begins at the given place of the resource.
func stampMeta(meta []byte, at int, version, updated string) ([]edit, error) {
	spans, err := members(meta)
	if err != nil {
		return nil, err
	}
	var edits []edit
	missing := map[string]string{"versionId": version, "lastUpdated": updated}
	for _, m := range spans {
		switch m.name {
		case "versionId":
			edits = append(edits, edit{at + m.from, at + m.to, version})
		case "lastUpdated":
			edits = append(edits, edit{at + m.from, at + m.to, updated})
		default:
			continue
		}
		delete(missing, m.name)
	}
	insert := ""
	for _, name := range []string{"versionId", "lastUpdated"} {
		if value, ok := missing[name]; ok {
			insert += quote(name) + ":" + value + ","
		}
	}
	if len(spans) == 0 {
		insert = strings.TrimSuffix(insert, ",")
	}
	if insert != "" {
		edits = append(edits, edit{at + 1, at + 1, insert})
	}
	return edits, nil
}

// apply carries out edits that do not overlap.
func apply(raw []byte, edits []edit) []byte {
	for i := 1; i < len(edits); i++ {
		for j := i; j > 0 && edits[j].from < edits[j-1].from; j-- {
			edits[j], edits[j-1] = edits[j-1], edits[j]
		}
	}
	size := len(raw)
	for _, e := range edits {
		size += len(e.text)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, e := range edits {
		out = append(out, raw[at:e.from]...)
		out = append(out, e.text...)
		at = e.to
	}
	return append(out, raw[at:]...)
}

// quote writes a string as JSON; strings always can be.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}
