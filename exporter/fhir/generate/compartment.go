package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

type param struct {
	Name  string   `json:"name"`
	Paths []string `json:"paths"`
}

// reduceCompartment renders the table of the Patient compartment.
func reduceCompartment(d *definitions) ([]byte, error) {
	types := map[string]any{}
	for _, resource := range d.compartment.Resource {
		var params []param
		for _, name := range resource.Param {
			if name == "{def}" { // R5's mark for the focus of the compartment, no search parameter
				continue
			}
			paths, err := d.paths(resource.Code, name)
			if err != nil {
				return nil, fmt.Errorf("%s by %s: %w", resource.Code, name, err)
			}
			params = append(params, param{name, paths})
		}
		if params != nil {
			types[resource.Code] = params
		}
	}
	return d.render("", types)
}

// paths gives the JSON paths of a reference parameter of typ. It fails if there is not exactly one such parameter.
func (d *definitions) paths(typ, name string) ([]string, error) {
	var found []searchParameter
	for _, p := range d.parameters {
		if p.Code == name && p.Type == "reference" && slices.Contains(p.Base, typ) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d search parameters, want 1", len(found))
	}
	var paths []string
	for part := range strings.SplitSeq(found[0].Expression, "|") {
		p, ok, err := d.jsonPath(typ, strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if ok && !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	if len(paths) == 0 {
		return nil, errors.New("no path")
	}
	return paths, nil
}

// jsonPath turns one alternative of a FHIRPath expression into a path of JSON members; ok is false where it belongs to
// another type or can yield no Reference.
func (d *definitions) jsonPath(typ, expression string) (p string, ok bool, err error) {
	if inner, bracketed := strings.CutPrefix(expression, "("); bracketed {
		expression = strings.TrimSuffix(inner, ")")
	}
	p, ok = strings.CutPrefix(expression, typ+".")
	if !ok || strings.HasSuffix(p, ".ofType(canonical)") {
		return "", false, nil
	}
	p = strings.TrimSuffix(p, ".where(resolve() is Patient)")
	choice := false
	for _, suffix := range []string{" as Reference", ".as(Reference)", ".ofType(Reference)"} {
		if rest, cut := strings.CutSuffix(p, suffix); cut {
			p, choice = rest, true
		}
	}
	if strings.ContainsAny(p, " ()") {
		return "", false, fmt.Errorf("expression %q is no plain path", expression)
	}
	element, want := typ+"."+p, "Reference"
	if choice {
		element += "[x]"
		p += "Reference"
	} else if rest, cut := strings.CutSuffix(element, ".reference"); cut {
		element, want = rest, "CodeableReference"
	}
	if !slices.Contains(d.elements[typ][element], want) {
		return "", false, fmt.Errorf("%s is no %s", element, want)
	}
	return p, true, nil
}
