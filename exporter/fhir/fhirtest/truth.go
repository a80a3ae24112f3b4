package fhirtest

import (
	"slices"
	"time"
)

// LogEntry is one version of one resource.
type LogEntry struct {
	Type, ID string
	Version  int64
	// Updated is the lastUpdated; Visible is when the version could first be read. A late commit has it long after.
	Updated, Visible time.Time
	Deleted          bool
	// Body is what a read with `_pretty=false` gives, nil for a deletion. It is shared: callers must not change it.
	Body []byte
}

// Log lists every version in the order of the commits. Commits that are still to become visible are not in it.
func (s *Server) Log() []LogEntry {
	now := s.Now()
	s.mu.Lock()
	s.catchUpLocked(now)
	rows := s.commits // only ever appended to
	s.mu.Unlock()
	entries := make([]LogEntry, len(rows))
	for i, r := range rows {
		entries[i] = LogEntry{r.typ, r.id, r.version, r.updated, r.committed, r.deleted(), r.body}
	}
	return entries
}

// Keys lists as Type/id, sorted, the resources that exist now, and those that existed once.
func (s *Server) Keys() (living, gone []string) {
	now := s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.catchUpLocked(now)
	for _, t := range s.tables {
		for _, r := range t.current {
			if r.deleted() {
				gone = append(gone, r.name())
			} else {
				living = append(living, r.name())
			}
		}
	}
	slices.Sort(living)
	slices.Sort(gone)
	return living, gone
}

// KeysSince lists as Type/id, sorted, the resources of a type that exist now and were not written before t.
func (s *Server) KeysSince(typ string, t time.Time) []string {
	var keys []string
	for _, r := range s.living(typ, false) {
		if !r.updated.Before(t) {
			keys = append(keys, r.name())
		}
	}
	return keys
}

// AsOf is the state of the server at t, to judge an export by, keyed Type/id: of each resource the newest version with a
// lastUpdated up to and including t, also when it was committed later than t. Newest goes by the order of the versions,
// not by lastUpdated, which may go back within a resource. Ask after the last late commit has become visible. It reads
// the log of the versions alone, so no quirk of the searches reaches it.
func (s *Server) AsOf(t time.Time) map[string][]byte {
	state := map[string][]byte{}
	for name, e := range s.newestUpTo(t) {
		if !e.Deleted {
			state[name] = e.Body
		}
	}
	return state
}

// DeletedAsOf lists what is deleted at t, keyed Type/id, with the lastUpdated of the deletion. See AsOf.
func (s *Server) DeletedAsOf(t time.Time) map[string]time.Time {
	gone := map[string]time.Time{}
	for name, e := range s.newestUpTo(t) {
		if e.Deleted {
			gone[name] = e.Updated
		}
	}
	return gone
}

func (s *Server) newestUpTo(t time.Time) map[string]LogEntry {
	newest := map[string]LogEntry{}
	for _, e := range s.Log() {
		if !e.Updated.After(t) {
			newest[e.Type+"/"+e.ID] = e
		}
	}
	return newest
}
