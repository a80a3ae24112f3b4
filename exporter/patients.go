package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sidecar/exporter/fhir"
)

var (
	// errUnknownPatient and errNotMember end a job whose parameter patient names somebody whom the export cannot hold. They do
	// not say whom.
	errUnknownPatient = errors.New("the parameter patient names a Patient whom the FHIR server does not have")
	errNotMember      = errors.New("the parameter patient names a Patient who is no member of the Group")
)

// narrowMembers leaves of the Group's members those that the parameter patient names. It fails when one of them is none.
func (r *run) narrowMembers() error {
	named := r.job.Kickoff.Patients
	if len(named) == 0 {
		return nil
	}
	for _, id := range named {
		if !r.cohort.hasPatient(id) {
			return errNotMember
		}
	}
	r.cohort.patients = slices.Clone(named)
	return nil
}

// loadPatients makes the cohort of the Patients that are named at Patient level. It fails when the server does not have one.
func (r *run) loadPatients(ctx context.Context) error {
	r.cohort = &cohort{patients: slices.Clone(r.job.Kickoff.Patients)}
	open := r.cohort.patients
	if r.profile.IDLists {
		open = nil
		for part := range slices.Chunk(r.cohort.patients, min(r.cohort.listSize(), r.pageSize())) {
			missing, err := r.notListed(ctx, part)
			if err != nil {
				return fmt.Errorf("look the Patients up: %w", err)
			}
			open = append(open, missing...)
		}
	}
	for _, id := range open {
		known, err := r.knownPatient(ctx, id)
		if err != nil {
			return fmt.Errorf("look a Patient up: %w", err)
		}
		if !known {
			return errUnknownPatient
		}
	}
	return nil
}

// notListed asks for some Patients by one search, and returns those that it does not find as of T.
func (r *run) notListed(ctx context.Context, ids []string) (missing []string, err error) {
	found := map[string]bool{}
	q := fhir.Query{Type: "Patient", Count: len(ids), IDsOnly: true}.With(fhir.QueryParam{Name: "_id", Value: strings.Join(ids, ",")})
	err = r.pace.do(ctx, func() error {
		page, err := r.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		return eachRow(page, func(row *fhir.Entry) error {
			found[row.ID] = found[row.ID] || row.Type == "Patient" && !row.LastUpdated.After(r.job.TransactionTime)
			return nil
		})
	})
	if notAnswered(err) != nil {
		return nil, err
	}
	for _, id := range ids {
		if !found[id] {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// knownPatient tells whether the server had a Patient at T, or at _since: who was deleted since then has deletions to report.
func (r *run) knownPatient(ctx context.Context, id string) (bool, error) {
	row, _, err := r.readAsOf(ctx, "Patient", id)
	if err != nil || row != nil {
		return row != nil, err
	}
	if r.job.Kickoff.Since.IsZero() || !r.profile.InstanceHistory {
		return false, nil
	}
	var then change
	err = r.asOf(ctx, "Patient", id, r.job.Kickoff.Since, &then, nil)
	return then.known && !then.deleted, err
}
