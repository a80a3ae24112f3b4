package fhirtest

import (
	"bytes"
	"fmt"
	"slices"
)

// codes of the value set observation-value that a server tags its answers with.
const observationValue = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"

// onlyElements keeps the named members of a resource, and its type, id and meta, which gets the tag SUBSETTED. It fails
// when the resource's meta is not an object.
func onlyElements(body []byte, names []string) ([]byte, error) {
	tagged, err := tagMeta(body, `{"system":"`+observationValue+`","code":"SUBSETTED"}`)
	if err != nil {
		return nil, err
	}
	spans, err := members(tagged)
	if err != nil {
		return nil, fmt.Errorf("cut elements: %w", err)
	}
	var b bytes.Buffer
	for _, m := range spans {
		if m.name == "resourceType" || m.name == "id" || m.name == "meta" || slices.Contains(names, m.name) {
			b.WriteString("," + quote(m.name) + ":")
			b.Write(tagged[m.from:m.to])
		}
	}
	b.WriteString("}")
	cut := b.Bytes()
	cut[0] = '{'
	return cut, nil
}

// tagMeta adds a tag to the meta of a stored resource, which has one. It fails when meta or its tags have another form.
func tagMeta(body []byte, tag string) ([]byte, error) {
	spans, err := members(body)
	if err != nil {
		return nil, fmt.Errorf("tag resource: %w", err)
	}
	for _, m := range spans {
		if m.name != "meta" {
			continue
		}
		inner, err := members(body[m.from:m.to])
		if err != nil {
			return nil, fmt.Errorf("tag resource: %w", err)
		}
		add := edit{m.to - 1, m.to - 1, `,"tag":[` + tag + `]`}
		for _, t := range inner {
			if t.name == "tag" && body[m.from+t.from] == '[' {
				add = edit{m.from + t.from + 1, m.from + t.from + 1, tag + ","}
			}
		}
		return apply(body, []edit{add}), nil
	}
	return nil, fmt.Errorf("tag resource: no meta")
}
