package fhirtest

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxListings bounds the cached results: the oldest go first, as on servers that evict.
const maxListings = 2000

// maxNoStore is HAPI's upper limit of max-results.
const maxNoStore = 1000

// listing is a result that outlives its request because pages of it were linked.
type listing struct {
	id, key string
	kind    string
	rows    []*row
	// again runs the query once more for each page; nil where the rows are kept.
	again func() []*row
	total *int
	// elements are those of the query.
	elements []string
	made     time.Time
	used     time.Time
	self     string
}

// result is everything that pages are cut from.
type result struct {
	kind  string
	path  string
	order string
	count int
	rows  []*row
	total *int
	notes [][]byte
	// elements are those of the query; cursors says whether it may be paged by cursors.
	elements []string
	cursors  bool
	// applied are the parameters that links repeat.
	applied url.Values
	again   func() []*row
}

// firstPage answers a search that asks for rows: its first page, or with a stateless token a later one.
func (s *Server) firstPage(w http.ResponseWriter, c *call, q *query) error {
	reuse, limit, err := s.cacheControl(c)
	if err != nil {
		return err
	}
	res := &result{
		kind: searchset, path: q.path, order: q.order, count: q.count, notes: q.notes, applied: q.applied, elements: q.elements,
		cursors: s.p.Cursors && q.sorted && q.order == ascending && q.count >= minCursorCount,
	}
	if limit > 0 {
		res.rows = s.find(q)
		res.rows = res.rows[:min(len(res.rows), limit)]
		if c.values.Has("_count") {
			res.rows = res.rows[:min(len(res.rows), q.count)]
		}
		return s.writePage(w, c, &page{kind: searchset, rows: res.rows, self: q.link(c), notes: q.notes, elements: q.elements})
	}
	key := searchKey(q)
	if reuse && s.p.ReuseFor > 0 {
		if l := s.recent(key, c.now); l != nil {
			return s.writeListing(w, c, l, 0, q.count, q.notes)
		}
	}
	res.rows = s.find(q)
	if s.p.RerunPages {
		res.again = func() []*row { return s.find(q) }
	}
	if s.p.ResultCap > 0 {
		res.rows = res.rows[:min(len(res.rows), s.p.ResultCap)]
	}
	if s.p.PatientCap > 0 && q.typ == "Patient" && len(res.rows) > s.p.PatientCap {
		res.rows = res.rows[:s.p.PatientCap]
		res.notes = append(res.notes, tooManyPatients)
	}
	if q.total {
		n := len(res.rows)
		res.total = &n
	}
	return s.writeResult(w, c, res, key)
}

// cacheControl reads what HAPI honours of Cache-Control: may an earlier result be reused, and the limit of no-store.
func (s *Server) cacheControl(c *call) (reuse bool, limit int, err error) {
	reuse = true
	noStore, most := false, maxNoStore
	for directive := range strings.SplitSeq(strings.Join(c.r.Header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch name {
		case "no-cache":
			reuse = false
		case "no-store":
			reuse, noStore = false, s.p.NoStore
		case "max-results":
			if most, err = strconv.Atoi(value); err != nil || most < 1 {
				return false, 0, refuse(http.StatusBadRequest, "Cache-Control: max-results is not a number")
			}
		}
	}
	if !noStore {
		return reuse, 0, nil
	}
	if most > maxNoStore {
		return false, 0, refuse(http.StatusBadRequest, "Cache-Control: max-results is above %d", maxNoStore)
	}
	return false, most, nil
}

// searchKey is the text by which equal searches are known: page size and form of the answer do not matter.
func searchKey(q *query) string {
	values := maps.Clone(q.applied)
	for _, name := range []string{"_count", "_format", "_pretty"} {
		values.Del(name)
	}
	return q.path + "?" + values.Encode()
}

// writeResult writes the page that the request asks for and links the next one in the personality's way.
func (s *Server) writeResult(w http.ResponseWriter, c *call, res *result, key string) error {
	switch s.p.Paging {
	case OffsetPages:
		return s.offsetPage(w, c, res)
	case KeysetPages:
		return s.keysetPage(w, c, res)
	}
	l := &listing{key: key, kind: res.kind, rows: res.rows, again: res.again, total: res.total, self: c.link(res.path, res.applied), elements: res.elements}
	if len(res.rows) > res.count || s.p.ReuseFor > 0 && key != "" {
		s.keepListing(l, c.now)
	}
	return s.writeListing(w, c, l, 0, res.count, res.notes)
}

// keepListing stores a result under a new id.
func (s *Server) keepListing(l *listing, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named++
	l.id = fmt.Sprintf("%08x-5ea1-4c00-8000-%012x", uint32(s.named*2654435761), s.named)
	l.made, l.used = now, now
	if s.p.Paging == CachedPages && l.again == nil {
		l.rows = slices.Clone(l.rows)
	}
	s.listings[l.id] = l
	s.listingAges = append(s.listingAges, l)
	most := s.p.RememberSearches
	if most == 0 {
		most = maxListings
	}
	for len(s.listingAges) > most || len(s.listingAges) > 0 && s.expiredLocked(s.listingAges[0], now) {
		delete(s.listings, s.listingAges[0].id)
		s.listingAges = s.listingAges[1:]
	}
}

func (s *Server) expiredLocked(l *listing, now time.Time) bool {
	return s.p.PagesLive > 0 && now.Sub(l.used) > s.p.PagesLive
}

// recent finds a result of the same search that is young enough to be given again.
func (s *Server) recent(key string, now time.Time) *listing {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range slices.Backward(s.listingAges) {
		if now.Sub(l.made) > s.p.ReuseFor {
			return nil
		}
		if l.key == key && s.listings[l.id] == l {
			return l
		}
	}
	return nil
}

// listed finds a stored result by id and keeps it alive; expired ones are gone.
func (s *Server) listed(id string, now time.Time) (*listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.listings[id]
	if l == nil || s.expiredLocked(l, now) {
		return nil, refuse(http.StatusGone, "the search does not exist and may have expired")
	}
	if s.p.Paging == SnapshotPages {
		l.used = now
	}
	return l, nil
}

// forgetListings makes every link issued so far invalid.
func (s *Server) forgetListings() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.listings)
	s.listingAges = nil
}

