package fhir

import (
	"embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// The tables are reduced from the core packages of HL7 by generate.
//
//go:embed elements/*.json
var elementTables embed.FS

// ElementTable holds the root elements of one FHIR release's resource types. It is safe for concurrent use and never
// changes.
type ElementTable struct {
	types map[string]typeElements
	// attachments are the JSON names under which an Attachment can stand, and nothing else that has a url.
	attachments []string
}

// typeElements are the root elements of a type.
type typeElements struct {
	// members are the JSON members by the name of their element: several for a choice, whose name is without its "[x]".
	members   map[string][]string
	mandatory []string
}

var elementReleases = map[string]func() (*ElementTable, error){
	"r4":  sync.OnceValues(func() (*ElementTable, error) { return loadElements("r4") }),
	"r4b": sync.OnceValues(func() (*ElementTable, error) { return loadElements("r4b") }),
	"r5":  sync.OnceValues(func() (*ElementTable, error) { return loadElements("r5") }),
}

// Elements returns the table for a CapabilityStatement.fhirVersion such as "4.0.1", of which major and minor count: R4, R4B
// or R5. It fails for every other release, STU3 among them.
func Elements(fhirVersion string) (*ElementTable, error) {
	if load := elementReleases[release(fhirVersion)]; load != nil {
		return load()
	}
	return nil, fmt.Errorf("elements: no table for FHIR version %q, only for R4, R4B and R5", fhirVersion)
}

func loadElements(release string) (*ElementTable, error) {
	data, err := elementTables.ReadFile("elements/" + release + ".json")
	if err != nil {
		return nil, fmt.Errorf("read table of elements: %w", err)
	}
	var read struct {
		Attachments []string
		Types       map[string]struct{ Elements, Mandatory []string }
	}
	if err := json.Unmarshal(data, &read); err != nil {
		return nil, fmt.Errorf("read table of elements %s: %w", release, err)
	}
	t := &ElementTable{types: make(map[string]typeElements, len(read.Types)), attachments: read.Attachments}
	for typ, list := range read.Types {
		members := make(map[string][]string, len(list.Elements))
		for _, element := range list.Elements {
			name, choices, isChoice := strings.Cut(element, "[x]|")
			if !isChoice {
				members[name] = []string{name}
				continue
			}
			for choice := range strings.SplitSeq(choices, "|") {
				members[name] = append(members[name], name+strings.ToUpper(choice[:1])+choice[1:])
			}
		}
		t.types[typ] = typeElements{members, list.Mandatory}
	}
	return t, nil
}

// Known tells whether resources of typ have a root element; an empty typ stands for any type. A choice is known by its name
// ("value", "value[x]") and by that of each of its members ("valueQuantity").
func (t *ElementTable) Known(typ, element string) bool {
	if typ != "" {
		return len(t.members(typ, element)) > 0
	}
	for typ := range t.types {
		if t.Known(typ, element) {
			return true
		}
	}
	return false
}

// Mandatory returns the root elements without which a resource of typ is not valid, in the order of the definition; a choice
// is without its "[x]". The caller must not change them.
func (t *ElementTable) Mandatory(typ string) []string { return t.types[typ].mandatory }

// members are the JSON members that an element stands for, nil for one that resources of typ do not have.
func (t *ElementTable) members(typ, element string) []string {
	all := t.types[typ].members
	if members := all[strings.TrimSuffix(element, "[x]")]; members != nil {
		return members
	}
	for _, members := range all {
		if len(members) > 1 && slices.Contains(members, element) {
			return []string{element}
		}
	}
	return nil
}

// kept returns the members that resources of typ keep where entries, "Type.element" or "element", are the elements that are
// asked for; nil where they keep all. An entry with a type speaks of that type alone, one without of every type, also of
// those that do not have the element. Of a type that is not in the table nobody knows what is mandatory: it keeps all.
func (t *ElementTable) kept(typ string, entries []string) map[string]bool {
	definition, known := t.types[typ]
	if !known {
		return nil
	}
	var kept map[string]bool
	keep := func(element string) {
		for _, member := range t.members(typ, element) {
			kept[member] = true
		}
	}
	for _, entry := range entries {
		element := entry
		if of, name, typed := strings.Cut(entry, "."); typed {
			if of != typ {
				continue
			}
			element = name
		}
		if kept == nil {
			kept = map[string]bool{"resourceType": true, "id": true, "meta": true}
			for _, mandatory := range definition.mandatory {
				keep(mandatory)
			}
		}
		keep(element)
	}
	return kept
}
