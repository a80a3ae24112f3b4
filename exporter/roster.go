package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// farFuture is behind every row.
var farFuture = time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)

// byPatient returns a slice that asks a type for one Patient after another, for a server that refuses to be searched
// without one. At System level that is not the whole type, so the slice is left as it is and becomes a hole.
func (r *run) byPatient(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	if r.job.Kickoff.Level == state.System || r.Strategy == StrategyCrawl {
		return []state.Slice{whole}, nil
	}
	if r.last(whole.Type) && len(whole.Filters) == 0 {
		if way, err := r.targetSearch(ctx); err != nil || way != "" {
			whole.Lists = []string{way}
			return []state.Slice{whole}, err
		}
	}
	var params []string
	if whole.Type == "Patient" {
		params = []string{"_id"}
	} else {
		for _, param := range r.compartment.Params(whole.Type) {
			params = append(params, param.Name)
		}
	}
	for _, param := range params {
		works, err := r.emptyForNobody(ctx, whole.Type, param)
		if err != nil {
			return nil, err
		}
		if !works { // rows that are members by this parameter alone could not be found
			return []state.Slice{whole}, nil
		}
	}
	members, err := r.members(ctx, whole.Newcomers)
	if err != nil {
		return nil, fmt.Errorf("the server wants a Patient in each search, and its Patients cannot be listed: %w", err)
	}
	if len(params) == 0 {
		return []state.Slice{whole}, nil
	}
	if len(members.patients) == 0 {
		return nil, nil
	}
	by := whole
	if by.Lists, by.ListSize = params, 1; !fitsFilters(&by) {
		return []state.Slice{whole}, nil
	}
	return []state.Slice{by}, nil
}

// emptyForNobody tells whether a search by the parameter is answered, and finds nothing for a Patient who does not exist.
func (r *run) emptyForNobody(ctx context.Context, typ, param string) (bool, error) {
	value := "Patient/" + fhir.UnknownID
	if param == "_id" {
		value = fhir.UnknownID
	}
	return r.findsNothing(ctx, fhir.Query{Type: typ, Count: 1}.With(fhir.QueryParam{Name: param, Value: value}))
}

// findsNothing tells whether a search is answered, and without a row.
func (r *run) findsNothing(ctx context.Context, q fhir.Query) (bool, error) {
	rows := 0
	err := r.pace.do(ctx, func() error {
		page, err := r.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		rows = 0
		return page.Each(func(row *fhir.Entry) error {
			if row.Mode != "outcome" && row.Type != "OperationOutcome" {
				rows++
			}
			return nil
		})
	})
	if err != nil {
		return false, notAnswered(err)
	}
	return rows == 0, nil
}

// members are the Patients whose rows are asked for by id: those of the Group, or all that the server has. They are listed
// once per job.
func (r *run) members(ctx context.Context, newcomers bool) (*cohort, error) {
	if newcomers {
		return r.cohort.onlyNewcomers(), nil
	}
	if r.cohort != nil {
		return r.cohort, nil
	}
	select {
	case r.listing <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-r.listing }()
	if r.roster != nil {
		return r.roster, nil
	}
	path := filepath.Join(r.dir, "patients")
	roster, err := readCohort(path)
	if errors.Is(err, fs.ErrNotExist) {
		if roster, err = r.listPatients(ctx); err == nil {
			err = local(writeCohort(path, roster))
		}
	}
	if err != nil {
		return nil, err
	}
	r.roster = roster
	return roster, nil
}

// listPatients reads the ids of all Patients, also of those that were changed after T: their other rows may be older.
func (r *run) listPatients(ctx context.Context) (_ *cohort, err error) {
	slice := state.Slice{Type: "Patient", Strategy: state.Paging, Counted: -1}
	parts := []state.Slice{slice}
	if r.profile.Bounds {
		slice.Strategy = state.Bisect
		if r.profile.Keyset {
			slice.Strategy = state.Keyset
		}
		old, young := slice, slice
		old.To, young.From, young.To = r.windowEnd(), r.windowEnd(), farFuture
		parts = []state.Slice{old, young}
	}
	files, err := openSpool(r.dir, &slice)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, files.remove()) }()
	everyone := &filter{typ: "Patient", until: farFuture, level: state.System}
	list := &cohort{}
	for _, part := range parts {
		part.IndexSize, part.SpoolSize, part.Reread = slice.IndexSize, slice.SpoolSize, true
		w := &walk{run: r, slice: &part, filter: everyone, spool: files, draft: true, boundary: map[string]struct{}{}}
		if err := errors.Join(w.loadWritten(), files.sync()); err != nil {
			return nil, err
		}
		read := w.readAll
		if part.To.Equal(farFuture) { // Patients come in while they are read: a count proves nothing
			read = w.readOnce
		}
		if err := read(ctx); err != nil {
			return nil, fmt.Errorf("list the Patients: %w", err)
		}
		slice.IndexSize, slice.SpoolSize = part.IndexSize, part.SpoolSize
	}
	if err := files.sync(); err != nil {
		return nil, err
	}
	err = eachWritten(r.dir, 0, slice.IndexSize, func(id, _ string) error {
		list.patients = append(list.patients, id)
		return nil
	})
	slices.Sort(list.patients)
	list.patients = slices.Compact(list.patients)
	return list, err
}
