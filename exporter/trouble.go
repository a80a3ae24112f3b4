package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// minPageCap is the smallest page that trouble shrinks pages to, before time is bisected.
	minPageCap = 10
	// calmPages is how many clean pages it takes to double a shrunk page again.
	calmPages = 10
	// isolatingTries is how often a page is asked for while a window is closed in on: its first failure took longer.
	isolatingTries = 2
	// aliveTries is how often a server that answers 500 is asked something harmless, before it is believed to be broken.
	aliveTries = 8
	// maxRestarts is how often a slice is begun again because of an answer that makes no sense (409, 412, 422 on a GET).
	maxRestarts = 3
	// maxBarren is how many granules in a row may be broken: with more of them it is not a few rows either.
	maxBarren = 3
	// maxHoles bounds the holes of one slice: with more of them it is not a few rows that are broken.
	maxHoles = 100
)

// partialError is an answer of which the server says itself that it is not whole.
type partialError struct{ code string }

// Error names the outcome's code.
func (e *partialError) Error() string {
	return "the server says that its answer is incomplete (" + e.code + ")"
}

// trouble is what a walk knows of the server's trouble with its slice. None of it is stored: after a restart it shows again.
type trouble struct {
	// until is the end of the part of the window that is closed in on, zero for the whole window.
	until time.Time
	// next is the length of the next part in lengths of the last one.
	next time.Duration
	// closing tells that something broken is being closed in on.
	closing bool
	// cap is the number of rows to which trouble has shrunk pages, 0 for none, and calm how many pages were clean since.
	cap, calm int
	// clamp is the page size that the server says it keeps to, 0 where it says none.
	clamp int
	// bare are the ids of rows that came without their resource on the current page.
	bare []string
	// noted tells that the current page held a remark of the server, warned that the pass held a warning.
	noted, warned bool
	// told is the code of the last outcome that said an answer was incomplete; tolerant lets such an answer pass.
	told     string
	tolerant bool
	restarts int
	// barren is how many granules in a row were broken, without a page that was not.
	barren int
}

// bounded cuts a page size to what trouble and the server's own limit allow.
func (t *trouble) bounded(rows int) int {
	for _, limit := range []int{t.cap, t.clamp} {
		if limit > 0 {
			rows = min(rows, limit)
		}
	}
	return rows
}

// slower halves the page after a timeout and returns its new size.
func (t *trouble) slower(err error, rows int) int {
	if !fhir.TimedOut(err) || rows <= minPageCap {
		return rows
	}
	t.cap, t.calm = max(minPageCap, rows/2), 0
	return t.cap
}

// calmer lets a shrunk page grow again after clean ones.
func (t *trouble) calmer() {
	t.barren = 0
	if t.cap == 0 {
		return
	}
	if t.calm++; t.calm >= calmPages {
		t.cap, t.calm, t.closing = t.cap*2, 0, false
		if t.cap > maxGrownPage {
			t.cap = 0
		}
	}
}

// maxGrownPage is larger than any page: a cap above it bounds nothing.
const maxGrownPage = 10_000

// tries is how often a page of unclear fate is asked for.
func (t *trouble) tries() int {
	if t.closing || t.tolerant {
		return isolatingTries
	}
	return unclearTries
}

// poisoned tells whether an error may come from single rows of what was asked for: the server fails on them, leaves them out
// and says so, or they are too large.
func poisoned(err error) bool {
	var response *fhir.ResponseError
	var partial *partialError
	switch {
	case errors.As(err, &partial), errors.Is(err, fhir.ErrMalformed), errors.Is(err, fhir.ErrTooLarge):
		return true
	case errors.As(err, &response):
		return response.StatusCode >= 500 && response.StatusCode != 501 && !response.Temporary()
	}
	return false
}

// narrow reacts to a page that cannot be had: smaller pages, then smaller windows, until what is broken is closed in; that
// is read around. It tells whether the part of the window up to w.part's end is done, and returns an error when the
// server answers nothing else either.
func (w *walk) narrow(ctx context.Context, window fhir.Query, err error) (done bool, _ error) {
	if !poisoned(err) || w.slice.Strategy == state.Paging {
		return false, err
	}
	if !w.closing { // the first sign
		if alive := w.alive(ctx); alive != nil {
			return false, errors.Join(err, alive)
		}
		w.Log.WarnContext(ctx, "part of a type cannot be read, it is closed in on", "job", w.job.ID,
			"type", w.slice.Type, "slice", w.slice.Seq, "error", err)
	}
	w.closing = true
	q := w.part(window)
	if w.slice.Strategy == state.Keyset && (w.cap == 0 || w.cap > minPageCap) {
		w.cap, w.calm = max(minPageCap, min(q.Count, w.pageSize())/10), 0
		return false, nil
	}
	if middle, ok := w.middle(q); ok {
		w.until = middle
		return false, nil
	}
	return true, w.readAround(ctx, q, err)
}

// alive tells by a harmless search of the same type whether the server answers at all, and waits a while until it does.
func (w *walk) alive(ctx context.Context) error {
	q := fhir.Query{Type: w.slice.Type, Count: 1}.With(fhir.QueryParam{Name: "_id", Value: fhir.UnknownID})
	return w.pace.doWith(ctx, nil, aliveTries, func() error {
		page, err := w.Client.Search(ctx, q)
		if err != nil {
			return err
		}
		return page.Each(func(*fhir.Entry) error { return nil })
	})
}

