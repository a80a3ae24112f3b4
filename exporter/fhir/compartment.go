package fhir

import (
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// The tables are reduced from the core packages of HL7 by generate; everything that is not in the official
// definitions is added in this file.
//
//go:embed compartment/*.json
var compartmentTables embed.FS

// Compartment is the Patient compartment of one FHIR release: which types belong to it, and the references by which a
// resource of such a type is in the compartment of a patient. It is safe for concurrent use and never changes.
//
// A resource may be in the compartments of several patients: a mother who asserts her child's allergy is one.
type Compartment struct {
	params map[string][]Param
	tries  map[string]*pathNode
	types  []string
}

// Param is one search parameter by which a type belongs to the compartment.
type Param struct {
	// Name is the parameter's name in a search: "policy-holder".
	Name string `json:"name"`
	// Paths lead to the parameter's Reference elements: JSON members joined by dots, arrays implied, as in
	// "participant.actor". A condition that the reference be a Patient is left to the caller, see [LocalReference].
	Paths []string `json:"paths"`
}

var compartmentReleases = map[string]func() (*Compartment, error){
	"r4":  sync.OnceValues(func() (*Compartment, error) { return loadCompartment("r4", true) }),
	"r4b": sync.OnceValues(func() (*Compartment, error) { return loadCompartment("r4b", true) }),
	"r5":  sync.OnceValues(func() (*Compartment, error) { return loadCompartment("r5", false) }),
}

// release names the tables for a FHIR version by its major and minor, "" where there are none. 4.1 was the ballot of R4B;
// 4.2 and 4.4 to 4.6 were drafts of R5 whose definitions fit neither release.
func release(fhirVersion string) string {
	parts := strings.SplitN(fhirVersion, ".", 3)
	if len(parts) < 2 {
		return ""
	}
	return map[string]string{"4.0": "r4", "4.1": "r4b", "4.3": "r4b", "5.0": "r5"}[parts[0]+"."+parts[1]]
}

// PatientCompartment returns the Patient compartment for a CapabilityStatement.fhirVersion such as "4.0.1", of which
// major and minor count: R4, R4B or R5. It fails for every other release, STU3 among them.
func PatientCompartment(fhirVersion string) (*Compartment, error) {
	if load := compartmentReleases[release(fhirVersion)]; load != nil {
		return load()
	}
	return nil, fmt.Errorf("patient compartment: no table for FHIR version %q, only for R4, R4B and R5", fhirVersion)
}

// loadCompartment reads an embedded table. devicePatient adds Device by its patient: it is outside of the official
// compartment, yet no implant of a patient should be missing from an export, and HAPI adds it likewise up to R4B. R5
// took the element away (DeviceAssociation has it), so there is nothing to add.
func loadCompartment(release string, devicePatient bool) (*Compartment, error) {
	data, err := compartmentTables.ReadFile("compartment/" + release + ".json")
	if err != nil {
		return nil, fmt.Errorf("read compartment table: %w", err)
	}
	var table struct {
		Types map[string][]Param `json:"types"`
	}
	if err := json.Unmarshal(data, &table); err != nil {
		return nil, fmt.Errorf("read compartment table %s: %w", release, err)
	}
	if devicePatient {
		table.Types["Device"] = []Param{{Name: "patient", Paths: []string{"patient"}}}
	}
	return newCompartment(table.Types), nil
}

func newCompartment(params map[string][]Param) *Compartment {
	c := &Compartment{params: params, tries: make(map[string]*pathNode, len(params))}
	for typ, list := range params {
		root := &pathNode{}
		for _, p := range list {
			for _, path := range p.Paths {
				root.add(path, p.Name)
			}
		}
		c.tries[typ] = root
	}
	c.types = slices.Sorted(maps.Keys(params))
	return c
}

// Types returns the sorted types of the compartment, Patient among them.
func (c *Compartment) Types() []string { return slices.Clone(c.types) }

// Contains tells whether resources of typ can be in the compartment.
func (c *Compartment) Contains(typ string) bool { return c.params[typ] != nil }

// Params returns the parameters by which typ belongs to the compartment, in the order of the definition, and nil for a
// type outside. The caller must not change them.
//
// Patient has only link, which leads to other patients: that a Patient is in its own compartment is for the caller to
// add, as R4's definition leaves it out and R5's says it with "{def}", which is no search parameter.
func (c *Compartment) Params(typ string) []Param { return c.params[typ] }

// WithTask returns the compartment with Task in it by its patient, for an export that asks for Task by name. In R5 Task
// belongs to the official compartment, so that c itself is returned.
func (c *Compartment) WithTask() *Compartment {
	if c.Contains("Task") {
		return c
	}
	params := maps.Clone(c.params)
	params["Task"] = []Param{{Name: "patient", Paths: []string{"for"}}}
	return newCompartment(params)
}

// LocalReference returns the id of the local resource of type typ that a literal reference names: "Patient/x",
// "Patient/x/_history/n", or the same below one of bases, the addresses under which the server is known. ok is false for
// everything else: urn:, "#contained", another type, an absolute URL below another base, and a fragment or a query behind
// the id, which name no resource of the server. Ids are opaque.
func LocalReference(typ, reference string, bases []string) (id string, ok bool) {
	if rest, local := strings.CutPrefix(reference, typ+"/"); local {
		return localID(rest)
	}
	for _, base := range bases {
		base = strings.TrimRight(base, "/")
		if base == "" {
			continue
		}
		rest, below := strings.CutPrefix(reference, base)
		if !below {
			continue
		}
		if rest, below = strings.CutPrefix(rest, "/"+typ+"/"); below {
			return localID(rest)
		}
	}
	return "", false
}

// LocalTarget returns type and id of the local resource that a literal reference names, as LocalReference does for one
// type.
func LocalTarget(reference string, bases []string) (typ, id string, ok bool) {
	rest := reference
	for _, base := range bases {
		base = strings.TrimRight(base, "/")
		if below, found := strings.CutPrefix(reference, base+"/"); found && base != "" {
			rest = below
			break
		}
	}
	typ, _, ok = strings.Cut(rest, "/")
	if !ok || typ == "" || typ[0] < 'A' || typ[0] > 'Z' || strings.Contains(typ, ":") {
		return "", "", false
	}
	id, ok = LocalReference(typ, reference, bases)
	return typ, id, ok
}

func localID(rest string) (id string, ok bool) {
	id, history, versioned := strings.Cut(rest, "/")
	if id == "" || strings.ContainsAny(rest, "#?") {
		return "", false
	}
	if versioned {
		version, isHistory := strings.CutPrefix(history, "_history/")
		if !isHistory || version == "" || strings.Contains(version, "/") {
			return "", false
		}
	}
	return id, true
}

// pathNode is one member name in the merged paths of a type. The last node of a path is the member "reference" of the
// Reference element and carries the parameters that end there.
type pathNode struct {
	name     string
	params   []string
	children []*pathNode
	// end tells that a string here is what is looked for.
	end bool
}

func (n *pathNode) add(path, param string) {
	for name := range strings.SplitSeq(path+".reference", ".") {
		next := n.child([]byte(name))
		if next == nil {
			next = &pathNode{name: name}
			n.children = append(n.children, next)
		}
		n = next
	}
	n.params, n.end = append(n.params, param), true
}

// child is a plain loop: no type has more than four members on its paths at one level.
func (n *pathNode) child(name []byte) *pathNode {
	for _, c := range n.children {
		if c.name == string(name) {
			return c
		}
	}
	return nil
}
