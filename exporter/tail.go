package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// tailTries is how often it is read what has changed, until two readings agree.
const tailTries = 5

// withoutHistory is the repair of a type that has no history of its own. A search for what is newer than shortly before T
// finds the rows that were changed before they were read, and those that showed late. What they were as of T the resources'
// own histories tell, where there are any; else without_history says what becomes of them. What was deleted only shows as a
// number.
func (t *typeRepair) withoutHistory(ctx context.Context, w *walk, gone *deletions) error {
	if t.profile.TypeHistory && len(t.crawled) > 0 { // the plan says it where no type has one
		if err := t.remark(ctx, t.noHistory(t.typ)); err != nil {
			return err
		}
	}
	if !t.profile.Keyset && t.WithoutHistory == Strict && len(t.crawled) > 0 {
		return fmt.Errorf("the server has no history and cannot be asked whether %s resources changed while the export ran: %w", t.typ, errIncomplete)
	}
	if !t.profile.Keyset {
		return nil
	}
	err := t.searchChanges(ctx)
	var response *fhir.ResponseError
	switch status := fhir.StatusOf(err); {
	case errors.As(err, &response) && response.NotOffered() && len(t.crawled) == 0:
		return nil // the plan says it
	case (status == 400 || status == 403) && (t.WithoutHistory != Strict || len(t.crawled) == 0):
		return nil // this type cannot be asked so; that what changed may be missing is said already
	case status == 400 || status == 403:
		return fmt.Errorf("%w: %w", errIncomplete, err)
	case err != nil:
		return t.missChanges(ctx, w, err)
	}
	if err := t.reconcile(ctx, w, gone); err != nil {
		return err
	}
	return t.sayMissing(ctx, w)
}

// missChanges makes a hole of a search that fails, unless that is not confined to the type. A history that fails is one already.
func (t *typeRepair) missChanges(ctx context.Context, w *walk, err error) error {
	reason, confined := holeReason(err)
	switch {
	case !confined || ctx.Err() != nil:
		return err
	case t.WithoutHistory == Strict:
		return fmt.Errorf("%w: %w", errIncomplete, err)
	case len(w.slice.Holes) == 0:
		w.slice.Holes = append(w.slice.Holes, state.Hole{Type: t.typ, Rows: -1, Reason: reason, History: true})
	}
	t.Log.ErrorContext(ctx, "what changed while the export ran is missing", "job", t.job.ID, "type", t.typ, "error", err)
	return nil
}

// searchChanges fills the log from a search. It begins when what was written up to the end of the reading can be expected to
// show: a row that was changed just before it was read may else be found neither where it was nor where it is.
func (t *typeRepair) searchChanges(ctx context.Context) error {
	if err := sleep(ctx, time.Until(t.crawledAt.Add(t.settleTime()))); err != nil {
		return err
	}
	err := t.searchFrom(ctx, t.job.TransactionTime.Add(-t.repairSpan()))
	if poisoned(err) { // by a row before T it may be, which is a hole of the reading: what showed late is not known then
		err = t.searchFrom(ctx, t.job.TransactionTime)
	}
	return err
}

// laterThan is the search for what is not older than a moment, oldest first.
func (t *typeRepair) laterThan(from time.Time) fhir.Query {
	return fhir.Query{Type: t.typ, From: from, Sort: "_lastUpdated", Count: t.pageSize()}
}

// searchFrom reads until two readings agree: a row that a late commit moves back in time while several pages are read may be
// found neither where it was nor where it is. One page is of one moment.
func (t *typeRepair) searchFrom(ctx context.Context, from time.Time) error {
	if err := t.log.close(); err != nil {
		return err
	}
	t.log = t.newChangeLog(t.typ, "changes")
	t.log.searched, t.log.strangers = true, nil // who has left since _since is not known: the search is not of that time
	seen := newIDSet()
	var end time.Time // of the readings before
	for range tailTries {
		late, last := false, end
		pages, err := t.tail(ctx, t.laterThan(from), func(row *fhir.Entry) error {
			if seen.add(row.ID+"/"+row.Version) && !row.LastUpdated.After(end) {
				late = true
			}
			if row.LastUpdated.After(last) {
				last = row.LastUpdated
			}
			return t.log.found(row)
		})
		if err != nil || pages <= 1 || !end.IsZero() && !late {
			return err
		}
		end = last
	}
	if t.WithoutHistory == Strict {
		return fmt.Errorf("%s resources moved back in time whenever it was read what has changed: %w", t.typ, errIncomplete)
	}
	return t.remark(ctx, state.Issue{
		Severity: "warning", Code: "incomplete",
		Text: "writes that showed late kept moving " + t.typ + " resources while it was read what has changed, so that some of those may be missing or older",
	})
}

