package fhirtest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// history answers the history of the server, of a type (id empty) or of one resource, newest first.
func (s *Server) history(w http.ResponseWriter, c *call, typ, id string) error {
	if s.p.NoHistory || c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		return refuse(http.StatusMethodNotAllowed, "history is not offered")
	}
	if typ == "" && s.p.NoSystemHistory || id == "" && s.p.HistoryInstanceOnly {
		return refuse(http.StatusMethodNotAllowed, "history is not offered at this level")
	}
	if id != "" && s.current(typ, id) == nil {
		return refuse(http.StatusNotFound, "resource is not known")
	}
	q := &query{typ: typ, applied: maps.Clone(c.values)}
	if err := s.parseCount(c, q); err != nil {
		return err
	}
	var since time.Time
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		switch name {
		case "_since":
			m, err := parseMoment(c.values.Get(name), s.p.granule())
			if err != nil {
				return err
			}
			since = m.from
		case "_count", "_format", "_pretty", shiftParam, s.p.pageParam():
		default:
			if s.p.refuses(c) {
				return refuse(http.StatusBadRequest, "unknown history parameter %q", name)
			}
		}
	}
	find := func() []*row {
		rows := slices.Clone(cutWindow(s.recorded(typ, id), window{from: since}))
		slices.Reverse(rows)
		return rows
	}
	res := &result{
		kind: historySet, path: "_history", order: descending, count: q.count, rows: find(), notes: q.notes, applied: q.applied,
	}
	if typ != "" {
		res.path = typ + "/_history"
	}
	if id != "" {
		res.path = typ + "/" + id + "/_history"
	}
	total := len(res.rows)
	res.total = &total
	if q.countOnly {
		return s.writePage(w, c, &page{kind: historySet, total: &total, self: c.link(res.path, q.applied), notes: q.notes})
	}
	if s.p.Paging == CachedPages {
		res.again = find
	}
	return s.writeResult(w, c, res, "")
}

// historyParts are the members of one history entry; resource is nil where the entry has none.
func (s *Server) historyParts(r *row) (resource, request, response []byte) {
	version := strconv.FormatInt(r.version, 10)
	address := r.name()
	if s.p.Tombstone == TombstoneUndated {
		address += "/_history/" + version
	} else if r.method == http.MethodPost || r.deleted() && s.p.Tombstone == TombstoneBody {
		address = r.typ
	}
	request = []byte(`{"method":` + quote(r.method) + `,"url":` + quote(address) + `}`)
	status := "200"
	switch {
	case r.deleted():
		status = "204"
	case r.created:
		status = "201"
	}
	modified := `,"lastModified":` + quote(s.p.instant(r.updated))
	if r.deleted() && s.p.Tombstone == TombstoneUndated {
		modified = ""
	}
	response = []byte(`{"status":` + quote(status) + `,"etag":` + quote(etag(r)) + modified + `}`)
	resource = r.body
	if r.deleted() && s.p.Tombstone == TombstoneStub {
		resource = fmt.Appendf(nil, `{"resourceType":%s,"id":%s,"meta":{"versionId":%s,"lastUpdated":%s}}`,
			quote(r.typ), quote(r.id), quote(version), quote(s.p.instant(r.updated)))
	}
	if r.deleted() && s.p.Tombstone == TombstoneBody {
		resource = s.lastBody(r)
	}
	return resource, request, response
}

// lastBody is the body before a deletion, with the tag and the meta of the deletion; nil when there is none.
func (s *Server) lastBody(deletion *row) []byte {
	var last *row
	for _, r := range s.versionsOf(deletion.typ, deletion.id) {
		if r.seq < deletion.seq && !r.deleted() && (last == nil || r.seq > last.seq) {
			last = r
		}
	}
	if last == nil {
		return nil
	}
	res, err := s.params.parse(last.body, false)
	if err != nil {
		return nil
	}
	body, err := res.stamped(last.id, strconv.FormatInt(deletion.version, 10), s.p.instant(deletion.updated))
	if err != nil {
		return nil
	}
	if body, err = tagMeta(body, `{"system":"https://aidbox.app","code":"deleted"}`); err != nil {
		return nil
	}
	return body
}
