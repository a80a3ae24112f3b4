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
	all         []*xmlResource
}

type xmlResource struct {
	resourceFacts

	marked      bool  // it has the extension that is added to others
	begin, end  int64 // behind its start tag, and before its end tag
	definitions []string
}

// behindInstantiates are the elements of a statement before which instantiates stands, in all releases of FHIR.
var behindInstantiates = []string{
	"imports", "software", "implementation", "fhirVersion", "acceptUnknown", "format", "patchFormat", "acceptLanguage", "implementationGuide",
	"profile", "rest", "messaging", "document",
}

// completeXML adds to a statement in XML.
func completeXML(statement []byte, additionsTo func(declared) additions) ([]byte, error) {
	reader := &xmlReader{dec: xml.NewDecoder(bytes.NewReader(statement))}
	reader.dec.CharsetReader = func(string, io.Reader) (io.Reader, error) { return nil, errStatement }
	if err := reader.read(); err != nil {
		return nil, err
	}
	if reader.root != "CapabilityStatement" {
		return statement, nil
	}
	for _, rest := range reader.rests {
		if rest.mode != "server" {
			continue
		}
		out := rest.insertions(reader.prefix, additionsTo(declaredBy(reader.release, rest.all)))
		if !knows(reader.instantiates, bulkData) {
			out = append(out, insertion{reader.instantiatesAt, fmt.Sprintf(`<%sinstantiates value="%s"/>`, reader.prefix, bulkData)})
		}
		return insert(statement, out), nil
	}
	return nil, fmt.Errorf("no rest of mode server: %w", errStatement)
}

func (r *xmlRest) insertions(prefix string, add additions) []insertion {
	var out []insertion
	for _, op := range add.operations {
		switch resource := lastOf(r.all, op.resource); {
		case op.resource == "":
			out = append(out, insertion{r.operationAt, add.xmlOffers(prefix, op.offers(r.definitions))})
		case resource != nil:
			out = append(out, insertion{resource.end, add.xmlOffers(prefix, op.offers(resource.definitions))})
		default:
			text := add.xmlOffers(prefix, op.offers(nil))
			out = append(out, insertion{r.resourceAt, fmt.Sprintf(`<%[1]sresource><%[1]stype value="%[2]s"/>%[3]s</%[1]sresource>`, prefix, op.resource, text)})
		}
	}
	for _, resource := range r.all {
		if resource.marked {
			continue
		}
		for _, canonical := range add.without[resource.typ] {
			text := fmt.Sprintf(`<%[1]sextension url="%[2]s"><%[1]s%[4]s value="%[3]s"/></%[1]sextension>`, prefix, notSupported, canonical, add.value())
			out = append(out, insertion{resource.begin, text})
		}
	}
	return out
}

func (a additions) xmlOffers(prefix string, offers []offer) string {
	text := ""
	for _, o := range offers {
		definition := fmt.Sprintf(`<%sdefinition value="%s"/>`, prefix, o.definition)
		if a.stu3 {
			definition = fmt.Sprintf(`<%[1]sdefinition><%[1]sreference value="%[2]s"/></%[1]sdefinition>`, prefix, o.definition)
		}
		text += fmt.Sprintf(`<%[1]soperation><%[1]sname value="%[2]s"/>%[3]s</%[1]soperation>`, prefix, o.name, definition)
	}
	return text
}

// xmlReader walks a statement and notes where things may be added.
type xmlReader struct {
	dec    *xml.Decoder
	root   string
	prefix string // of the FHIR elements, with its colon
	path   []string
	rests  []*xmlRest
	// resource is the element resource that is open.
	resource       *xmlResource
	release        string
	instantiates   []string
	instantiatesAt int64 // where a further instantiates may stand
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
	value, url := "", ""
	for _, attribute := range element.Attr {
		switch attribute.Name.Local {
		case "value":
			value = attribute.Value
		case "url":
			url = attribute.Value
		}
	}
	if len(x.path) == 2 {
		x.openTop(name, value, at)
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
	case "operation/definition", "operation/definition/reference":
		rest.definitions = append(rest.definitions, value)
	case "resource":
		x.resource = &xmlResource{begin: x.dec.InputOffset()}
		rest.all = append(rest.all, x.resource)
	case "resource/type":
		x.resource.typ = value
	case "resource/extension":
		x.resource.marked = x.resource.marked || url == notSupported
	case "resource/interaction/code":
		x.resource.searched = x.resource.searched || value == "search-type"
	case "resource/operation/definition":
		x.resource.definitions = append(x.resource.definitions, value)
	}
}

// openTop notes an element of the statement itself.
func (x *xmlReader) openTop(name, value string, at int64) {
	if x.instantiatesAt == 0 && slices.Contains(behindInstantiates, name) {
		x.instantiatesAt = at
	}
	switch name {
	case "rest":
		x.rests = append(x.rests, &xmlRest{})
	case "fhirVersion":
		x.release = value
	case "instantiates":
		x.instantiates = append(x.instantiates, value)
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
			x.resource.end = at
		}
	}
	x.path = x.path[:len(x.path)-1]
}
