package fhirtest

import (
	"fmt"
	"net/http"
	"slices"

	"sidecar/exporter/fhir"
)

// compartmentSearch answers `Patient/{id}/{Type}`: rows of the type that refer to the patient by a parameter of the
// compartment. A patient that is not there has none.
func (s *Server) compartmentSearch(w http.ResponseWriter, c *call, id, typ string) error {
	compartment, err := fhir.PatientCompartment(fhirVersion)
	if err != nil {
		return fmt.Errorf("search compartment: %w", err)
	}
	q, err := s.parseQuery(c, typ)
	if err != nil {
		return err
	}
	q.path = "Patient/" + id + "/" + typ
	switch {
	case compartment.Contains(typ):
		q.filters = append(q.filters, func(r *row) bool {
			return slices.ContainsFunc(compartment.Params(typ), func(p fhir.Param) bool {
				return slices.Contains(r.refs, ref{p.Name, "Patient/" + id})
			}) || typ == "Patient" && r.id == id
		})
	case s.p.Compartments == ForeignTypesAll:
	default:
		return refuse(http.StatusBadRequest, "the type is not in the compartment")
	}
	return s.answer(w, c, q)
}
