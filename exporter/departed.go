package exporter

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// maxStrangers bounds how many resources of a type are looked at for whether they left the export: each may cost a request,
// and it is only counted what left.
const maxStrangers = 10_000

// strangers are the resources of one type that were changed since _since and had a version then that does not belong to the
// export. Those that belonged to it at _since have left it by an edit: a client still holds them, and no deletion may name
// them, since they exist.
type strangers struct {
	filter *filter
	ids    map[string]string // their versions
	over   bool              // there are more than maxStrangers
}

// canDepart tells whether resources of a type can leave the export by an edit. A Patient, or a Group at Group level, leaves it
// with a membership.
func (r *run) canDepart(typ string) bool {
	kickoff := &r.job.Kickoff
	return !kickoff.Since.IsZero() && kickoff.Level != state.System && typ != "Patient" && (typ != "Group" || kickoff.Level != state.Group)
}

// newStrangers returns nil where nothing can leave, for Provenance, whose membership hangs on the versions of others, and where
// the version as of T does not stand in the output although it is a member's.
func (r *run) newStrangers(typ string) *strangers {
	if !r.canDepart(typ) || r.last(typ) || r.asOfAlone(typ) {
		return nil
	}
	return &strangers{filter: r.filter(typ), ids: map[string]string{}}
}

// see takes up a version of the history. It may be called on nil.
func (s *strangers) see(row *fhir.Entry) error {
	if s == nil || s.over || row.Deleted || row.Size() == 0 || row.LastUpdated.After(s.filter.until) {
		return nil
	}
	version, known := s.ids[row.ID]
	switch {
	case row.LastUpdated.After(s.filter.since) && !known:
	case known && !row.LastUpdated.After(s.filter.since) && newer(row.Version, row.LastUpdated, version, s.filter.since):
		delete(s.ids, row.ID) // a late commit: what stands at T is what counts as of _since
		return nil
	default:
		return nil
	}
	belongs, err := s.filter.member(row)
	if err != nil || belongs {
		return err
	}
	s.ids[row.ID] = row.Version
	if len(s.ids) > maxStrangers {
		s.ids, s.over = nil, true
	}
	return nil
}

// has tells whether the id is one of them. It may be called on nil.
func (s *strangers) has(id string) bool {
	if s == nil {
		return false
	}
	_, found := s.ids[id]
	return found
}

// none tells that there are none. It may be called on nil.
func (s *strangers) none() bool { return s == nil || len(s.ids) == 0 }

// drop takes out what does not count after all. It may be called on nil.
func (s *strangers) drop(id string) {
	if s != nil {
		delete(s.ids, id)
	}
}

// departed counts those of the strangers, which neither stand in the output nor are deleted, that belonged to the export at
// _since; -1 where that cannot be known.
func (t *typeRepair) departed(ctx context.Context) (int64, error) {
	s := t.changes.strangers
	switch {
	case !t.canDepart(t.typ):
		return 0, nil
	case s == nil:
		return -1, nil
	case s.over:
		return -1, t.remark(ctx, state.Issue{
			Severity: "information", Code: "informational",
			Text: fmt.Sprintf("more than %d %s resources outside of this export were changed since _since; it was not counted how many have left it", maxStrangers, t.typ),
		})
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(t.Workers)
	left := make(chan struct{}, len(s.ids))
	var unknown atomic.Bool
	for id := range s.ids {
		if unknown.Load() {
			break
		}
		group.Go(func() error {
			return guarded(func() error {
				belonged, err := t.belonged(groupCtx, s.filter, id)
				if _, refused := holeReason(err); refused && groupCtx.Err() == nil {
					unknown.Store(true)
					return nil
				}
				if belonged {
					left <- struct{}{}
				}
				return err
			})
		})
	}
	err := group.Wait()
	if unknown.Load() && err == nil {
		return -1, t.remark(ctx, state.Issue{
			Severity: "information", Code: "informational",
			Text: "the server does not give the history of some " + t.typ + " resources; it was not counted how many have left this export since _since",
		})
	}
	t.Metrics.departed.WithLabelValues(t.typ).Add(float64(len(left)))
	return int64(len(left)), err
}

// belonged tells whether a resource belonged to the export at _since, by one of its Patients who still does.
func (t *typeRepair) belonged(ctx context.Context, f *filter, id string) (belonged bool, err error) {
	var then change
	err = t.asOf(ctx, t.typ, id, f.since, &then, func(row *fhir.Entry) (err error) {
		belonged, err = f.stayed().member(row)
		return err
	})
	return belonged && then.known && !then.deleted, err
}
