package fhirtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"sidecar/exporter/fhir"
)

// fhirVersion is the release that every personality speaks.
const fhirVersion = "4.0.1"

// searchParam is one reference parameter of a type.
type searchParam struct {
	name   string
	paths  [][]string
	target string
}

// accepts says whether the parameter finds a reference to the key.
func (p *searchParam) accepts(key string) bool {
	return p.target == "" || strings.HasPrefix(key, p.target+"/") || strings.Contains(key, "://") && strings.Contains(key, "/"+p.target+"/")
}

// paramTable holds the reference parameters by type.
type paramTable struct{ byType map[string][]searchParam }

// moreParams are reference parameters outside of the compartment table: the ones that exports and their tests ask for.
var moreParams = []struct{ typ, name, path, target string }{
	{"Contract", "patient", "subject", "Patient"},
	{"Device", "organization", "owner", ""},
	{"Device", "patient", "patient", "Patient"},
	{"Encounter", "service-provider", "serviceProvider", ""},
	{"GuidanceResponse", "patient", "subject", "Patient"},
	{"Patient", "general-practitioner", "generalPractitioner", ""},
	{"Patient", "link", "link.other", ""},
	{"Patient", "organization", "managingOrganization", ""},
	{"PractitionerRole", "organization", "organization", ""},
	{"PractitionerRole", "practitioner", "practitioner", ""},
	{"Provenance", "patient", "target", "Patient"},
	{"Provenance", "target", "target", ""},
	{"Task", "patient", "for", "Patient"},
	{"Task", "subject", "for", ""},
}

var loadParams = sync.OnceValues(func() (*paramTable, error) {
	compartment, err := fhir.PatientCompartment(fhirVersion)
	if err != nil {
		return nil, fmt.Errorf("read compartment table: %w", err)
	}
	t := &paramTable{byType: map[string][]searchParam{}}
	for _, typ := range compartment.Types() {
		for _, p := range compartment.Params(typ) {
			target := ""
			if p.Name == "patient" {
				target = "Patient"
			}
			t.add(typ, p.Name, target, p.Paths)
			if p.Name == "subject" {
				t.add(typ, "patient", "Patient", p.Paths)
			}
		}
	}
	for _, p := range moreParams {
		t.add(p.typ, p.name, p.target, []string{p.path})
	}
	return t, nil
})

// add enters a parameter unless the type has it already.
func (t *paramTable) add(typ, name, target string, paths []string) {
	if _, ok := t.find(typ, name); ok {
		return
	}
	param := searchParam{name: name, target: target}
	for _, path := range paths {
		param.paths = append(param.paths, append(strings.Split(path, "."), "reference"))
	}
	t.byType[typ] = append(t.byType[typ], param)
}

func (t *paramTable) find(typ, name string) (searchParam, bool) {
	i := slices.IndexFunc(t.byType[typ], func(p searchParam) bool { return p.name == name })
	if i < 0 {
		return searchParam{}, false
	}
	return t.byType[typ][i], true
}
