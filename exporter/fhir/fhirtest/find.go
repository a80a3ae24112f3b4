package fhirtest

import (
	"slices"
	"sort"
)

// find runs a query. The result may be shared: callers must not change it.
func (s *Server) find(q *query) []*row {
	byTime := q.order == ascending || q.order == descending
	var rows []*row
	if q.byIDs {
		rows = s.lookUp(q, byTime)
	} else {
		rows = s.searchable(q.typ, q.strong, byTime)
	}
	if byTime {
		rows = cutWindow(rows, q.window)
	} else if q.window != (window{}) {
		rows = keep(rows, func(r *row) bool { return q.window.holds(r.updated) })
	}
	if len(q.filters) > 0 {
		rows = keep(rows, func(r *row) bool {
			for _, f := range q.filters {
				if !f(r) {
					return false
				}
			}
			return true
		})
	}
	if q.order == descending || q.order == byIDDown {
		rows = slices.Clone(rows)
		slices.Reverse(rows)
	}
	return rows
}

// lookUp finds the rows of an _id list in order.
func (s *Server) lookUp(q *query, byTime bool) []*row {
	var rows []*row
	for _, id := range q.ids {
		if r := s.found(q.typ, id, q.strong); r != nil && !r.deleted() && !slices.Contains(rows, r) {
			rows = append(rows, r)
		}
	}
	if byTime {
		slices.SortFunc(rows, byTimeOrder)
	} else {
		slices.SortFunc(rows, byIDOrder)
	}
	return rows
}

// cutWindow takes the rows of a window out of rows in the order of time.
func cutWindow(rows []*row, w window) []*row {
	from := sort.Search(len(rows), func(i int) bool { return !rows[i].updated.Before(w.from) })
	to := len(rows)
	if !w.to.IsZero() {
		to = sort.Search(len(rows), func(i int) bool { return !rows[i].updated.Before(w.to) })
	}
	return rows[from:max(from, to)]
}

func keep(rows []*row, ok func(*row) bool) []*row {
	kept := []*row{}
	for _, r := range rows {
		if ok(r) {
			kept = append(kept, r)
		}
	}
	return kept
}
