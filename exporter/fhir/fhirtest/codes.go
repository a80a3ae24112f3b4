package fhirtest

import (
	"encoding/json"
	"slices"
	"strings"
)

// codeParams are the parameters by type that find a code at the root of the resource, of the same name.
var codeParams = map[string]string{"Encounter": "status", "Immunization": "status", "Observation": "status", "Patient": "gender"}

// parseCode reads such a parameter with a list of codes, and says whether the type has it.
func (q *query) parseCode(name, list string) bool {
	if codeParams[q.typ] != name {
		return false
	}
	values := strings.Split(list, ",")
	q.filters = append(q.filters, func(r *row) bool {
		var resource map[string]any
		if json.Unmarshal(r.body, &resource) != nil { // what is stored is JSON
			return false
		}
		code, _ := resource[name].(string)
		return slices.Contains(values, code)
	})
	return true
}
