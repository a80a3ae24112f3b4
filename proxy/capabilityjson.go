package proxy

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

var errStatement = errors.New("not a CapabilityStatement")

// jsonPlace is an object or array that something may be added to.
type jsonPlace struct {
	end   int64 // offset of its closing bracket
	empty bool
	found bool
}

// jsonRest is what completing needs to know of one element of rest.
type jsonRest struct {
	mode       string
	self       jsonPlace
	operations jsonOperations
	resources  jsonPlace
	byType     map[string]*jsonResource
}

type jsonResource struct {
	typ        string
	self       jsonPlace
	operations jsonOperations
}

// jsonOperations are an array of operations and the definitions in it.
type jsonOperations struct {
	list        jsonPlace
	definitions []string
}

// completeJSON adds the operations to a statement in JSON.
func completeJSON(statement []byte) ([]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(statement), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	var kind string
	var rests []*jsonRest
	_, err := jsonObject(dec, func(name string) error {
		switch name {
		case "resourceType":
			return jsonString(dec, &kind)
		case "rest":
			_, err := jsonArray(dec, func() error {
				rest, err := readJSONRest(dec)
				rests = append(rests, rest)
				return err
			})
			return err
		}
		return dec.SkipValue()
	})
	if err != nil {
		return nil, err
	}
	if kind != "CapabilityStatement" {
		return statement, nil // ?mode=terminology answers with another resource
	}
	for _, rest := range rests {
		if rest.mode == "server" {
			return insert(statement, rest.insertions()), nil
		}
	}
	return nil, fmt.Errorf("no rest of mode server: %w", errStatement)
}

func (r *jsonRest) insertions() []insertion {
	var out []insertion
	missing := ""
	for _, op := range operations {
		text := `{"name":"export","definition":"` + op.definition + `"}`
		switch resource := r.byType[op.resource]; {
		case op.resource == "":
			out = append(out, r.operations.add(r.self, op.definition, text)...)
		case resource != nil:
			out = append(out, resource.operations.add(resource.self, op.definition, text)...)
		default:
			missing += `,{"type":"` + op.resource + `","operation":[` + text + `]}`
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

// add puts an operation into its array, or an array with it into the owner, unless it is there.
func (o *jsonOperations) add(owner jsonPlace, definition, text string) []insertion {
	for _, known := range o.definitions {
		if known == definition {
			return nil
		}
	}
	switch {
	case o.list.found && o.list.empty:
		return []insertion{{o.list.end, text}}
	case o.list.found:
		return []insertion{{o.list.end, "," + text}}
	}
	return []insertion{{owner.end, `,"operation":[` + text + `]`}}
}

func readJSONRest(dec *jsontext.Decoder) (*jsonRest, error) {
	rest := &jsonRest{byType: map[string]*jsonResource{}}
	var err error
	rest.self, err = jsonObject(dec, func(name string) error {
		switch name {
		case "mode":
			return jsonString(dec, &rest.mode)
		case "operation":
			return rest.operations.read(dec)
		case "resource":
			var err error
			rest.resources, err = jsonArray(dec, func() error {
				resource := &jsonResource{}
				var err error
				resource.self, err = jsonObject(dec, func(name string) error {
					switch name {
					case "type":
						return jsonString(dec, &resource.typ)
					case "operation":
						return resource.operations.read(dec)
					}
					return dec.SkipValue()
				})
				rest.byType[resource.typ] = resource
				return err
			})
			return err
		}
		return dec.SkipValue()
	})
	return rest, err
}

func (o *jsonOperations) read(dec *jsontext.Decoder) error {
	var err error
	o.list, err = jsonArray(dec, func() error {
		_, err := jsonObject(dec, func(name string) error {
			if name != "definition" {
				return dec.SkipValue()
			}
			var definition string
			err := jsonString(dec, &definition)
			o.definitions = append(o.definitions, withoutVersion(definition))
			return err
		})
		return err
	})
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