// countMet counts for each row that was changed after T how often the crawl met it before that.
func (t *typeRepair) countMet() error {
	later := map[uint64]*change{}
	for id, c := range t.changes.byID {
		if !c.known {
			later[metKey(id)] = c
		}
	}
	if len(later) == 0 {
		return nil
	}
	for _, part := range t.crawled {
		err := eachMet(t.dir, part.Seq, part.MetSize, func(key uint64) {
			if c := later[key]; c != nil {
				c.met++
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// missing is what of a type was searched for in vain.
type missing struct {
	// changed is how many were changed and have no version as of T, keys are their hashes where they are to be included.
	changed int
	keys    []uint64
	// found are those whose version as of T was found although they were changed since, left those of them that may have been
	// counted before that.
	found, left int
}

// sumMissing adds up what of a range is missing.
func (t *typeRepair) sumMissing() {
	m := &t.missing
	for id, c := range t.changes.byID {
		switch {
		case c.captured || c.born || !c.known && c.met > 0:
		case !c.known && (!t.profile.InstanceHistory || c.lost):
			if m.changed++; t.includesCurrent() {
				m.keys = append(m.keys, metKey(id))
			}
		case c.known && !c.deleted && !c.next.IsZero():
			if m.found++; !c.next.Before(t.job.TransactionTime.Add(t.settleTime())) {
				m.left++
			}
		}
	}
}

// includesCurrent tells whether a resource that was changed after T may be included as it is now.
func (t *typeRepair) includesCurrent() bool {
	return t.WithoutHistory == IncludeCurrent && !t.asOfAlone(t.typ)
}

// sayMissing says what is not as of T: what was changed and has no version that is, and what was deleted. By the setting the
// former is included as it is now, missing, or the end of the export.
func (t *typeRepair) sayMissing(ctx context.Context, w *walk) error {
	// A row that left its window before that was counted is not among the counted ones, so that fewer of them may explain what
	// is missing. Strict fails for the doubt, the others say what is certain.
	changed, vanished := t.missing.changed, int64(0)
	if t.profile.Counts && !t.holed() { // else it is not known why rows are missing
		vanished = t.planned() - t.met() - int64(changed)
	}
	if t.WithoutHistory == Strict && (changed > 0 || vanished-int64(t.missing.left) > 0) {
		return fmt.Errorf("resources changed while the export ran and the server has no history to take them from: %w", errIncomplete)
	}
	var said []string
	switch before := w.slice.Written; {
	case changed > 0 && t.includesCurrent():
		if err := t.addCurrent(ctx, w); err != nil {
			return err
		}
		said = append(said, fmt.Sprintf("%d %s resources that were changed after the transaction time are included as they are now", w.slice.Written-before, t.typ))
	case changed > 0:
		said = append(said, fmt.Sprintf("%d %s resources that were changed after the transaction time are missing", changed, t.typ))
	}
	if deleted := vanished - int64(t.missing.found); deleted > 0 {
		said = append(said, fmt.Sprintf("%d %s resources that were deleted after the transaction time are missing", deleted, t.typ))
	}
	if len(said) == 0 {
		return nil
	}
	return t.remark(ctx, state.Issue{
		Severity: "warning", Code: "incomplete", Text: strings.Join(said, ", and ") + ": the server gives no history" + t.ofTypes(),
	})
}

// planned is how many rows were counted before the crawl, met how many were met in it.
func (t *typeRepair) planned() (n int64) {
	for _, slice := range t.crawled {
		n += max(0, slice.Counted)
	}
	return n
}

func (t *typeRepair) holed() bool {
	return len(t.holes) > 0 || slices.ContainsFunc(t.crawled, func(s *state.Slice) bool { return len(s.Holes) > 0 })
}

func (t *typeRepair) met() (n int64) {
	for _, slice := range t.crawled {
		n += slice.Met
	}
	return n
}

// addCurrent writes the rows as they are now, each once. What has moved meanwhile is read by itself.
func (t *typeRepair) addCurrent(ctx context.Context, w *walk) error {
	w.filter.until = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	wanted := t.missing.keys
	slices.Sort(wanted)
	added := make([]bool, len(wanted))
	_, err := t.tail(ctx, t.laterThan(t.job.TransactionTime), func(row *fhir.Entry) error {
		n, found := slices.BinarySearch(wanted, metKey(row.ID))
		if !found || added[n] {
			return nil
		}
		added[n] = true
		return w.emit(row)
	})
	if err != nil || !slices.Contains(added, false) {
		return err
	}
	return t.log.each(func(part *changes) error {
		for id := range part.byID {
			n, found := slices.BinarySearch(wanted, metKey(id))
			if !found || added[n] {
				continue
			}
			row, _, err := t.readAsOf(ctx, t.typ, id)
			if err == nil && row != nil {
				err = w.emit(row)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// tail reads what is not older than a moment by first pages, and by links where an instant has more rows than a page or where
// they are not sorted; a row may come twice. A page may hold fewer rows than were asked for though it is not the last one.
func (r *run) tail(ctx context.Context, q fhir.Query, fn func(*fhir.Entry) error) (pages int, err error) {
	from := q.From
	link := ""
	var links chain // no page shows again what stands on an earlier one than that before alone
	var limits trouble
	for ; ; pages++ {
		rows, last, next := 0, q.From, ""
		err = r.pace.do(ctx, func() error {
			rows = 0
			links.begin()
			page, err := r.pageOf(ctx, q, link)
			if err != nil {
				q.Count = limits.slower(err, q.Count)
				return err
			}
			err = eachRow(page, func(row *fhir.Entry) error {
				if row.Type != q.Type || row.ID == "" || row.LastUpdated.Before(from) {
					return nil
				}
				rows++
				links.saw(row)
				last = row.LastUpdated
				return fn(row)
			})
			if err != nil {
				return err
			}
			next, err = page.Next()
			return err
		})
		if err != nil {
			return pages, fmt.Errorf("read what changed after the transaction time: %w", err)
		}
		fresh := links.fresh()
		switch {
		case next == "" && (q.Sort == "" || rows < q.Count || link != "" || !fresh && last.Equal(q.From)):
			return pages + 1, nil
		case q.Sort != "" && last.After(q.From):
			q.From, link = last, ""
		case next == "" && !q.ServerPages:
			q.ServerPages = true
		case next == "" || !links.goesOn(next, fresh):
			return pages, fmt.Errorf("more changes in one instant than a page holds: %w", errIncomplete)
		default:
			link = next
		}
	}
}
