package exporter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"sidecar/exporter/fhir"
)

const (
	// repairSpan is how far before T the history is read at least: also what settled later than expected shows there.
	repairSpan = 60 * time.Second
	// historyCount is the page size of histories.
	historyCount = 50
)

// anySize is room for every body.
const anySize = math.MaxInt

// beginning is a time before all versions, forever one after them.
var beginning, forever = time.Unix(0, 0), time.Unix(1<<40, 0)

// errNoHistory tells that the server does not offer the history of a type.
var errNoHistory = errors.New("history is not offered")

// change is what the history says of one id.
type change struct {
	// The newest version at or before T, as far as the history was read; known tells whether there is one.
	known   bool
	version string
	updated time.Time
	deleted bool
	// at and size tell where the log has the body, size is 0 where it has none.
	at, size int64
	// deletions are those without a time, undated tells that on which side of T one of them is cannot be told.
	deletions []*deletion
	undated   bool
	// guessed tells that it is one of them, and may be older than _since.
	guessed bool

	// The newest version of all.
	top        bool
	topVersion string
	topUpdated time.Time
	topDeleted bool

	// born tells that the first version came after T: there was nothing at T.
	born bool
	// next is the time of the version after the one as of T, lost tells that the resource's own history is not there: both as
	// far as that was asked.
	next time.Time
	lost bool
	// met is how often the crawl met a row that a search found changed after T.
	met int

	gone     bool // the server says that it is deleted now
	captured bool // the crawl wrote the version that belongs to the output
}

// changes are what a changeLog says of the ids of one range, [from, to) by their bytes; the last range has no end.
type changes struct {
	typ      string
	until    time.Time // T
	span     time.Time // where the span of repairs begins
	after    time.Time // _since
	from, to string
	byID     map[string]*change
	// old are the deletions before the span, of resources that may have been made again, before the span too.
	old map[string]*change
	// searched tells that deletions, and the versions as of T of what changed later, are not among them.
	searched bool
	// strangers are candidates for having left the export, of all ranges; nil where nothing can.
	strangers *strangers
}

func (r *run) repairSpan() time.Duration { return max(repairSpan, r.settleTime()) }

