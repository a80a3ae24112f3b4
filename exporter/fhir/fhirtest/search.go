package fhirtest

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Orders of a result.
const (
	ascending  = "_lastUpdated"
	descending = "-_lastUpdated"
	byID       = "_id"
	byIDDown   = "-_id"
)

// query is one parsed search.
type query struct {
	typ string
	// path is the address below the base that links repeat.
	path    string
	ids     []string
	byIDs   bool
	window  window
	filters []func(*row) bool
	order   string
	count   int
	// countOnly asks for the total and no rows, total for both.
	countOnly, total bool
	// elements are the members that `_elements` asks for, nil for all.
	elements []string
	// strong asks for rows that an update hides; sorted tells that the client chose the order.
	strong, sorted bool
	// applied are the parameters that links repeat; notes are outcome entries.
	applied url.Values
	notes   [][]byte
}

// parseQuery reads the parameters of a search. It fails with the refusal that the personality gives.
func (s *Server) parseQuery(c *call, typ string) (*query, error) {
	q := &query{typ: typ, path: typ, applied: maps.Clone(c.values), order: s.p.defaultOrder()}
	q.strong = c.r.Header.Get(strongHeader) == "strong"
	q.total = s.p.TotalAlways
	if c.sees != nil {
		q.filters = append(q.filters, func(r *row) bool { return c.sees(r.typ, r.id) })
	}
	if err := s.parseCount(c, q); err != nil {
		return nil, err
	}
	if err := s.checkLimits(c, typ); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.values)) {
		for _, value := range c.values[name] {
			if s.p.IgnoreEverything {
				continue
			}
			known, err := s.parseParam(c, q, name, value)
			if err != nil {
				return nil, err
			}
			if known {
				continue
			}
			if s.p.refuses(c) {
				return nil, refuse(http.StatusBadRequest, "unknown search parameter %q for resource type %s", name, typ)
			}
			if s.p.Unknown == UnknownReported {
				q.applied.Del(name)
				q.notes = append(q.notes, outcome("warning", "not-supported", "a search parameter is not supported and was ignored"))
			}
			break
		}
	}
	return q, nil
}

// refuses says whether an unknown parameter is an error.
func (p *Personality) refuses(c *call) bool {
	return p.Unknown == UnknownRefused || p.Unknown == UnknownStrict && !c.lenient || c.strict
}

// defaultOrder is the order of results without `_sort`.
func (p *Personality) defaultOrder() string {
	switch {
	case p.NewestFirst:
		return descending
	case p.ByTime:
		return ascending
	}
	return byID
}

// checkLimits refuses what the personality does not take whatever the parameters mean.
func (s *Server) checkLimits(c *call, typ string) error {
	if s.p.MaxOrValues > 0 {
		for _, values := range c.values {
			for _, value := range values {
				if strings.Count(value, ",") >= s.p.MaxOrValues {
					return refuse(http.StatusBadRequest, "a search parameter has too many values")
				}
			}
		}
	}
	if !s.p.RequirePatient || typ == "Patient" || s.p.ProvenanceByTarget && typ == "Provenance" && c.values.Get("target") != "" {
		return nil
	}
	for _, name := range []string{"patient", "subject", "_id"} {
		if c.values.Get(name) != "" {
			return nil
		}
	}
	return refuse(http.StatusBadRequest, "a search of this type needs patient, subject or _id")
}

// parseCount sets the page size.
func (s *Server) parseCount(c *call, q *query) error {
	q.count = s.p.DefaultCount
	if q.count == 0 {
		q.count = 20
	}
	if v := c.values.Get("_count"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return refuse(http.StatusBadRequest, "_count is not a whole number")
		}
		q.count = n
		q.countOnly = n == 0
	}
	if s.p.MaxCount > 0 && q.count > s.p.MaxCount {
		if s.p.RefuseLargeCount {
			return refuse(http.StatusBadRequest, "_count is above the maximum of %d", s.p.MaxCount)
		}
		q.count = s.p.MaxCount
		if s.p.ReportClamp {
			q.notes = append(q.notes, outcome("information", "informational",
				"_count was cut to the maximum of "+strconv.Itoa(s.p.MaxCount)))
		}
	}
	return nil
}

