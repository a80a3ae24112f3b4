package fhirtest

import (
	"cmp"
	"slices"
	"time"
)

// strongHeader asks HealthLake for rows that an update hides otherwise.
const strongHeader = "X-Amz-Fhir-History-Consistency-Level"

// lateCommit is a transaction that was stamped and that nobody can see yet.
type lateCommit struct {
	writes []write
	at     timing
}

// usual is the timing of a write that begins now: its commit is as late as the personality makes it.
func (s *Server) usual() timing {
	now := s.Now()
	at := timing{stamp: now}
	if s.p.CommitLag == 0 {
		return at
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.p.LateOneIn > 1 && s.random.IntN(s.p.LateOneIn) > 0 {
		return at
	}
	at.visible = now.Add(time.Duration(1 + s.random.Int64N(int64(s.p.CommitLag))))
	return at
}

// CatchUp makes all that is late visible at once: commits, and writes that searches and histories do not show yet. A test
// calls it after it has put in what is to be there from the beginning.
func (s *Server) CatchUp() {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.late {
		if s.late[i].at.visible.After(now) {
			s.late[i].at.visible = now
		}
	}
	s.catchUpLocked(now)
	s.caughtUp = s.writes
}

// catchUpLocked carries out the late commits that are due, in the order in which they became visible.
func (s *Server) catchUpLocked(now time.Time) {
	if !slices.ContainsFunc(s.late, func(l lateCommit) bool { return !l.at.visible.After(now) }) {
		return
	}
	slices.SortStableFunc(s.late, func(a, b lateCommit) int { return cmp.Compare(a.at.visible.UnixNano(), b.at.visible.UnixNano()) })
	for len(s.late) > 0 && !s.late[0].at.visible.After(now) {
		due := s.late[0]
		s.late = s.late[1:]
		// The same writes were planned when they began, so only a server that is broken fails here.
		rows, err := s.planLocked(due.writes, due.at.stamp, true)
		if err != nil {
			panic(err)
		}
		s.applyLocked(rows, due.at.visible)
	}
}

// seenLocked says whether a reader who is late by lag sees the row.
func (s *Server) seenLocked(r *row, lag time.Duration, now time.Time) bool {
	return r.seq <= s.caughtUp || !now.Before(r.committed.Add(lag))
}

// indexedLocked is the version of one resource that a search finds, perhaps a deletion, or nil.
func (s *Server) indexedLocked(versions []*row, strong bool, now time.Time) *row {
	var newest, found *row
	for _, r := range versions {
		if newest == nil || r.seq > newest.seq {
			newest = r
		}
		if s.seenLocked(r, s.p.IndexLag, now) && (found == nil || r.seq > found.seq) {
			found = r
		}
	}
	if newest == nil || strong || newest.created || newest.deleted() || s.seenLocked(newest, s.p.HiddenOnUpdate, now) {
		return found
	}
	return nil
}

// searchable lists the rows of a type that a search can find, by id or by time; callers must not change the slice.
func (s *Server) searchable(typ string, strong, byTime bool) []*row {
	if s.p.IndexLag == 0 && s.p.HiddenOnUpdate == 0 {
		return s.living(typ, byTime)
	}
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	t := s.tables[typ]
	if t == nil {
		return nil
	}
	rows := make([]*row, 0, len(t.current))
	for _, versions := range t.versions {
		if r := s.indexedLocked(versions, strong, now); r != nil && !r.deleted() {
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

// found is the version of one resource that a search finds, or nil.
func (s *Server) found(typ, id string, strong bool) *row {
	if s.p.IndexLag == 0 && s.p.HiddenOnUpdate == 0 {
		return s.current(typ, id)
	}
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	if t := s.tables[typ]; t != nil {
		return s.indexedLocked(t.versions[id], strong, now)
	}
	return nil
}

// recorded lists the versions that a history shows; callers must not change the slice.
func (s *Server) recorded(typ, id string) []*row {
	versions := s.versionsOf(typ, id)
	if s.p.HistoryLag == 0 {
		return versions
	}
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return keep(versions, func(r *row) bool { return s.seenLocked(r, s.p.HistoryLag, now) })
}
