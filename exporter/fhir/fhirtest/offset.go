package fhirtest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sort"
	"strconv"
)

// cursorParam is the parameter of Cursors, shiftParam the one by which ShiftWarning names the row before a page.
const (
	cursorParam = "_cursor"
	shiftParam  = "_lastId"
)

// minCursorCount is the smallest page that Medplum links by a cursor.
const minCursorCount = 20

// pageParam is the parameter by which links of OffsetPages and KeysetPages go on; the other forms have none.
func (p *Personality) pageParam() string {
	switch {
	case p.Paging != OffsetPages && p.Paging != KeysetPages:
		return ""
	case p.PageParam != "":
		return p.PageParam
	case p.Paging == OffsetPages:
		return "_page"
	}
	return "ct"
}

// offsetOf is the number of rows that an offset link skips.
func (s *Server) offsetOf(c *call, count int) (int, error) {
	name := s.p.pageParam()
	v := c.values.Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	first := 1
	if s.p.PageSkips {
		first = 0
	}
	if err != nil || n < first {
		return 0, refuse(http.StatusBadRequest, "%s is not a page", name)
	}
	if !s.p.PageSkips {
		n = (n - 1) * count
	}
	if s.p.MaxOffset > 0 && n > s.p.MaxOffset {
		return 0, refuse(http.StatusBadRequest, "the result window is too large: at most %d rows can be skipped", s.p.MaxOffset)
	}
	return n, nil
}

func (s *Server) offsetPage(w http.ResponseWriter, c *call, res *result) error {
	name := s.p.pageParam()
	if res.cursors && !c.values.Has(name) {
		return s.cursorPage(w, c, res)
	}
	skip, err := s.offsetOf(c, res.count)
	if err != nil {
		return err
	}
	from := min(skip, len(res.rows))
	to := min(from+res.count, len(res.rows))
	p := res.page(c, res.rows[from:to])
	if before := c.values.Get(shiftParam); before != "" && s.p.ShiftWarning && skip > 0 && (skip > len(res.rows) || res.rows[skip-1].id != before) {
		p.notes = append(p.notes, outcome("warning", "conflict", "pages have shifted since the previous one was read"))
	}
	if to < len(res.rows) {
		next := maps.Clone(res.applied)
		next.Set("_count", strconv.Itoa(res.count))
		next.Set(name, strconv.Itoa(to/max(res.count, 1)+1))
		if s.p.PageSkips {
			next.Set(name, strconv.Itoa(to))
		}
		if s.p.ShiftWarning {
			next.Set(shiftParam, res.rows[to-1].id)
		}
		p.next = c.link(res.path, next)
	}
	return s.writePage(w, c, p)
}

// page is a page of the result that holds the rows.
func (res *result) page(c *call, rows []*row) *page {
	return &page{
		kind: res.kind, rows: rows, total: res.total, notes: res.notes, self: c.link(res.path, res.applied), elements: res.elements,
	}
}

// cursor is the content of Medplum's cursor: where the page begins, and what of that moment was given already.
type cursor struct {
	Time int64    `json:"t"`
	Seen []string `json:"x"`
}

// cursorPage cuts a page after a cursor. It fails with 500 as Medplum does when a moment fills the page.
func (s *Server) cursorPage(w http.ResponseWriter, c *call, res *result) error {
	var at cursor
	rows := res.rows
	if token := c.values.Get(cursorParam); token != "" {
		if err := decodeToken(token, &at); err != nil {
			return refuse(http.StatusBadRequest, "the cursor is invalid")
		}
		rows = rows[sort.Search(len(rows), func(i int) bool { return rows[i].updated.UnixNano() >= at.Time }):]
		rows = keep(rows, func(r *row) bool { return r.updated.UnixNano() != at.Time || !slices.Contains(at.Seen, r.id) })
	}
	p := res.page(c, rows[:min(len(rows), res.count)])
	if len(p.rows) < len(rows) {
		next := rows[len(p.rows)].updated
		after := cursor{Time: next.UnixNano()}
		if next.Equal(p.rows[0].updated) {
			if s.p.CursorStall {
				return refuse(http.StatusInternalServerError, "Cursor fails to make progress")
			}
			after.Seen = at.Seen
		}
		for _, r := range p.rows {
			if r.updated.Equal(next) {
				after.Seen = append(after.Seen, r.id)
			}
		}
		token, err := encodeToken(after)
		if err != nil {
			return err
		}
		values := maps.Clone(res.applied)
		values.Set(cursorParam, token)
		p.next = c.link(res.path, values)
	}
	return s.writePage(w, c, p)
}

func encodeToken(content any) (string, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return "", fmt.Errorf("write token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(text), nil
}

func decodeToken(token string, content any) error {
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		err = json.Unmarshal(text, content)
	}
	if err != nil {
		return fmt.Errorf("read token: %w", err)
	}
	return nil
}
