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

// beginning is a time before all versions.
var beginning = time.Unix(0, 0)

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
	// undated: a deletion was seen of which neither a time nor its neighbours tell on which side of T it is.
	undated bool
	// guessed is the version of a deletion without a time that got that of a later entry: it may be older than _since.
	guessed string

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

	// newer is the time of the last dated entry, open the deletions without a time since then: the history is newest
	// first, so that an entry's neighbours bound its time.
	newer  time.Time
	open   []*change
	placed map[string]bool // deletions without a time, by id and version: a shifted page shows them again
	// guesses are the deletions since the last dated entry that got its time: the next one after _since vouches for them.
	guesses []*change
	after   time.Time // _since
}

func (r *run) newChanges(typ string) *changes {
	return &changes{
		until: r.job.TransactionTime,
		span:  r.job.TransactionTime.Add(-r.repairSpan()),
		after: r.job.Kickoff.Since,
		byID:  map[string]*change{}, old: map[string]*change{}, placed: map[string]bool{},
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
	err := r.history(ctx, typ, "", since, func(row *fhir.Entry) error {
		if row.Type != typ || row.ID == "" {
			return nil
		}
		return h.see(row)
	})
	h.leaveOpen()
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
	if undated && !h.newer.IsZero() && h.newer.Before(h.span) || !undated && row.LastUpdated.Before(h.span) {
		return h.seeOld(row, undated)
	}
	c := h.of(row)
	if undated {
		if !h.place(c, row) {
			return nil
		}
	} else {
		h.date(row.LastUpdated)
	}
	return h.keep(c, row)
}

// of returns what is known of the row's id.
func (h *changes) of(row *fhir.Entry) *change {
	c := h.byID[row.ID]
	if c == nil {
		c = &change{}
		h.byID[row.ID] = c
	}
	c.raise(row, h.until)
	return c
}

// found takes a row of a search into account.
func (h *changes) found(row *fhir.Entry) error { return h.keep(h.of(row), row) }

// keep takes an entry up, with its body as long as there is room.
func (h *changes) keep(c *change, row *fhir.Entry) error {
	grown, err := c.see(row, h.until, heldBodies-h.held)
	h.held += grown
	return err
}

// seeOld takes an entry into account that is older than the span: a version at or before T of what changed later, or a
// deletion.
func (h *changes) seeOld(row *fhir.Entry, undated bool) error {
	if undated {
		row.LastUpdated = h.newer
	} else {
		h.date(row.LastUpdated)
	}
	if c := h.byID[row.ID]; c != nil {
		c.raise(row, h.until)
		if undated {
			h.guess(c, row)
		}
		return h.keep(c, row)
	}
	c := h.old[row.ID]
	if c == nil {
		if !row.Deleted {
			return nil
		}
		c = &change{}
		h.old[row.ID] = c
	}
	if undated {
		h.guess(c, row)
	}
	_, err := c.see(row, h.until, 0) // a version that came late may have an earlier time than the deletion before it
	return err
}

// place finds out on which side of T a deletion without a time is, and tells whether that is known now: whatever is older
// than an entry at or before T is so, too.
func (h *changes) place(c *change, row *fhir.Entry) bool {
	key := row.ID + "/" + row.Version
	again := h.placed[key]
	h.placed[key] = true
	switch {
	case h.newer.IsZero() || h.newer.After(h.until):
		h.open = append(h.open, c)
		return false
	case again: // on a page that has shifted the entry before is not the neighbour
		h.guess(c, row)
		return false
	}
	row.LastUpdated = h.newer
	h.guess(c, row)
	return true
}

// guess remembers that a deletion has the time of a later entry.
func (h *changes) guess(c *change, row *fhir.Entry) {
	c.guessed = row.Version
	h.guesses = append(h.guesses, c)
}

// date passes a dated entry: the open deletions before it are later.
func (h *changes) date(at time.Time) {
	if at.After(h.after) {
		for _, c := range h.guesses {
			c.guessed = ""
		}
	}
	h.guesses = h.guesses[:0]
	if at.After(h.until) {
		h.open = h.open[:0]
	} else {
		h.leaveOpen()
	}
	h.newer = at
}

// leaveOpen leaves the deletions that may be on either side of T to the resource's own history.
func (h *changes) leaveOpen() {
	for _, c := range h.open {
		c.undated = true
	}
	h.open = h.open[:0]
}

// raise remembers the newest version of all.
func (c *change) raise(row *fhir.Entry, until time.Time) {
	c.born = c.born || row.Version == "1" && row.LastUpdated.After(until)
	if c.top && !newer(row.Version, row.LastUpdated, c.topVersion, c.topUpdated) {
		return
	}
	c.top, c.topVersion, c.topUpdated, c.topDeleted = true, row.Version, row.LastUpdated, row.Deleted
}

// see takes a version into account if it is the newest at or before a time, and returns by how many bytes the body grew. A
// body of more than room bytes is not kept.
func (c *change) see(row *fhir.Entry, until time.Time, room int) (grown int, err error) {
	if row.LastUpdated.After(until) || c.known && !newer(row.Version, row.LastUpdated, c.version, c.updated) {
		return 0, nil
	}
	before := len(c.body)
	c.known, c.version, c.updated, c.deleted, c.body = true, row.Version, row.LastUpdated, row.Deleted, nil
	if !row.Deleted {
		c.body, err = row.Bytes(int64(room))
	}
	if errors.Is(err, fhir.ErrTooLong) {
		err = nil
	}
	return len(c.body) - before, err
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

// asOf asks the resource's own history for its version at or before a time. Deletions without a time are placed by the
// server: those that it lists since a millisecond later came later.
func (r *run) asOf(ctx context.Context, typ, id string, until time.Time, c *change) error {
	*c = change{top: c.top, topVersion: c.topVersion, topUpdated: c.topUpdated, topDeleted: c.topDeleted}
	var undated []fhir.Entry
	err := r.history(ctx, typ, id, beginning, func(row *fhir.Entry) error {
		if row.Deleted && row.LastUpdated.IsZero() {
			undated = append(undated, fhir.Entry{Type: typ, ID: id, Version: row.Version, Deleted: true})
			return nil
		}
		if row.LastUpdated.After(until) && (c.next.IsZero() || row.LastUpdated.Before(c.next)) {
			c.next = row.LastUpdated
		}
		_, err := c.see(row, until, anySize) // there is no other place that has the body
		return err
	})
	if gone(err) { // expunged: no version of it can be had
		c.lost = true
		return nil
	}
	if err != nil || len(undated) == 0 {
		return err
	}
	later := map[string]bool{}
	err = r.history(ctx, typ, id, until.Add(time.Millisecond), func(row *fhir.Entry) error {
		later[row.Version] = true
		return nil
	})
	if err != nil && !gone(err) {
		return err
	}
	for i := range undated {
		if !later[undated[i].Version] {
			undated[i].LastUpdated = until
			if _, err := c.see(&undated[i], until, 0); err != nil {
				return err
			}
			if c.version == undated[i].Version {
				c.guessed = c.version
			}
		}
	}
	return nil
}

// gone tells whether a history is not there.
func gone(err error) bool {
	status := fhir.StatusOf(err)
	return status == 404 || status == 410
}

// history reads all pages of a history, from the first one again when the server forgot a link: fn sees entries twice then.
func (r *run) history(ctx context.Context, typ, id string, since time.Time, fn func(*fhir.Entry) error) error {
	for range maxPasses {
		err := r.historyPages(ctx, typ, id, since, fn)
		if !errors.Is(err, errExpired) {
			return err
		}
	}
	return fmt.Errorf("pages of the history expire before they are read: %w", errIncomplete)
}

func (r *run) historyPages(ctx context.Context, typ, id string, since time.Time, fn func(*fhir.Entry) error) error {
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
			if err := eachRow(page, fn); err != nil {
				return err
			}
			next, err = page.Next()
			return err
		})
		if link != "" && expired(err) {
			return errExpired // without the status, which would say that there is no history
		}
		if err != nil || next == "" {
			return err
		}
		if followed[next] {
			return fmt.Errorf("next links of the history do not end: %w", errIncomplete)
		}
		followed[next] = true
		link = next
	}
}