// parseParam reads one parameter and says whether the server knows it.
func (s *Server) parseParam(c *call, q *query, name, value string) (bool, error) {
	switch name {
	case "_count", "_format", "_pretty", s.p.pageParam():
		return true, nil
	case cursorParam:
		return s.p.Cursors, nil
	case shiftParam:
		return s.p.ShiftWarning, nil
	case "_revinclude":
		return s.p.RevIncludes && value == revInclude, nil
	case "_elements":
		q.elements = strings.Split(value, ",")
		return true, nil
	case "_total":
		q.total = value == "accurate" || s.p.TotalAlways && value != "none"
		return true, nil
	case "_summary":
		if value == "count" && s.p.NoSummaryCount {
			return true, refuse(http.StatusBadRequest, "_summary=count is not supported")
		}
		q.countOnly = q.countOnly || value == "count"
		return true, nil
	case "_sort":
		if s.p.NoLastUpdated && strings.TrimPrefix(value, "-") == ascending {
			return false, nil
		}
		return true, s.parseSort(q, value)
	case "_id":
		if value != "" {
			q.addIDs(strings.Split(value, ","))
		}
		return true, nil
	case "_lastUpdated":
		if s.p.NoLastUpdated {
			return false, nil
		}
		return true, s.parseLastUpdated(q, value)
	}
	if rest, ok := strings.CutPrefix(name, "_has:"); ok && !s.p.NoHas {
		return s.parseHas(q, rest, value)
	}
	if q.parseCode(name, value) {
		return true, nil
	}
	return s.parseReference(c, q, name, value)
}

func (q *query) addIDs(ids []string) {
	if q.byIDs {
		ids = slices.DeleteFunc(ids, func(id string) bool { return !slices.Contains(q.ids, id) })
	}
	q.ids, q.byIDs = ids, true
}

func (s *Server) parseSort(q *query, value string) error {
	switch value {
	case ascending, descending, byID, byIDDown:
		if !s.p.IgnoreSort {
			q.order, q.sorted = value, true
		}
		return nil
	}
	return refuse(http.StatusBadRequest, "_sort offers _lastUpdated, -_lastUpdated, _id and -_id")
}

func (s *Server) parseLastUpdated(q *query, value string) error {
	var spans []window
	for one := range strings.SplitSeq(value, ",") {
		w, err := parseWindow(one, &s.p)
		if err != nil {
			return err
		}
		spans = append(spans, w)
	}
	switch {
	case s.p.IgnoreLastUpdated:
	case len(spans) == 1:
		q.window.after(spans[0].from)
		if !spans[0].to.IsZero() {
			q.window.before(spans[0].to)
		}
	default:
		q.filters = append(q.filters, func(r *row) bool {
			return slices.ContainsFunc(spans, func(w window) bool { return w.holds(r.updated) })
		})
	}
	return nil
}

// search answers a search of one type.
func (s *Server) search(w http.ResponseWriter, c *call, typ string) error {
	q, err := s.parseQuery(c, typ)
	if err != nil {
		return err
	}
	return s.answer(w, c, q)
}

// answer writes the count or the page that a query asks for.
func (s *Server) answer(w http.ResponseWriter, c *call, q *query) error {
	if q.countOnly {
		total := len(s.find(q))
		return s.writePage(w, c, &page{kind: searchset, total: &total, self: q.link(c), notes: q.notes})
	}
	return s.firstPage(w, c, q)
}

// link is the address of the search itself with the parameters that were applied.
func (q *query) link(c *call) string { return c.link(q.path, q.applied) }

func (c *call) link(path string, values url.Values) string {
	link := c.base + "/" + path
	if len(values) > 0 {
		link += "?" + values.Encode()
	}
	return link
}
