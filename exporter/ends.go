package exporter

import (
	"context"
	"errors"

	"sidecar/exporter/fhir"
)

// roundEnd is the number of rows, and its multiples, at which a server is taken to end its pages by a limit of its own where
// nothing shows otherwise: search engines give and count ten thousand.
const roundEnd = 10_000

// endsEarly tells whether a server has more rows of a query than the last pass met: some end both their pages and their
// counts at a limit, with neither link nor error, so that the two agree. The first page of another order then holds rows
// that the pass did not meet. It asks for none where all rows fit into a page, of which there is no limit to fear.
func (w *walk) endsEarly(ctx context.Context, q fhir.Query, unique int64) (bool, error) {
	q.Count, q.ServerPages = w.passRows(), false
	if unique < int64(q.Count) {
		return false, nil
	}
	for _, sort := range []string{"-_id", "-_lastUpdated"} {
		q.Sort = sort
		other, unmet, err := w.otherOrder(ctx, q)
		switch {
		case err == nil && other:
			return unmet, nil
		case err != nil && (errors.Is(err, errGaveUp) || fhir.StatusOf(err) == 0 && !poisoned(err)):
			return false, err // else the order is not to be had
		}
	}
	return unique%roundEnd == 0, nil
}

// otherOrder reads the first page of an order, and tells whether it is another one than that of the last pass, and holds
// rows up to T that the pass did not meet.
func (w *walk) otherOrder(ctx context.Context, q fhir.Query) (other, unmet bool, err error) {
	err = w.pace.do(ctx, func() error {
		page, err := w.search(ctx, q)
		if err != nil {
			return err
		}
		first := ""
		other, unmet = false, false
		return eachRow(page, func(row *fhir.Entry) error {
			if row.Mode == "include" || row.Type != q.Type {
				return nil
			}
			if first == "" {
				first = row.ID
				other = first != w.first
			}
			unmet = w.asked(q, row) && w.passed.add(row.ID) || unmet
			return nil
		})
	})
	return other, unmet, err
}

// asked tells whether a row belongs to a query: in its window, or up to T where it has none.
func (w *walk) asked(q fhir.Query, row *fhir.Entry) bool {
	if q.To.IsZero() {
		return !row.LastUpdated.After(w.job.TransactionTime)
	}
	return !row.LastUpdated.Before(q.From) && row.LastUpdated.Before(q.To)
}