// epoch is where windows without a beginning are taken to begin when they are halved.
var epoch = time.Unix(0, 0).UTC()

// middle is the moment at which a window is halved. There is none in a window of one granule.
func (w *walk) middle(q fhir.Query) (time.Time, bool) {
	from := q.From
	if from.IsZero() {
		from = epoch
	}
	middle := from.Add(q.To.Sub(from) / 2).Truncate(w.granule())
	return middle, middle.After(from) && middle.Before(q.To)
}

// adapt looks for another way to read the slice after an error, and begins it again; where there is none it returns the
// error.
func (w *walk) adapt(ctx context.Context, err error) error {
	status := fhir.StatusOf(err)
	switch {
	case len(w.slice.Lists) > 0 && (status == 400 || status == 413 || status == 414):
		w.shorterLists(ctx)
	case w.unfit(err) && w.poorer():
		w.Log.WarnContext(ctx, "server ignores or refuses a search parameter, the type is read by a poorer strategy",
			"job", w.job.ID, "type", w.slice.Type, "slice", w.slice.Seq, "strategy", string(w.slice.Strategy), "error", err)
	case status == 409 || status == 412 || status == 422:
		if w.restarts++; w.restarts > maxRestarts {
			return err
		}
	default:
		return err
	}
	return w.again(ctx)
}

// unfit tells whether an error says that the slice's strategy is not for this server: it ignores a parameter, or refuses the
// first search.
func (w *walk) unfit(err error) bool {
	return errors.Is(err, errStrategy) || fhir.StatusOf(err) == 400 && w.slice.Met == 0 && w.slice.Query == 0
}

// poorer goes one strategy down, and tells whether there was one.
func (w *walk) poorer() bool {
	switch {
	case w.slice.Strategy == state.Keyset:
		w.slice.Strategy = state.Bisect
	case w.slice.Strategy == state.Bisect:
		w.slice.Strategy = state.Paging
	case w.slice.Strategy == state.Paging && !w.slice.Open:
		w.slice.Open = true
	default:
		return false
	}
	return true
}

// readOrMiss reads the slice. What the server does not give in any way is a hole: the other slices go on.
func (w *walk) readOrMiss(ctx context.Context) error {
	err := w.stoppedType()
	if err == nil {
		err = w.readAll(ctx)
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	reason, ok := holeReason(err)
	if !ok {
		return err
	}
	if errors.Is(err, errSuperset) {
		w.stopType(ctx)
	}
	w.Log.ErrorContext(ctx, "part of a type is missing", "job", w.job.ID, "type", w.slice.Type, "slice", w.slice.Seq, "error", err)
	hole := state.Hole{Type: w.slice.Type, From: w.slice.From, To: w.slice.To, Rows: -1, Reason: reason}
	if w.slice.Strategy != state.Paging && !several(w.slice) && !w.slice.Cursor.IsZero() {
		hole.From = w.slice.Cursor
	}
	if missing := w.slice.Counted - w.slice.Met; missing > 0 && !several(w.slice) { // else nobody knows how many
		hole.Rows = missing
	}
	w.slice.Holes = append(w.slice.Holes, hole)
	return nil
}

// holeReason gives the code of a hole for an error of the server. An error that is not confined to a type has none: the job
// fails with it.
func holeReason(err error) (string, bool) {
	var response *fhir.ResponseError
	var partial *partialError
	switch {
	case errors.Is(err, errLocal), errors.Is(err, errGaveUp), errors.Is(err, fhir.ErrNotApplied):
		return "", false
	case errors.As(err, &partial):
		return partial.code, true
	case errors.As(err, &response):
		switch {
		case response.StatusCode == 401:
			return "", false
		case response.StatusCode == 403:
			return "forbidden", true
		case response.NotOffered(), response.StatusCode == 400:
			return "not-supported", true
		}
		return "exception", true
	case errors.Is(err, errLagging):
		return lagReason, true
	case errors.Is(err, errIncomplete):
		return "incomplete", true
	case errors.Is(err, errSuperset), errors.Is(err, errStrategy), errors.Is(err, fhir.ErrForeignLink), errors.Is(err, errNoHistory):
		return "not-supported", true
	case errors.Is(err, fhir.ErrTooLarge):
		return "too-long", true
	case errors.Is(err, fhir.ErrMalformed):
		return "structure", true
	}
	return "", false
}

// addHole records a hole behind which the reading goes on.
func (w *walk) addHole(ctx context.Context, hole state.Hole) error {
	if len(w.slice.Holes) >= maxHoles {
		return fmt.Errorf("more than %d parts of the type cannot be read: %w", maxHoles, errIncomplete)
	}
	w.Log.ErrorContext(ctx, "rows cannot be read, the others are", "job", w.job.ID, "type", hole.Type,
		"slice", w.slice.Seq, "count", hole.Rows, "reason", hole.Reason)
	w.slice.Holes = append(w.slice.Holes, hole)
	return w.checkpoint(ctx)
}
