package exporter

import (
	"context"
	"fmt"
	"slices"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// withoutHistory is the repair on a server without history of the type. A search for what is newer than T finds the
// rows that were changed before they were read, as they are now; what was deleted only shows as a number.
func (t *typeRepair) withoutHistory(ctx context.Context, w *walk) error {
	if len(t.crawled) == 0 {
		return nil
	}
	if t.profile.TypeHistory { // the plan says it where no type has one
		if err := t.remark(ctx, t.noHistory(t.typ)); err != nil {
			return err
		}
	}
	if !t.profile.Keyset && t.WithoutHistory == Strict {
		return fmt.Errorf("the server has no history and cannot be asked whether %s resources changed while the export ran: %w", t.typ, errIncomplete)
	}
	if !t.profile.Keyset {
		return nil
	}
	changed, err := t.changedSince(ctx)
	switch status := fhir.StatusOf(err); {
	case (status == 400 || status == 403) && t.WithoutHistory != Strict:
		return nil // this type cannot be asked so; that what changed may be missing is said already
	case status == 400 || status == 403:
		return fmt.Errorf("%w: %w", errIncomplete, err)
	case err != nil:
		return err
	}
	deleted := int64(0)
	if t.profile.Counts && !t.holed() { // else it is not known why rows are missing
		deleted = t.planned() - t.met() - int64(len(changed))
	}
	if t.WithoutHistory == Strict && (len(changed) > 0 || deleted > 0) {
		return fmt.Errorf("resources changed while the export ran and the server has no history to take them from: %w", errIncomplete)
	}
	text := ""
	switch {
	case len(changed) > 0 && t.WithoutHistory == IncludeCurrent && !t.asOfAlone(t.typ):
		if err := t.addCurrent(ctx, w, changed); err != nil {
			return err
		}
		text = fmt.Sprintf("%d %s resources that were changed after the transaction time are included as they are now", w.slice.Written, t.typ)
	case len(changed) > 0:
		text = fmt.Sprintf("%d %s resources that were changed after the transaction time are missing", len(changed), t.typ)
	case deleted > 0:
	default:
		return nil
	}
	if deleted > 0 {
		if text != "" {
			text += ", and "
		}
		text += fmt.Sprintf("%d %s resources that were deleted after the transaction time are missing", deleted, t.typ)
	}
	return t.remark(ctx, state.Issue{Severity: "warning", Code: "incomplete", Text: text + ": the server gives no history"})
}

// planned is how many rows were counted before the crawl, met how many were met in it.
func (t *typeRepair) planned() (n int64) {
	for _, slice := range t.crawled {
		n += max(0, slice.Counted)
	}
	return n
}

func (t *typeRepair) holed() bool {
	return slices.ContainsFunc(t.crawled, func(s *state.Slice) bool { return len(s.Holes) > 0 })
}

func (t *typeRepair) met() (n int64) {
	for _, slice := range t.crawled {
		n += slice.Met
	}
	return n
}

// changedSince returns the ids that were changed after T and that the crawl did not meet. A first version was not there
// at T.
func (t *typeRepair) changedSince(ctx context.Context) (map[string]struct{}, error) {
	changed := map[string]struct{}{}
	err := t.tail(ctx, func(row *fhir.Entry) error {
		if row.LastUpdated.After(t.job.TransactionTime) && row.Version != "1" {
			changed[row.ID] = struct{}{}
		}
		return nil
	})
	if err != nil || len(changed) == 0 {
		return nil, err
	}
	ids := make(map[uint64]string, len(changed))
	for id := range changed {
		ids[metKey(id)] = id
	}
	for _, part := range t.crawled {
		err := eachMet(t.dir, part.Seq, part.MetSize, func(key uint64) {
			if id, met := ids[key]; met {
				delete(changed, id)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// addCurrent writes the rows as they are now.
func (t *typeRepair) addCurrent(ctx context.Context, w *walk, changed map[string]struct{}) error {
	w.filter.until = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	return t.tail(ctx, func(row *fhir.Entry) error {
		if _, wanted := changed[row.ID]; !wanted {
			return nil
		}
		delete(changed, row.ID)
		return w.emit(row)
	})
}

// tail reads what is newer than T by first pages, and by links where an instant has more rows than a page; a row may come
// twice. A page may hold fewer rows than were asked for though it is not the last one.
func (t *typeRepair) tail(ctx context.Context, fn func(*fhir.Entry) error) error {
	q := fhir.Query{Type: t.typ, From: t.job.TransactionTime, Sort: "_lastUpdated", Count: t.pageSize()}
	seen := newIDSet()
	link, followed := "", map[string]bool{}
	for {
		rows, fresh, last, next := 0, 0, q.From, ""
		err := t.pace.do(ctx, func() error {
			rows, fresh = 0, 0
			page, err := t.tailPage(ctx, q, link)
			if err != nil {
				return err
			}
			err = eachRow(page, func(row *fhir.Entry) error {
				if row.Type != t.typ || row.ID == "" || row.LastUpdated.Before(t.job.TransactionTime) {
					return nil
				}
				rows++
				if seen.add(row.ID + "/" + row.Version) {
					fresh++
				}
				last = row.LastUpdated
				return fn(row)
			})
			if err != nil {
				return err
			}
			next, err = page.Next()
			return err
		})
		switch {
		case err != nil:
			return fmt.Errorf("read what changed after the transaction time: %w", err)
		case next == "" && (rows < q.Count || fresh == 0 && last.Equal(q.From)):
			return nil
		case last.After(q.From):
			q.From, link = last, ""
		case next == "" || followed[next]:
			return fmt.Errorf("more changes in one instant than a page holds: %w", errIncomplete)
		default:
			link, followed[next] = next, true
		}
	}
}

func (t *typeRepair) tailPage(ctx context.Context, q fhir.Query, link string) (*fhir.Page, error) {
	if link != "" {
		return t.Client.Follow(ctx, t.typ, "searchset", link)
	}
	return t.Client.Search(ctx, q)
}
