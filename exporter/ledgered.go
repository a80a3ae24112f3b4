package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// ledgerBatch is how many resources are asked for together.
const ledgerBatch = 256

// keepLedger finds what was deleted since _since on a server without history, and writes the ledger that the next increment
// goes on from. w has the repair of the type, gone takes the deletions.
func (t *typeRepair) keepLedger(ctx context.Context, w *walk, gone *deletions) (err error) {
	increment := !t.job.Kickoff.Since.IsZero()
	if t.Ledger == "" {
		if !increment {
			return nil
		}
		return t.untold(ctx, "the setting ledger is off")
	}
	c := &comparison{
		typeRepair: t, w: w, gone: gone,
		alive: newSorter(t.dir, t.typ+".alive"), kept: newSorter(t.dir, t.typ+".kept"),
	}
	defer func() { err = errors.Join(err, c.alive.close(), c.kept.close()) }()
	if err := c.addOutput(); err != nil {
		return err
	}
	if increment {
		if fits, err := c.compare(ctx); err != nil || !fits {
			return err
		}
	}
	kept, err := c.kept.sorted()
	if err != nil {
		return err
	}
	return t.writeLedger(t.typ, kept)
}

// untold is the remark that nobody knows what was deleted.
func (t *typeRepair) untold(ctx context.Context, why string) error {
	return t.remark(ctx, state.Issue{
		Severity: "information", Code: "incomplete",
		Text: "the server gives no history, so it cannot be told which " + t.typ + " resources were deleted since _since: " + why,
	})
}

// comparison holds a ledger against what the server has now. An id that was not changed since _since is still there, one
// that stands in the output, too. Each other one is asked for: it was deleted, it has left the export by an edit, or it was
// changed after T. So nothing is called deleted that the server still has, whatever a search may have passed over.
type comparison struct {
	*typeRepair
	w    *walk
	gone *deletions
	// alive are the ids that need not be asked for, kept those of the next ledger: what the client holds after this export.
	alive, kept *sorter
	unknown     int
}

