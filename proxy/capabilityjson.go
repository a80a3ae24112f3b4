package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

var errStatement = errors.New("not a CapabilityStatement")

// jsonPlace is an object or array that something may be added to.
type jsonPlace struct {
	end   int64 // offset of its closing bracket
	empty bool
	found bool
}

// jsonStatement is what completing needs to know of a statement.
type jsonStatement struct {
	kind, release string
	self          jsonPlace
	instantiates  jsonList
	rests         []*jsonRest
}

// jsonRest is what completing needs to know of one element of rest.
type jsonRest struct {
	mode       string
	self       jsonPlace
	operations jsonList
	resources  jsonPlace
	all        []*jsonResource
}

type jsonResource struct {
	resourceFacts

	self       jsonPlace
	operations jsonList
	extensions jsonList
}

// jsonList is an array, and the canonical addresses by which its elements are known.
type jsonList struct {
	place jsonPlace
	known []string
}

// completeJSON adds to a statement in JSON.
func completeJSON(statement []byte, additionsTo func(declared) additions) ([]byte, error) {
	var s jsonStatement
	if err := s.read(statement); err != nil {
		return nil, err
	}
	if s.kind != "CapabilityStatement" {
		return statement, nil // ?mode=terminology answers with another resource
	}
	for _, rest := range s.rests {
		if rest.mode == "server" {
			add := additionsTo(declaredBy(s.release, rest.all))
			out := rest.insertions(add)
			if !knows(s.instantiates.known, bulkData) {
				out = append(out, s.instantiates.add(s.self, "instantiates", `"`+bulkData+`"`)...)
			}
			return insert(statement, out), nil
		}
	}
	return nil, fmt.Errorf("no rest of mode server: %w", errStatement)
}

func (s *jsonStatement) read(statement []byte) (err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(statement), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	s.self, err = jsonObject(dec, func(name string) error {
		switch name {
		case "resourceType":
			return jsonString(dec, &s.kind)
		case "fhirVersion":
			return jsonString(dec, &s.release)
		case "instantiates":
			return s.instantiates.readTexts(dec)
		case "rest":
			_, err := jsonArray(dec, func() error {
				rest, err := readJSONRest(dec)
				s.rests = append(s.rests, rest)
				return err
			})
			return err
		}
		return dec.SkipValue()
	})
	return err
}

func (r *jsonRest) insertions(add additions) []insertion {
	var out []insertion
	missing := ""
	for _, op := range add.operations {
		switch resource := lastOf(r.all, op.resource); {
		case op.resource == "":
			out = append(out, r.operations.add(r.self, "operation", add.jsonOffers(op.offers(r.operations.known)))...)
		case resource != nil:
			out = append(out, resource.operations.add(resource.self, "operation", add.jsonOffers(op.offers(resource.operations.known)))...)
		default:
			missing += `,{"type":"` + op.resource + `","operation":[` + add.jsonOffers(op.offers(nil)) + `]}`
		}
	}
	for _, resource := range r.all {
		text := ""
		for _, canonical := range add.without[resource.typ] {
			text += `,{"url":"` + notSupported + `","` + add.value() + `":"` + canonical + `"}`
		}
		if text != "" && !knows(resource.extensions.known, notSupported) {
			out = append(out, resource.extensions.add(resource.self, "extension", text[1:])...)
		}
	}
	switch {
	case missing == "":
	case r.resources.found && !r.resources.empty:
		out = append(out, insertion{r.resources.end, missing})
	case r.resources.found:
		out = append(out, insertion{r.resources.end, missing[1:]})
	default:
		out = append(out, insertion{r.self.end, `,"resource":[` + missing[1:] + `]`})
	}
	return out
}

// jsonOffers are elements of an array.
func (a additions) jsonOffers(offers []offer) string {
	var elements []string
	for _, o := range offers {
		definition := `"` + o.definition + `"`
		if a.stu3 {
			definition = `{"reference":` + definition + `}`
		}
		elements = append(elements, `{"name":"`+o.name+`","definition":`+definition+`}`)
	}
	return strings.Join(elements, ",")
}

