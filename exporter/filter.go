package exporter

import (
	"context"
	"errors"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// filter decides on our side which rows belong to the output, whatever the server was asked.
type filter struct {
	typ         string
	since       time.Time // exclusive, zero for none
	until       time.Time // inclusive: the transaction time
	before      time.Time // exclusive: _until, zero for none
	level       state.Level
	compartment *fhir.Compartment
	cohort      *cohort
	bases       []string
	// hasTarget tells of a Provenance's target whether it belongs to the export; nil for other types.
	hasTarget func(typ, id string, newcomers bool) (bool, error)
	// exported tells that a Provenance belongs to the export by what the output holds alone: hasTarget decides, of Patients too.
	exported bool
	// newcomers tells that cohort is of those who have come since _since.
	newcomers bool
	// all passes every resource that was there at T, for what is referred to.
	all bool
}

// keep tells whether the row is in the export. A row without lastUpdated is: the guide allows to include it always.
func (f *filter) keep(row *fhir.Entry) (bool, error) {
	if row.Type != f.typ || row.LastUpdated.After(f.until) {
		return false, nil
	}
	if !f.all && !f.before.IsZero() && !row.LastUpdated.IsZero() && !row.LastUpdated.Before(f.before) {
		return false, nil
	}
	if !f.all && !f.since.IsZero() && !row.LastUpdated.IsZero() && !row.LastUpdated.After(f.since) {
		if f.cohort == nil || len(f.cohort.newcomers) == 0 {
			return false, nil
		}
		older := *f
		older.cohort, older.newcomers = f.cohort.onlyNewcomers(), true
		return older.member(row)
	}
	return f.member(row)
}

// stayed is the filter by those Patients alone who belonged to the export at _since already.
func (f *filter) stayed() *filter {
	if f.cohort == nil || len(f.cohort.newcomers) == 0 {
		return f
	}
	older := *f
	older.cohort = f.cohort.withoutNewcomers()
	return &older
}

// member tells whether the row is in the compartment of one of the export's Patients.
func (f *filter) member(row *fhir.Entry) (bool, error) {
	switch {
	case f.exported:
		return f.anyTarget(row)
	case f.level == state.System || f.all:
		return true, nil
	case f.typ == "Patient": // by its own id: Patient.link would pull in others
		return f.hasPatient(row.ID), nil
	case f.typ == "Group" && f.level == state.Group: // by reference it would be other cohorts
		return f.cohort.hasGroup(row.ID), nil
	}
	if f.hasTarget != nil {
		return f.anyTarget(row)
	}
	found := false
	err := row.References(f.compartment, func(_, reference string) bool {
		id, local := fhir.LocalReference("Patient", reference, f.bases)
		found = local && f.hasPatient(id)
		return !found
	})
	return found, err
}

// hasPatient tells whether a Patient belongs to the export: each one does where no Group and no parameter patient narrows it.
func (f *filter) hasPatient(id string) bool { return f.cohort == nil || f.cohort.hasPatient(id) }

// anyTarget tells whether a target of a Provenance is a Patient of the export, or a resource that belongs to it.
func (f *filter) anyTarget(row *fhir.Entry) (found bool, err error) {
	var failed error
	err = row.References(f.compartment, func(_, reference string) bool {
		typ, id, local := fhir.LocalTarget(reference, f.bases)
		switch {
		case !local:
		case typ == "Patient" && !f.exported:
			found = f.hasPatient(id)
		default:
			found, failed = f.hasTarget(typ, id, f.newcomers)
		}
		return !found && failed == nil
	})
	return found, errors.Join(err, failed)
}

// filter returns the filter for the rows of a type.
func (r *run) filter(typ string) *filter {
	return &filter{
		typ:         typ,
		since:       r.job.Kickoff.Since,
		until:       r.job.TransactionTime,
		before:      r.job.Kickoff.Until,
		level:       r.job.Kickoff.Level,
		compartment: r.compartment,
		cohort:      r.cohort,
		bases:       append(r.Client.Bases(), r.job.Kickoff.Base),
	}
}

// filterIn is filter for a type whose membership may have to be asked for in ctx.
func (r *run) filterIn(ctx context.Context, typ string) *filter {
	if r.associates(typ) {
		return r.filterByOutput(typ)
	}
	return r.filterByCompartment(ctx, typ)
}

// filterByCompartment is filterIn by the compartments alone, whatever includeAssociatedData says.
func (r *run) filterByCompartment(ctx context.Context, typ string) *filter {
	f := r.filter(typ)
	if r.last(typ) && f.level != state.System {
		f.hasTarget = func(typ, id string, newcomers bool) (bool, error) {
			return r.hasTarget(inside(ctx), typ, id, newcomers)
		}
	}
	return f
}
