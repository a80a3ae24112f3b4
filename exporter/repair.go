package exporter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// repair proves each type of the job, also those without a row, and makes its output the state at T by the server's
// history: what changed before it was read is added as of T, what a late write made stale is replaced. A type is done when
// its slice of strategy History stands in the store.
func (r *run) repair(ctx context.Context, chosen func(typ string) bool) error {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	r.crawledAt = time.Now()
	next := 1
	crawled, done := map[string][]*state.Slice{}, map[string]bool{}
	for i := range all {
		slice := &all[i]
		next = max(next, slice.Seq+1)
		switch slice.Strategy {
		case state.History:
			done[slice.Type] = slice.Done
		case state.Deletions, state.Referenced:
		default:
			crawled[slice.Type] = append(crawled[slice.Type], slice)
		}
	}
	types := slices.DeleteFunc(slices.Clone(r.job.Types), func(typ string) bool { return done[typ] || !chosen(typ) })
	seen, err := r.lookAround(ctx, types)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	number := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(r.Workers)
	for _, typ := range types {
		shown := seen[typ]
		delete(seen, typ) // so that they are let go, type by type
		group.Go(func() error {
			t := &typeRepair{run: r, typ: typ, crawled: crawled[typ], seen: shown, number: number}
			if err := guarded(func() error { return t.do(groupCtx) }); err != nil {
				return fmt.Errorf("repair %s: %w", typ, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// noHistory is the remark that what changed while the export ran could not be had as of T; typ is empty for all types. How
// many there were is said apart, where it can be known.
func (r *run) noHistory(typ string) state.Issue {
	what := strings.TrimSpace(typ + " resources")
	text := "the server gives no history" + r.ofTypes() + ", so " + what
	if r.profile.Keyset && r.profile.InstanceHistory {
		text += " that were deleted while the export ran may be missing"
	} else if r.profile.Keyset && r.WithoutHistory == IncludeCurrent && !r.asOfAlone(typ) {
		text += " that were deleted while the export ran may be missing, and those that were changed are as they are now"
	} else {
		text += " that were changed or deleted while the export ran may be missing"
	}
	if !r.job.Kickoff.Since.IsZero() {
		text += "; what was deleted since _since cannot be reported"
	}
	return state.Issue{Severity: "warning", Code: "incomplete", Text: text}
}

// ofTypes completes "no history", where single resources have one.
func (r *run) ofTypes() string {
	if r.profile.InstanceHistory {
		return " of types"
	}
	return ""
}

// remark adds remarks to the job, each once. A dry run has no store: it keeps them for the Forecast.
func (r *run) remark(ctx context.Context, issues ...state.Issue) error {
	if len(issues) == 0 {
		return nil
	}
	add := func(job *state.Job) error {
		for _, issue := range issues {
			if !slices.Contains(job.Issues, issue) {
				job.Issues = append(job.Issues, issue)
			}
		}
		return nil
	}
	if r.Store == nil {
		return add(r.job)
	}
	return r.Store.Update(ctx, r.job.ID, add)
}

// repairBatch is how many changed resources are looked at together, so that few of their bodies are held.
const repairBatch = 256

// typeRepair is the repair of one type.
type typeRepair struct {
	*run
	typ     string
	crawled []*state.Slice
	// seen is what a search showed when all types were read, until the history is there.
	seen *sightings
	// number gives the next free number of a slice.
	number  func() int
	changes *changes // nil where there is no history
	// left is how many resources of a filtered type were left out, because nobody knows whether they matched at T.
	left  int
	stale int64 // rows that were taken out again

	mu    sync.Mutex // over what follows, and changes.held
	holes []state.Hole
	// barren is how many histories of resources in a row the server did not give.
	barren int
}

func (t *typeRepair) do(ctx context.Context) error {
	h, err := t.prove(ctx, t.typ, t.crawled, t.seen)
	t.seen = nil
	var lost *lostHistory
	if err != nil && !errors.As(err, &lost) {
		return err
	}
	repaired := &state.Slice{Seq: t.number(), Type: t.typ, Strategy: state.History, Counted: -1}
	if lost != nil {
		repaired.Holes = []state.Hole{{Type: t.typ, Rows: -1, Reason: lost.reason, History: true}}
	}
	files, err := openSpool(t.dir, repaired)
	if err != nil {
		return err
	}
	w := &walk{run: t.run, slice: repaired, filter: t.filterIn(ctx, t.typ), spool: files}
	gone := t.newDeletions()
	if h == nil {
		if t.canDepart(t.typ) {
			repaired.Departed = -1
		}
		err = t.withoutHistory(ctx, w, gone)
		if t.WithoutHistory == Strict && errors.Is(err, errIncomplete) {
			err = fmt.Errorf("%w; without_history is strict: export when nobody writes, or set it to include or omit", err)
		}
		if err == nil {
			err = t.keepLedger(ctx, w, gone)
		}
	} else {
		t.changes = h
		err = t.reconcile(ctx, w, gone)
	}
	if err == nil {
		err = t.store(ctx, w, gone)
	}
	return errors.Join(err, files.close(), gone.close())
}

// store makes the repair of the type durable as a whole: what was added, what was taken out, what was deleted.
func (t *typeRepair) store(ctx context.Context, w *walk, gone *deletions) error {
	if err := w.spool.sync(); err != nil {
		return err
	}
	w.spool.measure(w.slice)
	w.slice.Done, w.slice.Holes = true, append(w.slice.Holes, t.holes...)
	slices := append([]*state.Slice{w.slice}, t.crawled...)
	deleted, err := gone.finish(ctx)
	if err != nil {
		return err
	}
	if deleted != nil {
		slices = append(slices, deleted)
	}
	if err := t.Store.Checkpoint(ctx, t.job.ID, slices...); err != nil {
		return err
	}
	t.Metrics.repaired.Add(float64(w.slice.Written))
	t.Metrics.late.Add(float64(t.stale))
	return nil
}

// place is where the crawl wrote a row.
type place struct {
	slice   *state.Slice
	row     int64 // its number in the slice's index
	version string
}

// written looks up where the rows of some ids were written.
func (t *typeRepair) written(wanted func(id string) bool) (map[string][]place, error) {
	places := map[string][]place{}
	for _, part := range t.crawled {
		row := int64(0)
		err := eachWritten(t.dir, part.Seq, part.IndexSize, func(id, version string) error {
			if wanted(id) {
				places[id] = append(places[id], place{part, row, version})
			}
			row++
			return nil
		})
		if err != nil {
			return nil, err
		}
		part.Dropped = nil
	}
	return places, nil
}

// reconcile holds each changed id against what was written: exactly its version as of T belongs to the output.
func (t *typeRepair) reconcile(ctx context.Context, w *walk, gone *deletions) error {
	if err := t.takeTwice(); err != nil {
		return err
	}
	places, err := t.written(func(id string) bool {
		return t.changes.byID[id] != nil || t.changes.old[id] != nil || t.changes.strangers.has(id)
	})
	if err != nil {
		return err
	}
	for id, found := range places {
		if len(found) > 0 && t.changes.byID[id] == nil {
			t.changes.strangers.drop(id)
		}
	}
	for ids := range slices.Chunk(slices.Collect(maps.Keys(t.changes.byID)), repairBatch) {
		if err := t.complete(ctx, ids, places); err != nil {
			return err
		}
		for _, id := range ids {
			t.drop(t.changes.byID[id], places[id])
		}
		unmatched, err := t.unmatched(ctx, w, ids)
		if err != nil {
			return err
		}
		for _, id := range ids {
			c := t.changes.byID[id]
			if !unmatched[id] {
				if err := t.correct(ctx, w, gone, id, c); err != nil {
					return err
				}
			}
			t.changes.held -= len(c.body)
			c.body = nil
		}
	}
	if err := t.sayLeft(ctx); err != nil {
		return err
	}
	for _, part := range t.crawled {
		slices.Sort(part.Dropped)
	}
	if err := t.oldDeletions(ctx, w, gone, places); err != nil {
		return err
	}
	w.slice.Departed, err = t.departed(ctx)
	return err
}

// correct writes what a changed id is as of T, unless it is written: its version, its deletion, or nothing.
func (t *typeRepair) correct(ctx context.Context, w *walk, gone *deletions, id string, c *change) error {
	switch {
	case c.captured || !c.known:
		t.changes.strangers.drop(id)
		return nil
	case c.deleted:
		t.changes.strangers.drop(id)
		return gone.add(ctx, w, id, c)
	}
	before := w.slice.Written
	_, err := t.ask(ctx, func() error {
		if c.body == nil {
			return t.copyVersion(ctx, w, id, c)
		}
		return w.emit(&fhir.Entry{Type: t.typ, ID: id, Version: c.version, LastUpdated: c.updated, Resource: c.body})
	})
	if w.slice.Written > before {
		t.changes.strangers.drop(id)
	}
	return err
}

// oldDeletions takes up what was deleted before the span of repairs. What was made again before it, too, stands in the
// output, or does not belong to it: then its own history tells.
func (t *typeRepair) oldDeletions(ctx context.Context, w *walk, gone *deletions, places map[string][]place) error {
	for id, c := range t.changes.old {
		if t.changes.byID[id] != nil || len(places[id]) > 0 {
			continue
		}
		if t.job.Kickoff.Level != state.System || t.asOfAlone(t.typ) {
			err := t.askAsOf(ctx, id, c, nil)
			if err != nil {
				return err
			}
		}
		if !c.known || !c.deleted {
			continue
		}
		t.changes.strangers.drop(id)
		if err := gone.add(ctx, w, id, c); err != nil {
			return err
		}
	}
	return nil
}

// complete asks the resources' own histories for what the type's history left open: rows without a version since shortly
// before T, deletions without a time, bodies that were not kept.
func (t *typeRepair) complete(ctx context.Context, ids []string, places map[string][]place) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(t.Workers)
	for _, id := range ids {
		c := t.changes.byID[id]
		right := c.known && slices.ContainsFunc(places[id], func(p place) bool { return p.version == c.version })
		switch {
		case c.undated: // on either side of T
		case !c.known && !c.born && t.mayDiffer(c, places[id]): // changed after T
		case c.known && !c.deleted && c.body == nil && !right:
		default:
			continue
		}
		group.Go(func() error {
			return guarded(func() error {
				return t.askAsOf(ctx, id, c, func(row *fhir.Entry) error {
					t.mu.Lock()
					defer t.mu.Unlock()
					err := c.hold(row, heldBodies-t.changes.held)
					t.changes.held += len(c.body)
					return err
				})
			})
		})
	}
	return group.Wait()
}

// mayDiffer tells whether a resource that was changed after T may have been another one at T than was written of it, or than
// the filter kept out. The type's history would show that; a search only shows the newest version, so that one which showed
// late may lie between.
func (t *typeRepair) mayDiffer(c *change, places []place) bool {
	switch {
	case len(places) > 1:
		return true
	case len(places) == 0:
		return c.met != 1
	}
	return t.changes.searched && !follows(c.topVersion, places[0].version)
}

// drop takes out what was written in another version than the one as of T, and keeps one line of that. Where the history
// has no version at or before T, what was written is older than the history, and right: the last line is, which was written
// later than the others.
func (t *typeRepair) drop(c *change, places []place) {
	for _, p := range slices.Backward(places) {
		if !c.captured && (!c.known || !c.deleted && c.version == p.version) {
			c.captured = true
			continue
		}
		p.slice.Dropped = append(p.slice.Dropped, p.row)
		t.stale++
	}
}