// add puts text into the array, or an array of that name with it into the owner. Without text it adds nothing.
func (l *jsonList) add(owner jsonPlace, name, text string) []insertion {
	switch {
	case text == "":
		return nil
	case l.place.found && l.place.empty:
		return []insertion{{l.place.end, text}}
	case l.place.found:
		return []insertion{{l.place.end, "," + text}}
	}
	return []insertion{{owner.end, `,"` + name + `":[` + text + `]`}}
}

func readJSONRest(dec *jsontext.Decoder) (*jsonRest, error) {
	rest := &jsonRest{}
	var err error
	rest.self, err = jsonObject(dec, func(name string) error {
		switch name {
		case "mode":
			return jsonString(dec, &rest.mode)
		case "operation":
			return rest.operations.read(dec, "definition")
		case "resource":
			var err error
			rest.resources, err = jsonArray(dec, func() error {
				resource := &jsonResource{}
				rest.all = append(rest.all, resource)
				return resource.read(dec)
			})
			return err
		}
		return dec.SkipValue()
	})
	return rest, err
}

func (r *jsonResource) read(dec *jsontext.Decoder) (err error) {
	r.self, err = jsonObject(dec, func(name string) error {
		switch name {
		case "type":
			return jsonString(dec, &r.typ)
		case "interaction":
			var interactions jsonList
			err := interactions.read(dec, "code")
			r.searched = slices.Contains(interactions.known, "search-type")
			return err
		case "operation":
			return r.operations.read(dec, "definition")
		case "extension":
			return r.extensions.read(dec, "url")
		}
		return dec.SkipValue()
	})
	return err
}

// read reads an array of objects that are known by a member, a text or, in STU3, a Reference.
func (l *jsonList) read(dec *jsontext.Decoder, member string) (err error) {
	l.place, err = jsonArray(dec, func() error { return l.readMember(dec, member) })
	return err
}

func (l *jsonList) readMember(dec *jsontext.Decoder, member string) error {
	_, err := jsonObject(dec, func(name string) error {
		switch {
		case name != member:
			return dec.SkipValue()
		case dec.PeekKind() == '{':
			return l.readMember(dec, "reference")
		}
		return l.readText(dec)
	})
	return err
}

// readTexts reads an array of canonical addresses.
func (l *jsonList) readTexts(dec *jsontext.Decoder) (err error) {
	l.place, err = jsonArray(dec, func() error { return l.readText(dec) })
	return err
}

func (l *jsonList) readText(dec *jsontext.Decoder) error {
	var text string
	err := jsonString(dec, &text)
	l.known = append(l.known, text)
	return err
}

// jsonObject reads an object; fn reads or skips each member's value.
func jsonObject(dec *jsontext.Decoder, fn func(name string) error) (jsonPlace, error) {
	place := jsonPlace{empty: true, found: true}
	if err := jsonOpen(dec, '{'); err != nil {
		return place, err
	}
	for {
		token, err := dec.ReadToken()
		if err != nil {
			return place, err
		}
		if token.Kind() == '}' {
			place.end = dec.InputOffset() - 1
			return place, nil
		}
		place.empty = false
		if err := fn(token.String()); err != nil {
			return place, err
		}
	}
}

// jsonArray reads an array; fn reads each element.
func jsonArray(dec *jsontext.Decoder, fn func() error) (jsonPlace, error) {
	place := jsonPlace{empty: true, found: true}
	if err := jsonOpen(dec, '['); err != nil {
		return place, err
	}
	for dec.PeekKind() != ']' {
		place.empty = false
		if err := fn(); err != nil {
			return place, err
		}
	}
	_, err := dec.ReadToken()
	place.end = dec.InputOffset() - 1
	return place, err
}

func jsonOpen(dec *jsontext.Decoder, kind jsontext.Kind) error {
	token, err := dec.ReadToken()
	if err == nil && token.Kind() != kind {
		err = errStatement
	}
	return err
}

func jsonString(dec *jsontext.Decoder, into *string) error {
	token, err := dec.ReadToken()
	if err == nil && token.Kind() != '"' {
		err = errStatement
	}
	if err == nil {
		*into = token.String()
	}
	return err
}
