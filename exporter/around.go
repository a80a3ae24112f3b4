package exporter

import (
	"context"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// aroundPages are the page sizes with which a broken granule is approached.
var aroundPages = []int{100, 10, 1}

// readAround reads what it can of a granule in which something is broken: from its beginning up to the broken row with
// ever smaller pages, then from its end down to it. What the server counts beyond the rows met is a hole. The cursor
// stands behind the granule afterwards.
func (w *walk) readAround(ctx context.Context, q fhir.Query, cause error) error {
	w.tolerant, w.told = true, ""
	defer func() { w.tolerant = false }()
	seen := newIDSet()
	take, broke := w.takeOnce(q, seen)
	whole, err := false, error(nil)
	for _, sort := range w.approaches() {
		if whole, err = w.approach(ctx, q, sort, take, broke); err != nil {
			return err
		}
		if whole {
			break
		}
	}
	if w.barren++; !whole && w.barren >= maxBarren {
		return cause
	}
	rows := int64(-1)
	if w.profile.Counts {
		counted, err := w.countRows(ctx, q)
		switch {
		case poisoned(err):
		case err != nil:
			return err
		default:
			rows = max(0, counted-int64(len(seen.seen)))
		}
	}
	w.jump(q.To)
	if w.told == "" && (rows == 0 || whole && rows < 0) {
		return nil // it was the page that was broken, not a row
	}
	if rows == 0 { // the server's own word stands above its count
		rows = -1
	}
	reason, _ := holeReason(cause)
	if w.told != "" {
		reason = w.told
	}
	return w.addHole(ctx, state.Hole{Type: q.Type, From: q.From, To: q.To, Rows: rows, Reason: reason})
}

// approaches are the orders in which rows are asked for, so that they come from both ends. Where the server was not seen to
// sort, the second one may still be another order than its own.
func (w *walk) approaches() []string {
	if w.slice.Strategy == state.Keyset {
		return []string{"_lastUpdated", "-_lastUpdated"}
	}
	return []string{"", "-_lastUpdated"}
}

// approach follows the server's pages of one order as far as they go, with ever smaller ones. whole tells that they went to
// their end.
func (w *walk) approach(
	ctx context.Context, q fhir.Query, sort string, take func(*fhir.Entry) error, broke func() error,
) (whole bool, err error) {
	q.Sort = sort
	before := w.cap
	defer func() { w.cap = before }()
	for _, w.cap = range aroundPages {
		_, err := w.pass(ctx, q, take, broke)
		if err == nil {
			return true, nil
		}
		if !poisoned(err) && !expired(err) { // 400, an order that is not offered, is among the latter
			return false, err
		}
	}
	return false, nil
}
