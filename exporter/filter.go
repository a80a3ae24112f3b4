package exporter

import (
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// filter decides on our side which rows belong to the output, whatever the server was asked.
type filter struct {
	typ         string
	since       time.Time // exclusive, zero for none
	until       time.Time // inclusive: the transaction time
	level       state.Level
	compartment *fhir.Compartment
	cohort      *cohort
	bases       []string
}

// keep tells whether the row is in the export. A row without lastUpdated is: the guide allows to include it always.
func (f *filter) keep(row *fhir.Entry) (bool, error) {
	if row.Type != f.typ || row.LastUpdated.After(f.until) {
		return false, nil
	}
	if !f.since.IsZero() && !row.LastUpdated.IsZero() && !row.LastUpdated.After(f.since) {
		return false, nil
	}
	return f.member(row)
}

// member tells whether the row is in the compartment of one of the export's Patients.
func (f *filter) member(row *fhir.Entry) (bool, error) {
	switch {
	case f.level == state.System:
		return true, nil
	case f.typ == "Patient": // by its own id: Patient.link would pull in others
		return f.level == state.Patient || f.cohort.hasPatient(row.ID), nil
	case f.typ == "Group" && f.level == state.Group: // by reference it would be other cohorts
		return f.cohort.hasGroup(row.ID), nil
	}
	found := false
	err := row.References(f.compartment, func(_, reference string) bool {
		id, local := fhir.LocalReference("Patient", reference, f.bases)
		found = local && (f.level == state.Patient || f.cohort.hasPatient(id))
		return !found
	})
	return found, err
}