// cachedPage answers a `_getpages` link.
func (s *Server) cachedPage(w http.ResponseWriter, c *call, id string) error {
	l, err := s.listed(id, c.now)
	if err != nil {
		return err
	}
	from, errFrom := strconv.Atoi(c.values.Get("_getpagesoffset"))
	count, errCount := strconv.Atoi(c.values.Get("_count"))
	if errFrom != nil || errCount != nil || from < 0 || count < 1 {
		return refuse(http.StatusBadRequest, "the page link is invalid")
	}
	if s.p.MaxCount > 0 {
		count = min(count, s.p.MaxCount)
	}
	return s.writeListing(w, c, l, from, count, nil)
}

// snapshotPage answers a `__page` link: its token holds the listing, the offset and the page size.
func (s *Server) snapshotPage(w http.ResponseWriter, c *call, token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return refuse(http.StatusNotFound, "no such page")
	}
	l, err := s.listed(parts[0], c.now)
	if err != nil {
		return err
	}
	from, errFrom := strconv.Atoi(parts[1])
	count, errCount := strconv.Atoi(parts[2])
	if errFrom != nil || errCount != nil || from < 0 || count < 1 {
		return refuse(http.StatusNotFound, "no such page")
	}
	return s.writeListing(w, c, l, from, count, nil)
}

// writeListing writes one page of a stored result.
func (s *Server) writeListing(w http.ResponseWriter, c *call, l *listing, from, count int, notes [][]byte) error {
	rows := l.rows
	if l.again != nil {
		rows = l.again()
	}
	from = min(from, len(rows))
	to := min(from+count, len(rows))
	p := &page{kind: l.kind, rows: rows[from:to], total: l.total, notes: notes, self: l.self, elements: l.elements}
	if to < len(rows) {
		p.next = s.listingLink(c, l, to, count)
	}
	return s.writePage(w, c, p)
}

func (s *Server) listingLink(c *call, l *listing, offset, count int) string {
	if s.p.Paging == SnapshotPages {
		path, _, _ := strings.Cut(strings.TrimPrefix(l.self, c.base+"/"), "?")
		typ, _, _ := strings.Cut(path, "/")
		if typ == "_history" {
			typ = "Bundle"
		}
		return fmt.Sprintf("%s/%s/__page/%s.%d.%d", c.base, typ, l.id, offset, count)
	}
	pretty := ""
	if v := c.values.Get("_pretty"); v != "" {
		pretty = "&_pretty=" + url.QueryEscape(v)
	}
	return fmt.Sprintf("%s?_getpages=%s&_getpagesoffset=%d&_count=%d%s&_bundletype=%s", c.base, l.id, offset, count, pretty, l.kind)
}