// addOutput takes up the ids of the output.
func (c *comparison) addOutput() error {
	if err := c.w.spool.sync(); err != nil {
		return err
	}
	c.w.spool.measure(c.w.slice)
	for _, part := range append([]*state.Slice{c.w.slice}, c.crawled...) {
		err := eachWritten(c.dir, part.Seq, part.IndexSize, func(id, _ string) error {
			return errors.Join(c.alive.add(id), c.kept.add(id))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compare goes through the ledger, and tells whether it was the one that _since goes on from.
func (c *comparison) compare(ctx context.Context) (fits bool, err error) {
	old, at, err := openLedger(filepath.Join(c.Ledger, c.ledgerName(c.typ)))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, c.untold(ctx, "there is no ledger of such an export yet; a full one begins it")
	case err != nil:
		return false, err
	}
	defer func() { err = errors.Join(err, old.close()) }()
	if !at.Equal(c.job.Kickoff.Since) {
		return false, c.untold(ctx, "the ledger of such exports goes on from the transaction time of another one; a full export begins it anew")
	}
	listed, err := c.list(ctx)
	if err != nil {
		return false, fmt.Errorf("list what was not changed: %w", err)
	}
	if !listed {
		err := c.untold(ctx, "it cannot be listed; the next increment tries it again")
		return true, errors.Join(err, c.keepAll(old))
	}
	if c.canDepart(c.typ) {
		c.w.slice.Departed = 0
	}
	if err := c.match(ctx, old); err != nil || c.unknown == 0 {
		return true, err
	}
	return true, c.remark(ctx, state.Issue{
		Severity: "warning", Code: "incomplete",
		Text: fmt.Sprintf("%d %s resources are found by no search and cannot be read, so it is not known whether they were deleted", c.unknown, c.typ),
	})
}

// keepAll takes the ledger over as it is.
func (c *comparison) keepAll(old *ledger) error {
	for {
		id, more, err := old.ids.next()
		if err != nil || !more {
			return err
		}
		if err := c.kept.add(id); err != nil {
			return err
		}
	}
}

// match walks the ledger and what is alive side by side.
func (c *comparison) match(ctx context.Context, old *ledger) error {
	alive, err := c.alive.sorted()
	if err != nil {
		return err
	}
	there, some, err := alive.next()
	if err != nil {
		return err
	}
	var open []string
	for {
		id, more, err := old.ids.next()
		if err != nil {
			return err
		}
		if !more {
			return c.ask(ctx, open)
		}
		for some && there < id {
			if there, some, err = alive.next(); err != nil {
				return err
			}
		}
		if some && there == id {
			if err := c.kept.add(id); err != nil {
				return err
			}
			continue
		}
		if open = append(open, id); len(open) == ledgerBatch {
			if err := c.ask(ctx, open); err != nil {
				return err
			}
			open = open[:0]
		}
	}
}

// ask reads some resources, and takes up what became of them.
func (c *comparison) ask(ctx context.Context, ids []string) error {
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.Workers)
	for _, id := range ids {
		group.Go(func() error {
			return guarded(func() error {
				row, err := c.read(ctx, id)
				mu.Lock()
				defer mu.Unlock()
				return c.sort(id, row, err)
			})
		})
	}
	return group.Wait()
}

// sort takes up what became of one resource.
func (c *comparison) sort(id string, row *fhir.Entry, err error) error {
	switch {
	case gone(err):
		return c.gone.report(id)
	case notAnswered(err) != nil:
		return err
	case err != nil:
		c.unknown++
		return c.kept.add(id)
	}
	return c.place(row)
}

func (c *comparison) read(ctx context.Context, id string) (row *fhir.Entry, err error) {
	err = c.pace.do(ctx, func() error {
		row, err = c.Client.ReadEntry(ctx, c.typ, id)
		return err
	})
	return row, err
}

// place keeps a resource that is still there, unless it has left the export.
func (c *comparison) place(row *fhir.Entry) error {
	belongs, err := c.w.filter.member(row)
	switch {
	case err != nil:
		return err
	case belongs:
		return c.kept.add(row.ID)
	case c.canDepart(c.typ) && row.LastUpdated.After(c.job.Kickoff.Since): // else it left with a member
		c.w.slice.Departed++
		c.Metrics.departed.WithLabelValues(c.typ).Inc()
	}
	return nil
}

// list notes the ids of what was not changed since _since. It tells whether the server gave all that it has: what is missing
// would be asked for one by one.
func (c *comparison) list(ctx context.Context) (whole bool, err error) {
	end := c.job.Kickoff.Since.Add(time.Millisecond)
	if !c.profile.Milliseconds {
		end = c.job.Kickoff.Since.Add(time.Second)
	}
	planned, err := c.planBefore(ctx, c.typ, end)
	if err != nil {
		return false, notAnswered(err)
	}
	for i := range planned {
		planned[i].Seq = c.number()
		whole, err := c.listPart(ctx, planned[i], true)
		if err == nil && !whole { // also because the server knows no _elements
			whole, err = c.listPart(ctx, planned[i], false)
		}
		if err != nil || !whole {
			return false, err
		}
	}
	return true, nil
}

// listPart reads one window, with or without the contents of its resources.
func (c *comparison) listPart(ctx context.Context, slice state.Slice, idsOnly bool) (whole bool, err error) {
	files, err := openSpool(c.dir, &slice)
	if err != nil {
		return false, err
	}
	everything := &filter{typ: c.typ, until: c.job.Kickoff.Since, level: state.System}
	w := &walk{run: c.run, slice: &slice, filter: everything, spool: files, draft: true, idsOnly: idsOnly, boundary: map[string]struct{}{}}
	defer func() { err = errors.Join(err, w.ahead.drop(), files.remove()) }()
	if slice.Strategy != state.Keyset {
		w.written = newIDSet()
	}
	if len(slice.Lists) > 0 {
		if w.members, err = c.members(ctx, slice.Newcomers); err != nil {
			return false, err
		}
	}
	if err := errors.Join(w.readOrMiss(ctx), files.sync()); err != nil || len(slice.Holes) > 0 {
		return false, err
	}
	return true, eachWritten(c.dir, slice.Seq, slice.IndexSize, func(id, _ string) error { return c.alive.add(id) })
}
