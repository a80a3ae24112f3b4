package fhirtest

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sort"
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
	typ     string
	ids     []string
	byIDs   bool
	window  window
	filters []func(*row) bool
	order   string
	count   int
	// countOnly asks for the total and no rows, total for both.
	countOnly, total bool
	// applied are the parameters that links repeat; notes are outcome entries.
	applied url.Values
	notes   [][]byte
}

// parseQuery reads the parameters of a search. It fails with the refusal that the personality gives.
func (s *Server) parseQuery(c *call, typ string) (*query, error) {
	q := &query{typ: typ, applied: maps.Clone(c.values), order: byID}
	if s.p.ByTime {
		q.order = ascending
	}
	if err := s.parseCount(c, q); err != nil {
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
			if s.p.Unknown == UnknownRefused || c.strict {
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
	case "_count", "_format", "_pretty", "_elements":
		return true, nil
	case "_page":
		return s.p.Paging == OffsetPages, nil
	case "ct":
		return s.p.Paging == KeysetPages, nil
	case "_total":
		q.total = value == "accurate"
		return true, nil
	case "_summary":
		if value == "count" && s.p.NoSummaryCount {
			return true, refuse(http.StatusBadRequest, "_summary=count is not supported")
		}
		q.countOnly = q.countOnly || value == "count"
		return true, nil
	case "_sort":
		return true, s.parseSort(q, value)
	case "_id":
		if value != "" {
			q.addIDs(strings.Split(value, ","))
		}
		return true, nil
	case "_lastUpdated":
		return true, s.parseLastUpdated(q, value)
	}
	if rest, ok := strings.CutPrefix(name, "_has:"); ok {
		return s.parseHas(q, rest, value)
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
			q.order = value
		}
		return nil
	}
	return refuse(http.StatusBadRequest, "_sort offers _lastUpdated, -_lastUpdated, _id and -_id")
}

func (s *Server) parseLastUpdated(q *query, value string) error {
	var spans []window
	for one := range strings.SplitSeq(value, ",") {
		w, err := parseWindow(one, s.p.granule())
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

// parseReference reads a reference parameter with an optional modifier: a type, or missing.
func (s *Server) parseReference(c *call, q *query, name, value string) (bool, error) {
	name, modifier, _ := strings.Cut(name, ":")
	param, ok := s.params.find(q.typ, name)
	if !ok {
		return false, nil
	}
	if modifier == "missing" {
		if value != "true" && value != "false" {
			return true, refuse(http.StatusBadRequest, ":missing takes true or false")
		}
		if !s.p.NoPatientLists {
			q.filters = append(q.filters, func(r *row) bool {
				has := slices.ContainsFunc(r.refs, func(f ref) bool { return f.param == param.name })
				return has == (value == "false")
			})
		}
		return true, nil
	}
	if modifier != "" && !slices.Contains(resourceTypes, modifier) {
		return true, refuse(http.StatusBadRequest, "unknown modifier or chain of parameter %s", name)
	}
	if s.p.NoPatientLists || value == "" {
		return true, nil
	}
	target := modifier
	if target == "" {
		target = param.target
	}
	whole, bare := referenceValues(value, target, c.base)
	q.filters = append(q.filters, func(r *row) bool {
		return slices.ContainsFunc(r.refs, func(f ref) bool {
			if f.param != param.name {
				return false
			}
			return whole[f.key] || len(bare) > 0 && bare[f.key[strings.IndexByte(f.key, '/')+1:]]
		})
	})
	return true, nil
}

// referenceValues splits the list of a reference parameter into keys with a type and ids without one.
func referenceValues(list, target, base string) (whole, bare map[string]bool) {
	whole, bare = map[string]bool{}, map[string]bool{}
	for value := range strings.SplitSeq(list, ",") {
		value = strings.TrimPrefix(value, base+"/")
		switch {
		case value == "":
			continue
		case !strings.Contains(value, "/") && target == "":
			bare[value] = true
			continue
		case !strings.Contains(value, "/"):
			value = target + "/" + value
		}
		whole[value] = true
		if !strings.Contains(value, "://") {
			whole[base+"/"+value] = true
		}
	}
	return whole, bare
}

// parseHas reads `_has:Type:param:_id=list`: rows that a resource of the list refers to.
func (s *Server) parseHas(q *query, rest, value string) (bool, error) {
	parts := strings.Split(rest, ":")
	if len(parts) != 3 || parts[2] != "_id" && parts[2] != "id" {
		return true, refuse(http.StatusBadRequest, "_has is offered for _id only")
	}
	if _, ok := s.params.find(parts[0], parts[1]); !ok {
		return false, nil
	}
	if s.p.NoPatientLists {
		return true, nil
	}
	targets := map[string]bool{}
	for id := range strings.SplitSeq(value, ",") {
		holder := s.current(parts[0], id)
		if holder == nil {
			continue
		}
		for _, f := range holder.refs {
			if f.param == parts[1] {
				targets[f.key] = true
			}
		}
	}
	q.filters = append(q.filters, func(r *row) bool { return targets[r.name()] })
	return true, nil
}

// find runs a query. The result may be shared: callers must not change it.
func (s *Server) find(q *query) []*row {
	byTime := q.order == ascending || q.order == descending
	var rows []*row
	if q.byIDs {
		rows = s.lookUp(q, byTime)
	} else {
		rows = s.living(q.typ, byTime)
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
		if r := s.current(q.typ, id); r != nil && !r.deleted() && !slices.Contains(rows, r) {
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

// search answers a search of one type.
func (s *Server) search(w http.ResponseWriter, c *call, typ string) error {
	q, err := s.parseQuery(c, typ)
	if err != nil {
		return err
	}
	if q.countOnly {
		rows := s.find(q)
		total := len(rows)
		return s.writePage(w, c, &page{kind: searchset, total: &total, self: q.link(c), notes: q.notes})
	}
	return s.firstPage(w, c, q)
}

// link is the address of the search itself with the parameters that were applied.
func (q *query) link(c *call) string { return c.link(q.typ, q.applied) }

func (c *call) link(path string, values url.Values) string {
	link := c.base + "/" + path
	if len(values) > 0 {
		link += "?" + values.Encode()
	}
	return link
}
