package fhirtest

import (
	"maps"
	"net/http"
	"sort"
	"strings"
	"time"
)

// position is the content of a continuation token: the last row of the page before.
type position struct {
	Time int64  `json:"t"`
	Seq  int64  `json:"s"`
	ID   string `json:"i"`
	// Begin stands before the first row, and Empty asks for a page without rows.
	Begin bool `json:"b,omitempty"`
	Empty bool `json:"e,omitempty"`
}

// orders compare rows in each order of a result.
var orders = map[string]func(a, b *row) int{
	ascending:  byTimeOrder,
	descending: func(a, b *row) int { return byTimeOrder(b, a) },
	byID:       byIDOrder,
	byIDDown:   func(a, b *row) int { return byIDOrder(b, a) },
}

func (s *Server) keysetPage(w http.ResponseWriter, c *call, res *result) error {
	at := position{Begin: true, Empty: s.p.EmptyFirst && res.kind == searchset}
	if token := c.values.Get(s.p.pageParam()); token != "" {
		at = position{}
		if err := decodeToken(strings.TrimRight(token, "="), &at); err != nil {
			return refuse(http.StatusBadRequest, "the continuation token is invalid")
		}
	}
	if at.Empty {
		at.Empty = false
		return s.keysetRows(w, c, res, nil, &at)
	}
	rows := res.rows
	if !at.Begin {
		last := &row{id: at.ID, seq: at.Seq, updated: time.Unix(0, at.Time).UTC()}
		compare := orders[res.order]
		rows = rows[sort.Search(len(rows), func(i int) bool { return compare(rows[i], last) > 0 }):]
	}
	given := rows[:min(len(rows), res.count)]
	if len(given) == len(rows) || len(given) == 0 {
		return s.keysetRows(w, c, res, given, nil)
	}
	last := given[len(given)-1]
	return s.keysetRows(w, c, res, given, &position{
		Time: last.updated.UnixNano(), Seq: last.seq, ID: last.id, Empty: s.p.EmptyBetween && res.kind == searchset,
	})
}

// keysetRows writes a page with a link to what follows a position; nil is the end.
func (s *Server) keysetRows(w http.ResponseWriter, c *call, res *result, rows []*row, after *position) error {
	p := res.page(c, rows)
	if after != nil {
		token, err := encodeToken(after)
		if err != nil {
			return err
		}
		next := maps.Clone(res.applied)
		next.Del(s.p.pageParam())
		if s.p.RawPadding {
			p.next = c.link(res.path, next)
			p.next += map[bool]string{true: "&", false: "?"}[strings.Contains(p.next, "?")] + s.p.pageParam() + "=" + token + "=="
			return s.writePage(w, c, p)
		}
		next.Set(s.p.pageParam(), token)
		p.next = c.link(res.path, next)
	}
	return s.writePage(w, c, p)
}
