package exporter

import (
	"context"
	"errors"
	"fmt"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// provenance is the type whose membership hangs on other resources: a Provenance belongs to an export of Patients or of a
// Group when any of its targets does (Bulk Data guide, parameter includeAssociatedData, for exports without it). So it is
// read when all others are.
const provenance = "Provenance"

// maxAskedTargets bounds the answers that are remembered of targets that were asked for.
const maxAskedTargets = 100_000

// last tells whether a type is read after the others.
func (r *run) last(typ string) bool { return typ == provenance && r.job.Kickoff.Level != state.System }

func (r *run) notLast(typ string) bool { return !r.last(typ) }

// readLast reads and repairs what hangs on the other types.
func (r *run) readLast(ctx context.Context) (err error) {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	pending := false
	for _, slice := range all {
		pending = pending || r.last(slice.Type) && slice.Strategy != state.History && slice.Strategy != state.Deletions
	}
	if pending {
		if r.targets, err = r.collectTargets(all); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.targets.close()) }()
	}
	if err := r.crawl(ctx, r.last); err != nil {
		return err
	}
	return r.repair(ctx, r.last)
}

// collectTargets gathers what the export holds.
func (r *run) collectTargets(all []state.Slice) (*targets, error) {
	t, err := newTargets(r.dir)
	if err != nil {
		return nil, err
	}
	err = r.eachExported(all, func(typ, id string) error { return t.add(typ + "/" + id) })
	if err == nil {
		err = t.build()
	}
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// eachExported names what the output holds of the compartment, but for what is read last.
func (r *run) eachExported(all []state.Slice, fn func(typ, id string) error) error {
	for _, slice := range all {
		if slice.Strategy == state.Deletions || slice.Strategy == state.Referenced || r.last(slice.Type) {
			continue
		}
		row := int64(0)
		err := eachWritten(r.dir, slice.Seq, slice.IndexSize, func(id, _ string) error {
			dropped := anyDropped(slice.Dropped, row, row+1)
			row++
			if dropped {
				return nil
			}
			return fn(slice.Type, id)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hasTarget tells whether a Provenance's target belongs to the export. What the output does not hold, since it was written
// before _since or its type was not asked for, is looked at itself.
func (r *run) hasTarget(ctx context.Context, typ, id string, newcomers bool) (bool, error) {
	if typ == provenance || !r.compartment.Contains(typ) || typ == "Group" && r.job.Kickoff.Level == state.Group {
		return false, nil
	}
	if r.targets != nil && !newcomers {
		if found, err := r.targets.has(typ + "/" + id); found || err != nil {
			return found, err
		}
	}
	if r.exportsAll(typ) {
		return false, nil
	}
	name := typ + "/" + id
	if newcomers {
		name += " of newcomers"
	}
	r.asking.Lock()
	belongs, known := r.asked[name]
	r.asking.Unlock()
	if known {
		return belongs, nil
	}
	row, later, err := r.readAsOf(ctx, typ, id)
	if err != nil {
		return false, fmt.Errorf("read a target of a Provenance: %w", err)
	}
	if later {
		err := r.remark(ctx, state.Issue{Severity: "warning", Code: "incomplete", Text: "targets of Provenance were changed after the " +
			"transaction time and the server gives no history: whether such a Provenance belongs to the export was decided by what they are now"})
		if err != nil {
			return false, err
		}
	}
	if row != nil {
		f := r.filter(typ)
		if newcomers {
			f.cohort = r.cohort.onlyNewcomers()
		}
		if belongs, err = f.member(row); err != nil {
			return false, fmt.Errorf("read references: %w", fhir.ErrMalformed)
		}
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if r.asked == nil || len(r.asked) >= maxAskedTargets {
		r.asked = map[string]bool{}
	}
	r.asked[name] = belongs
	return belongs, nil
}

// exportsAll tells whether the output holds every resource of the type that belongs to the export.
func (r *run) exportsAll(typ string) bool {
	if !r.job.Kickoff.Since.IsZero() {
		return false
	}
	for _, read := range r.job.Types {
		if read == typ {
			return true
		}
	}
	return false
}
