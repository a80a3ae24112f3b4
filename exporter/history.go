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
	// heldBodies bounds in bytes what a type's repair keeps of resources that the history brought along.
	heldBodies = 4 << 20
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
	body    []byte // nil where it was not kept
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

	captured bool // the crawl wrote the version that belongs to the output
}

// changes is the history of one type since shortly before T, or since _since where that is earlier; or, where searched, what
// a search for such rows found, each in one version.
type changes struct {
	until time.Time // T
	span  time.Time // where the span of repairs begins
	byID  map[string]*change
	// old are the deletions before the span, of resources that may have been made again, before the span too.
	old  map[string]*change
	held int
	// searched tells that deletions, and the versions as of T of what changed later, are not among them.
	searched bool
	// strangers are candidates for having left the export, nil where nothing can.
	strangers *strangers

	line  timeline
	after time.Time // _since
}

func (r *run) newChanges(typ string) *changes {
	return &changes{
		until: r.job.TransactionTime,
		span:  r.job.TransactionTime.Add(-r.repairSpan()),
		after: r.job.Kickoff.Since,
		byID:  map[string]*change{}, old: map[string]*change{},
		strangers: r.newStrangers(typ),
	}
}

func (r *run) repairSpan() time.Duration { return max(repairSpan, r.settleTime()) }

// changes reads the type's history. The pages shift under writes and show versions twice, which does no harm here.
func (r *run) changes(ctx context.Context, typ string) (*changes, error) {
	h := r.newChanges(typ)
	// A version that came late may have an earlier time than the one before it, so the look back from _since is as long.
	since := h.span
	if from := r.job.Kickoff.Since; !from.IsZero() && from.Add(-r.repairSpan()).Before(since) {
		since = from.Add(-r.repairSpan())
	}
	err := r.history(ctx, typ, "", since, &h.line, func(row *fhir.Entry) error {
		if row.Type != typ || row.ID == "" {
			return nil
		}
		return h.see(row)
	})
	h.place()
	var response *fhir.ResponseError
	if errors.As(err, &response) && response.NotOffered() {
		return nil, errNoHistory
	}
	return h, err
}

// changesOf is changes, or nil where the server has no history of the type.
func (r *run) changesOf(ctx context.Context, typ string) (*changes, error) {
	if !r.profile.TypeHistory {
		return nil, nil
	}
	h, err := r.changes(ctx, typ)
	if errors.Is(err, errNoHistory) {
		return nil, nil
	}
	if reason, ok := holeReason(err); ok && ctx.Err() == nil {
		r.Log.ErrorContext(ctx, "the history of a type is missing", "job", r.job.ID, "type", typ, "error", err)
		return nil, &lostHistory{reason}
	}
	return h, err
}

// lostHistory tells that the server has a history of a type but does not give it.
type lostHistory struct{ reason string }

// Error names the reason.
func (e *lostHistory) Error() string {
	return "the history of the type cannot be read (" + e.reason + ")"
}

// see takes one entry into account.
func (h *changes) see(row *fhir.Entry) error {
	if err := h.strangers.see(row); err != nil {
		return err
	}
	undated := row.Deleted && row.LastUpdated.IsZero()
	old := row.LastUpdated.Before(h.span)
	if undated {
		old = !h.line.here.above.IsZero() && h.line.here.above.Before(h.span)
	} else {
		h.line.pass(row.LastUpdated)
	}
	c, room := h.of(row, old)
	switch {
	case c == nil:
		return nil
	case undated:
		h.line.bound(c.deletion(row.Version))
		return nil
	}
	return h.keep(c, row, room)
}

// found takes a row of a search into account.
func (h *changes) found(row *fhir.Entry) error {
	c, room := h.of(row, false)
	return h.keep(c, row, room)
}

// keep takes an entry up that has a time, with its body as long as there is room.
func (h *changes) keep(c *change, row *fhir.Entry, room int) error {
	c.raise(row, h.until)
	grown, err := c.see(row, h.until, room)
	h.held += grown
	return err
}

// of returns what is known of the entry's id, nil where it does not matter, and how many bytes of its body may be kept. What is
// older than the span matters as a version of what changed later, and as a deletion.
func (h *changes) of(row *fhir.Entry, old bool) (c *change, room int) {
	if c := h.byID[row.ID]; c != nil {
		return c, heldBodies - h.held
	}
	c = h.old[row.ID]
	switch {
	case c == nil && old && !row.Deleted:
		return nil, 0
	case c == nil:
		c = &change{}
	}
	if old {
		h.old[row.ID] = c
		return c, 0
	}
	delete(h.old, row.ID)
	h.byID[row.ID] = c
	return c, heldBodies - h.held
}

// place finds out on which side of T, and of _since, the deletions without a time are. What cannot be told is left to the
// resource's own history.
func (h *changes) place() {
	h.line.close()
	for _, c := range h.byID {
		for _, d := range c.deletions {
			row := d.entry()
			if row.LastUpdated.IsZero() { // it stands above all
				row.LastUpdated = forever
			}
			c.raise(row, h.until)
		}
		h.held += c.place(h.until, h.after, h.line.unsorted)
	}
	for id, c := range h.old {
		if c.place(h.until, h.after, h.line.unsorted); c.undated {
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

// place takes the deletions without a time into account, and returns by how many bytes the body grew. In doubt their
// neighbours say nothing.
func (c *change) place(until, since time.Time, doubt bool) (grown int) {
	for _, d := range c.deletions {
		before, after := d.before(until), d.after(until)
		switch {
		case c.known && d.older(c.version):
		case doubt || before == after:
			c.undated = true
		case before:
			n, _ := c.see(d.entry(), until, 0) // a deletion has no body to fail on
			grown += n
			if c.version == d.version {
				c.guessed = !d.after(since)
			}
		}
	}
	return grown
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
	c.known, c.version, c.updated, c.deleted, c.body = true, row.Version, row.LastUpdated, row.Deleted, nil
	return true
}

// see takes a version into account with its body, if that has not more than room bytes, and returns by how many bytes the body
// grew.
func (c *change) see(row *fhir.Entry, until time.Time, room int) (grown int, err error) {
	before := len(c.body)
	if c.takes(row, until) && !row.Deleted {
		err = c.hold(row, room)
	}
	return len(c.body) - before, err
}

// hold keeps a body of not more than room bytes.
func (c *change) hold(row *fhir.Entry, room int) (err error) {
	c.body, err = row.Bytes(int64(max(0, room)))
	if errors.Is(err, fhir.ErrTooLong) {
		err = nil
	}
	return err
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

// left tells whether the resource is not in a window any more that it was met in.
func (c *change) left(to time.Time) bool {
	return c.top && (c.topDeleted || !to.IsZero() && !c.topUpdated.Before(to))
}

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
	followed := map[string]bool{}
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
			if err := eachRow(page, fn); err != nil {
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
		if followed[next] {
			return fmt.Errorf("next links of the history do not end: %w", errIncomplete)
		}
		followed[next] = true
		link = next
	}
}
