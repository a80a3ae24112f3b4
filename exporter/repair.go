package exporter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// repairSpan is how far before T the history is read at least: also what settled later than expected shows there.
	repairSpan = 60 * time.Second
	// historyCount is the page size of histories.
	historyCount = 50
	// heldBodies bounds in bytes what a type's repair keeps of resources that the history brought along.
	heldBodies = 4 << 20
)

// errSettle ends a job in which the server showed a write after the settle pause that was made before T.
var errSettle = fmt.Errorf("a write became visible only after the settle pause, raise the setting settle: %w", errIncomplete)

// repair adds what changed between T and the moment at which its slice was read: the version as of T, from the server's
// history. It goes over every type of the job, also those without a row.
func (r *run) repair(ctx context.Context) error {
	if !r.profile.TypeHistory {
		return nil
	}
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	next := 1
	var mu sync.Mutex
	var issues []state.Issue
	crawled, done := map[string][]state.Slice{}, map[string]bool{}
	for _, slice := range all {
		if slice.Strategy == state.History {
			done[slice.Type] = true
			continue
		}
		crawled[slice.Type] = append(crawled[slice.Type], slice)
		next = max(next, slice.Seq+1)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(r.Workers)
	for i, typ := range r.job.Types {
		if done[typ] {
			continue
		}
		group.Go(func() error {
			slice := state.Slice{Seq: next + i, Type: typ, Strategy: state.History}
			err := r.repairType(groupCtx, &slice, crawled[typ])
			if errors.Is(err, errNoHistory) {
				// A type without rows has no history on some servers: nothing has changed there.
				if len(crawled[typ]) > 0 {
					mu.Lock()
					defer mu.Unlock()
					issues = append(issues, noHistory(typ+" resources"))
				}
				return nil
			}
			if err != nil {
				return fmt.Errorf("repair %s from history: %w", typ, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return r.remark(ctx, issues)
}

// errNoHistory tells that the server does not offer the history of a type.
var errNoHistory = errors.New("history is not offered")

// noHistory is the remark that what changed while the export ran could not be had as of T.
func noHistory(what string) state.Issue {
	return state.Issue{
		Severity: "warning", Code: "incomplete",
		Text: "the server gives no history, so " + what + " that were changed or deleted while the export ran may be missing",
	}
}

// remark adds remarks to the job, each once.
func (r *run) remark(ctx context.Context, issues []state.Issue) error {
	if len(issues) == 0 {
		return nil
	}
	return r.Store.Update(ctx, r.job.ID, func(job *state.Job) error {
		for _, issue := range issues {
			if !slices.Contains(job.Issues, issue) {
				job.Issues = append(job.Issues, issue)
			}
		}
		r.job = job
		return nil
	})
}

// change is what the history says of one id: its newest version at or before T, as far as the history was read.
type change struct {
	known    bool // version and updated are set
	version  string
	updated  time.Time
	deleted  bool
	undated  bool   // a deletion without a time was seen
	body     []byte // nil where it was not kept
	captured bool   // the crawl wrote it
	written  string // the version that it wrote
}

func (r *run) repairType(ctx context.Context, slice *state.Slice, crawled []state.Slice) error {
	changes, err := r.changes(ctx, slice.Type)
	if err != nil || len(changes) == 0 {
		return err
	}
	for _, part := range crawled {
		err := eachWritten(r.dir, part.Seq, part.IndexSize, func(id, version string) error {
			c := changes[id]
			if c == nil {
				return nil
			}
			c.captured, c.written = true, version
			if c.known && (c.deleted || c.version != version) {
				return errSettle
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	files, err := openSpool(r.dir, slice)
	if err != nil {
		return err
	}
	w := &walk{run: r, slice: slice, filter: r.filter(slice.Type), spool: files}
	err = w.addChanges(ctx, changes)
	if err == nil && slice.Written > 0 {
		slice.SpoolSize, slice.IndexSize, slice.Done = files.rows.size, files.index.size, true
		err = w.checkpoint(ctx)
		r.Metrics.repaired.Add(float64(slice.Written))
	}
	return errors.Join(err, files.close())
}

// addChanges writes the as-of-T version of each id that the crawl does not have.
func (w *walk) addChanges(ctx context.Context, changes map[string]*change) error {
	for id, c := range changes {
		if c.captured {
			if err := w.checkUndated(ctx, id, c); err != nil {
				return err
			}
			continue
		}
		if c.known && c.deleted && !c.undated {
			continue
		}
		if !c.known || c.undated || c.body == nil {
			if err := w.asOf(ctx, w.slice.Type, id, c); err != nil {
				return err
			}
		}
		if !c.known || c.deleted {
			continue
		}
		row := &fhir.Entry{Type: w.slice.Type, ID: id, Version: c.version, LastUpdated: c.updated, Resource: c.body}
		if err := w.emit(row); err != nil {
			return err
		}
	}
	return nil
}

// checkUndated fails with errSettle when a deletion without a time, of a row that the crawl wrote, was made before T.
func (w *walk) checkUndated(ctx context.Context, id string, c *change) error {
	if !c.undated {
		return nil
	}
	written := c.written
	if err := w.asOf(ctx, w.slice.Type, id, c); err != nil {
		return err
	}
	if c.known && (c.deleted || c.version != written) {
		return errSettle
	}
	return nil
}

// changes reads the type's history since shortly before T. The pages shift under writes and show versions twice, which
// does no harm here.
func (r *run) changes(ctx context.Context, typ string) (map[string]*change, error) {
	since := r.job.TransactionTime.Add(-max(repairSpan, r.settleTime()))
	changes := map[string]*change{}
	held := 0
	err := r.history(ctx, typ, "", since, func(row *fhir.Entry) error {
		if row.Type != typ || row.ID == "" {
			return nil
		}
		c := changes[row.ID]
		if c == nil {
			c = &change{}
			changes[row.ID] = c
		}
		grown, err := c.see(row, r.job.TransactionTime, heldBodies-held)
		held += grown
		return err
	})
	var response *fhir.ResponseError
	if errors.As(err, &response) && response.NotOffered() {
		return nil, errNoHistory
	}
	return changes, err
}

// see takes a version into account if it is the newest at or before T, and returns by how many bytes the body grew. A
// body of more than room bytes is not kept.
func (c *change) see(row *fhir.Entry, until time.Time, room int) (grown int, err error) {
	if row.Deleted && row.LastUpdated.IsZero() {
		c.undated = true
		return 0, nil
	}
	if row.LastUpdated.After(until) || c.known && !newer(row, c) {
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
func newer(row *fhir.Entry, c *change) bool {
	a, errA := strconv.ParseUint(row.Version, 10, 64)
	b, errB := strconv.ParseUint(c.version, 10, 64)
	if errA == nil && errB == nil {
		return a > b
	}
	return row.LastUpdated.After(c.updated)
}

// asOf asks the resource's own history for its version at T. Deletions without a time are placed by the server: those it
// lists since T + 1 ms came later.
func (r *run) asOf(ctx context.Context, typ, id string, c *change) error {
	*c = change{}
	later := map[string]bool{}
	err := r.history(ctx, typ, id, r.job.TransactionTime.Add(time.Millisecond), func(row *fhir.Entry) error {
		later[row.Version] = true
		return nil
	})
	if err != nil && !gone(err) {
		return err
	}
	err = r.history(ctx, typ, id, time.Unix(0, 0), func(row *fhir.Entry) error {
		if row.Deleted && row.LastUpdated.IsZero() && !later[row.Version] {
			row.LastUpdated = r.job.TransactionTime
		}
		_, err := c.see(row, r.job.TransactionTime, math.MaxInt) // there is no other place that has it
		return err
	})
	c.undated = false
	if gone(err) { // expunged: no version of it can be had
		c.known = false
		return nil
	}
	return err
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
			if err := page.Each(fn); err != nil {
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
