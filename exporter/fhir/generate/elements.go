package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// typeElements are the root elements of a type, in the order of its definition. A choice stands with the types that it
// has: "value[x]|Quantity|string".
type typeElements struct {
	Elements  []string `json:"elements"`
	Mandatory []string `json:"mandatory,omitempty"`
}

// reduceElements renders the table of the root elements.
func reduceElements(d *definitions) ([]byte, error) {
	types := map[string]any{}
	for _, s := range d.structures {
		if s.Kind != "resource" || s.Abstract {
			continue
		}
		var t typeElements
		for _, e := range s.Snapshot.Element {
			_, name, _ := strings.Cut(e.Path, ".")
			if name == "" || strings.Contains(name, ".") {
				continue
			}
			if e.Min > 0 {
				t.Mandatory = append(t.Mandatory, strings.TrimSuffix(name, "[x]"))
			}
			if strings.HasSuffix(name, "[x]") {
				for _, choice := range e.Type {
					name += "|" + choice.Code
				}
			}
			t.Elements = append(t.Elements, name)
		}
		types[s.Type] = t
	}
	attachments, err := d.attachments()
	if err != nil {
		return nil, err
	}
	list, err := json.Marshal(attachments)
	if err != nil {
		return nil, err
	}
	return d.render(fmt.Sprintf("  \"attachments\": %s,\n", list), types)
}

// attachments are the JSON names under which an Attachment can stand, in whatever resource or data type. It fails when an
// element has such a name and a url and is something else: then the name would not be enough to know an Attachment by.
func (d *definitions) attachments() ([]string, error) {
	var names []string
	hasURL := map[string]bool{}
	for _, s := range d.structures {
		for _, e := range s.Snapshot.Element {
			if parent, isURL := strings.CutSuffix(e.Path, ".url"); isURL {
				hasURL[parent] = true
			}
			for _, t := range e.Type {
				if name := jsonName(e.Path, t.Code); t.Code == "Attachment" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	for _, s := range d.structures {
		for _, e := range s.Snapshot.Element {
			for _, t := range e.Type {
				if slices.Contains(names, jsonName(e.Path, t.Code)) && t.Code != "Attachment" && (hasURL[e.Path] || hasURL[t.Code]) {
					return nil, fmt.Errorf("%s has a url and the name of an Attachment", e.Path)
				}
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// jsonName is the name of an element in JSON where it has a type.
func jsonName(path, typ string) string {
	name := path[strings.LastIndexByte(path, '.')+1:]
	if choice, ok := strings.CutSuffix(name, "[x]"); ok {
		return choice + strings.ToUpper(typ[:1]) + typ[1:]
	}
	return name
}