// changes reads the type's history. The pages shift under writes and show versions twice, which does no harm here. Of an error
// no log is left; name tells two logs of a type apart.
func (r *run) changes(ctx context.Context, typ, name string) (_ *changeLog, err error) {
	l := r.newChangeLog(typ, name)
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	// A version that came late may have an earlier time than the one before it, so the look back from _since is as long.
	since := l.span
	if from := r.job.Kickoff.Since; !from.IsZero() && from.Add(-r.repairSpan()).Before(since) {
		since = from.Add(-r.repairSpan())
	}
	err = r.history(ctx, typ, "", since, &l.line, func(row *fhir.Entry) error {
		if row.Type != typ || row.ID == "" {
			return nil
		}
		return l.see(row)
	})
	var response *fhir.ResponseError
	if errors.As(err, &response) && response.NotOffered() {
		return nil, errNoHistory
	}
	if err == nil {
		err = l.end()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// changesOf is changes, or nil where the server has no history of the type.
func (r *run) changesOf(ctx context.Context, typ, name string) (*changeLog, error) {
	if !r.profile.TypeHistory {
		return nil, nil
	}
	l, err := r.changes(ctx, typ, name)
	if err == nil {
		return l, nil
	}
	if errors.Is(err, errNoHistory) {
		return nil, nil
	}
	if reason, ok := holeReason(err); ok && ctx.Err() == nil {
		r.Log.ErrorContext(ctx, "the history of a type is missing", "job", r.job.ID, "type", typ, "error", err)
		return nil, &lostHistory{reason}
	}
	return nil, err
}

// lostHistory tells that the server has a history of a type but does not give it.
type lostHistory struct{ reason string }

// Error names the reason.
func (e *lostHistory) Error() string {
	return "the history of the type cannot be read (" + e.reason + ")"
}

// see takes a version that has a time into account, whose body the log may have.
func (h *changes) see(row *fhir.Entry, at, size int64) {
	c := h.of(row, row.LastUpdated.Before(h.span))
	if c == nil {
		return
	}
	c.raise(row, h.until)
	if c.takes(row, h.until) {
		c.at, c.size = at, size
	}
}

// of returns what is known of the entry's id, nil where it does not matter. What is older than the span matters as a version of
// what changed later, and as a deletion.
func (h *changes) of(row *fhir.Entry, old bool) *change {
	if c := h.byID[row.ID]; c != nil {
		return c
	}
	c := h.old[row.ID]
	switch {
	case c == nil && old && !row.Deleted:
		return nil
	case c == nil:
		c = &change{}
	}
	if old {
		h.old[row.ID] = c
		return c
	}
	delete(h.old, row.ID)
	h.byID[row.ID] = c
	return c
}

// holds tells whether the id is of the range.
func (h *changes) holds(id string) bool { return id >= h.from && (h.to == "" || id < h.to) }

// place finds out on which side of T, and of _since, the deletions without a time are. What cannot be told is left to the
// resource's own history; where pages were not sorted, nothing can.
func (h *changes) place(unsorted bool) {
	for _, c := range h.byID {
		for _, d := range c.deletions {
			row := d.entry()
			if row.LastUpdated.IsZero() { // it stands above all
				row.LastUpdated = forever
			}
			c.raise(row, h.until)
		}
		c.place(h.until, h.after, unsorted)
	}
	for id, c := range h.old {
		if c.place(h.until, h.after, unsorted); c.undated {
			delete(h.old, id)
			h.byID[id] = c
		}
	}
}

// deletion returns what is known of a deletion without a time.
func (c *change) deletion(version string) *deletion {
	for _, d := range c.deletions {
		if d.version == version {
			return d
		}
	}
	d := &deletion{version: version}
	c.deletions = append(c.deletions, d)
	return d
}

// place takes the deletions without a time into account. In doubt their neighbours say nothing.
func (c *change) place(until, since time.Time, doubt bool) {
	for _, d := range c.deletions {
		d.settle()
		before, after := d.before(until), d.after(until)
		switch {
		case c.known && d.older(c.version):
		case doubt || before == after:
			c.undated = true
		case before:
			c.takes(d.entry(), until)
			if c.version == d.version {
				c.guessed = !d.after(since)
			}
		}
	}
}

// older tells whether the deletion is an older version by their numbers.
func (d *deletion) older(than string) bool {
	_, errA := strconv.ParseUint(d.version, 10, 64)
	_, errB := strconv.ParseUint(than, 10, 64)
	return errA == nil && errB == nil && !newer(d.version, time.Time{}, than, time.Time{})
}

// raise remembers the newest version of all.
func (c *change) raise(row *fhir.Entry, until time.Time) {
	c.born = c.born || row.Version == "1" && row.LastUpdated.After(until)
	if c.top && !newer(row.Version, row.LastUpdated, c.topVersion, c.topUpdated) {
		return
	}
	c.top, c.topVersion, c.topUpdated, c.topDeleted = true, row.Version, row.LastUpdated, row.Deleted
}

// takes takes a version into account, without its body, and tells whether it is the newest at or before a time.
func (c *change) takes(row *fhir.Entry, until time.Time) bool {
	if row.LastUpdated.After(until) || c.known && !newer(row.Version, row.LastUpdated, c.version, c.updated) {
		return false
	}
	c.known, c.version, c.updated, c.deleted, c.size = true, row.Version, row.LastUpdated, row.Deleted, 0
	return true
}

// newer compares versions by number where they are numbers, else by time: the time may go back within one resource when
// a slow transaction commits late.
func newer(version string, updated time.Time, than string, thanUpdated time.Time) bool {
	a, errA := strconv.ParseUint(version, 10, 64)
	b, errB := strconv.ParseUint(than, 10, 64)
	if errA == nil && errB == nil {
		return a > b
	}
	return updated.After(thanUpdated)
}

// follows tells whether a version comes right after another one, where they are numbered.
func follows(version, than string) bool {
	a, errA := strconv.ParseUint(version, 10, 64)
	b, errB := strconv.ParseUint(than, 10, 64)
	return errA == nil && errB == nil && a == b+1
}

// left tells whether the resource is not in a window any more that it was met in. A late commit may have taken it to an
// earlier one.
func (c *change) left(from, to time.Time) bool { return c.top && !c.in(from, to) }

// in tells whether the resource is in a window now.
func (c *change) in(from, to time.Time) bool {
	return c.top && !c.topDeleted && !c.topUpdated.Before(from) && (to.IsZero() || c.topUpdated.Before(to))
}

// history reads all pages of a history, from the first one again when the server forgot a link: fn sees entries twice then.
// line is told of the pages; it may be nil.
func (r *run) history(ctx context.Context, typ, id string, since time.Time, line *timeline, fn func(*fhir.Entry) error) error {
	for range maxPasses {
		err := r.historyPages(ctx, typ, id, since, line, fn)
		if !errors.Is(err, errExpired) {
			return err
		}
	}
	return fmt.Errorf("pages of the history expire before they are read: %w", errIncomplete)
}

func (r *run) historyPages(ctx context.Context, typ, id string, since time.Time, line *timeline, fn func(*fhir.Entry) error) error {
	link := ""
	var links chain
	noted := func(row *fhir.Entry) error {
		links.saw(row)
		return fn(row)
	}
	for {
		var next string
		err := r.pace.do(ctx, func() error {
			var page *fhir.Page
			var err error
			if link == "" {
				page, err = r.Client.History(ctx, typ, id, since, historyCount)
			} else {
				page, err = r.Client.Follow(ctx, typ, "history", link)
			}
			if err != nil {
				return err
			}
			line.begin()
			links.begin()
			if err := eachRow(page, noted); err != nil {
				return err
			}
			next, err = page.Next()
			return err
		})
		if link != "" && expired(err) {
			return errExpired // without the status, which would say that there is no history
		}
		if err != nil {
			return err
		}
		line.end()
		if next == "" {
			return nil
		}
		if !links.goesOn(next, links.fresh()) {
			return fmt.Errorf("next links of the history do not end: %w", errIncomplete)
		}
		link = next
	}
}
