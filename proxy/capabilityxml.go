package proxy

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
)

// xmlRest is what completing needs to know of one element rest. The order of FHIR's elements counts in XML.
type xmlRest struct {
	mode        string
	resourceAt  int64 // where a further resource may stand: before interaction, searchParam, operation, compartment
	operationAt int64 // where a further operation may stand: before compartment
	definitions []string
	byType      map[string]*xmlResource
}

type xmlResource struct {
	end         int64
	definitions []string
}

// completeXML adds the operations to a statement in XML.
func completeXML(statement []byte) ([]byte, error) {
	reader := &xmlReader{dec: xml.NewDecoder(bytes.NewReader(statement))}
	reader.dec.CharsetReader = func(string, io.Reader) (io.Reader, error) { return nil, errStatement }
	if err := reader.read(); err != nil {
		return nil, err
	}
	if reader.root != "CapabilityStatement" {
		return statement, nil
	}
	for _, rest := range reader.rests {
		if rest.mode == "server" {
			return insert(statement, rest.insertions(reader.prefix)), nil
		}
	}
	return nil, fmt.Errorf("no rest of mode server: %w", errStatement)
}

func (r *xmlRest) insertions(prefix string) []insertion {
	var out []insertion
	for _, op := range operations {
		text := fmt.Sprintf(`<%[1]soperation><%[1]sname value="export"/><%[1]sdefinition value="%[2]s"/></%[1]soperation>`, prefix, op.definition)
		resource := r.byType[op.resource]
		switch {
		case op.resource == "" && !slices.Contains(r.definitions, op.definition):
			out = append(out, insertion{r.operationAt, text})
		case op.resource == "":
		case resource == nil:
			out = append(out, insertion{r.resourceAt, fmt.Sprintf(`<%[1]sresource><%[1]stype value="%[2]s"/>%[3]s</%[1]sresource>`, prefix, op.resource, text)})
		case !slices.Contains(resource.definitions, op.definition):
			out = append(out, insertion{resource.end, text})
		}
	}
	return out
}

// xmlReader walks a statement and notes where things may be added.
type xmlReader struct {
	dec    *xml.Decoder
	root   string
	prefix string // of the FHIR elements, with its colon
	path   []string
	rests  []*xmlRest
	// typ and definitions belong to the element resource that is open.
	typ         string
	definitions []string
}

func (x *xmlReader) read() error {
	for {
		at := x.dec.InputOffset()
		token, err := x.dec.RawToken()
		switch {
		case errors.Is(err, io.EOF) && x.root != "" && len(x.path) == 0:
			return nil
		case err != nil:
			return errors.Join(errStatement, err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			x.open(token, at)
		case xml.EndElement:
			if len(x.path) == 0 || x.path[len(x.path)-1] != token.Name.Local {
				return errStatement
			}
			x.close(at)
		}
	}
}

func (x *xmlReader) open(element xml.StartElement, at int64) {
	name := element.Name.Local
	if len(x.path) == 0 {
		x.root = name
		if element.Name.Space != "" {
			x.prefix = element.Name.Space + ":"
		}
	}
	x.path = append(x.path, name)
	value := ""
	for _, attribute := range element.Attr {
		if attribute.Name.Local == "value" {
			value = attribute.Value
		}
	}
	if len(x.path) == 2 && name == "rest" {
		x.rests = append(x.rests, &xmlRest{byType: map[string]*xmlResource{}})
		return
	}
	if len(x.path) < 3 || x.path[1] != "rest" {
		return
	}
	rest := x.rests[len(x.rests)-1]
	if len(x.path) == 3 {
		if slices.Contains([]string{"interaction", "searchParam", "operation", "compartment"}, name) && rest.resourceAt == 0 {
			rest.resourceAt = at
		}
		if name == "compartment" && rest.operationAt == 0 {
			rest.operationAt = at
		}
	}
	switch x.below() {
	case "mode":
		rest.mode = value
	case "operation/definition":
		rest.definitions = append(rest.definitions, withoutVersion(value))
	case "resource":
		x.typ, x.definitions = "", nil
	case "resource/type":
		x.typ = value
	case "resource/operation/definition":
		x.definitions = append(x.definitions, withoutVersion(value))
	}
}

// below is the path below rest.
func (x *xmlReader) below() string {
	path := ""
	for i, name := range x.path[2:] {
		if i > 0 {
			path += "/"
		}
		path += name
	}
	return path
}

func (x *xmlReader) close(at int64) {
	if len(x.path) >= 2 && x.path[1] == "rest" {
		rest := x.rests[len(x.rests)-1]
		switch {
		case len(x.path) == 2:
			if rest.resourceAt == 0 {
				rest.resourceAt = at
			}
			if rest.operationAt == 0 {
				rest.operationAt = at
			}
		case len(x.path) == 3 && x.path[2] == "resource":
			rest.byType[x.typ] = &xmlResource{end: at, definitions: x.definitions}
		}
	}
	x.path = x.path[:len(x.path)-1]
}
