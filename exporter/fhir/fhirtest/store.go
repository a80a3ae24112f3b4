package fhirtest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"time"
)

// row is one version of one resource. It never changes, so a search can use it after the lock is gone.
type row struct {
	typ, id string
	version int64
	updated time.Time
	// committed is when the row became visible; a late commit has it long after updated.
	committed time.Time
	// seq orders all commits; it decides between rows of one instant.
	seq int64
	// method is what the history shows. A deletion has no body.
	method string
	// created tells the first version, or the first after a deletion.
	created bool
	body    []byte
	refs    []ref
}

func (r *row) deleted() bool { return r.body == nil }

func (r *row) name() string { return r.typ + "/" + r.id }

// table holds the rows of one type.
type table struct {
	current  map[string]*row
	versions map[string][]*row
	log      []*row
	// byID and byTime are the living rows in order, nil after a write. The slices are never changed once made.
	byID, byTime []*row
}

// write is one step of a transaction.
type write struct {
	method  string
	typ, id string
	// res is nil for a deletion.
	res *parsed
}

// errNoRow says that a row to delete is not there.
var errNoRow = errors.New("no such resource")

func byTimeOrder(a, b *row) int {
	return cmp.Or(a.updated.Compare(b.updated), cmp.Compare(a.seq, b.seq))
}

func byIDOrder(a, b *row) int { return cmp.Compare(a.id, b.id) }

// timing is when a transaction is stamped, and when everybody sees it; a moment that has passed means at once.
type timing struct{ stamp, visible time.Time }

// commit carries out all writes with one lastUpdated and returns the new rows in the same order. It fails, and changes
// nothing, when a resource cannot be stamped or a row to delete is missing (unless missing ones are allowed). The rows of
// a late commit are those that it would make now.
func (s *Server) commit(writes []write, at timing, allowMissing bool) ([]*row, error) {
	now := s.Now()
	at.stamp = at.stamp.UTC().Truncate(s.p.granule())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	rows, err := s.planLocked(writes, at.stamp, allowMissing)
	if err != nil {
		return nil, err
	}
	if at.visible.After(now) {
		s.late = append(s.late, lateCommit{writes, at})
		return rows, nil
	}
	s.applyLocked(rows, now)
	return rows, nil
}

// planLocked makes the rows of a transaction without putting them in.
func (s *Server) planLocked(writes []write, at time.Time, allowMissing bool) ([]*row, error) {
	coming := make(map[string]bool, len(writes))
	for _, w := range writes {
		coming[w.typ+"/"+w.id] = w.res != nil
	}
	rows := make([]*row, 0, len(writes))
	fresh := map[string]*row{}
	for _, w := range writes {
		prev := s.currentLocked(w.typ, w.id)
		if earlier := fresh[w.typ+"/"+w.id]; earlier != nil {
			prev = earlier
		}
		if w.res == nil && (prev == nil || prev.deleted()) {
			if !allowMissing {
				return nil, fmt.Errorf("delete: %w", errNoRow)
			}
			rows = append(rows, prev)
			continue
		}
		r, err := s.nextLocked(w, prev, at, coming)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
		fresh[r.name()] = r
	}
	return rows, nil
}

// applyLocked makes the rows of one transaction visible; those that it found unchanged are in already.
func (s *Server) applyLocked(rows []*row, now time.Time) {
	s.transactions++
	for _, r := range rows {
		if r != nil && r.seq == 0 {
			r.committed = now
			s.insertLocked(r)
		}
	}
}

// nextLocked makes the version that follows prev.
func (s *Server) nextLocked(w write, prev *row, at time.Time, coming map[string]bool) (*row, error) {
	r := &row{typ: w.typ, id: w.id, version: 1, updated: at, method: w.method}
	if prev != nil {
		r.version = prev.version + 1
	}
	if s.p.TransactionVersions {
		r.version = s.transactions + 1
	}
	if w.res == nil {
		return r, nil
	}
	r.created = prev == nil || prev.deleted()
	if s.p.CreatedByPost && prev == nil {
		r.method = http.MethodPost
	}
	if s.p.KeepUnchanged && prev != nil && !prev.deleted() {
		same, err := w.res.stamped(w.id, strconv.FormatInt(prev.version, 10), s.p.instant(prev.updated))
		if err == nil && bytes.Equal(same, prev.body) {
			return prev, nil
		}
	}
	body, err := w.res.stamped(w.id, strconv.FormatInt(r.version, 10), s.p.instant(at))
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", w.typ, err)
	}
	r.body = body
	for _, f := range w.res.refs {
		if s.p.References && !coming[f.key] && !s.existsLocked(f.key) {
			continue
		}
		r.refs = append(r.refs, ref{f.param, s.internLocked(f.key)})
	}
	return r, nil
}

func (s *Server) insertLocked(r *row) {
	s.writes++
	r.seq = s.writes
	t := s.tables[r.typ]
	if t == nil {
		t = &table{current: map[string]*row{}, versions: map[string][]*row{}}
		s.tables[r.typ] = t
	}
	t.current[r.id] = r
	t.versions[r.id] = appendLog(t.versions[r.id], r)
	t.log = appendLog(t.log, r)
	s.log = appendLog(s.log, r)
	s.commits = append(s.commits, r)
	t.byID, t.byTime = nil, nil
}

// appendLog keeps a log in the order of time. A backdated row goes into a copy, because readers may hold the old slice.
func appendLog(log []*row, r *row) []*row {
	if len(log) == 0 || byTimeOrder(log[len(log)-1], r) <= 0 {
		return append(log, r)
	}
	i := sort.Search(len(log), func(i int) bool { return byTimeOrder(log[i], r) > 0 })
	return slices.Concat(log[:i], []*row{r}, log[i:])
}

func (s *Server) currentLocked(typ, id string) *row {
	if t := s.tables[typ]; t != nil {
		return t.current[id]
	}
	return nil
}

func (s *Server) existsLocked(key string) bool {
	for i := range key {
		if key[i] == '/' {
			r := s.currentLocked(key[:i], key[i+1:])
			return r != nil && !r.deleted()
		}
	}
	return false
}

// internLocked gives one string for all references to the same target.
func (s *Server) internLocked(key string) string {
	if known, ok := s.keys[key]; ok {
		return known
	}
	s.keys[key] = key
	return key
}

// current is the newest version, perhaps a deletion, or nil.
func (s *Server) current(typ, id string) *row {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	return s.currentLocked(typ, id)
}

// living lists the rows of a type by id or by time; callers must not change the slice.
func (s *Server) living(typ string, byTime bool) []*row {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	t := s.tables[typ]
	if t == nil {
		return nil
	}
	list, order := &t.byID, byIDOrder
	if byTime {
		list, order = &t.byTime, byTimeOrder
	}
	if *list == nil {
		rows := make([]*row, 0, len(t.current))
		for _, r := range t.current {
			if !r.deleted() {
				rows = append(rows, r)
			}
		}
		slices.SortFunc(rows, order)
		*list = rows
	}
	return *list
}

// versionsOf lists a history, oldest first: of one resource, of a type (id empty) or of the server (both empty).
// Callers must not change the slice.
func (s *Server) versionsOf(typ, id string) []*row {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	if typ == "" {
		return s.log
	}
	t := s.tables[typ]
	switch {
	case t == nil:
		return nil
	case id == "":
		return t.log
	}
	return t.versions[id]
}
