package fhir

import (
	"net/url"
	"strconv"
	"strings"
	"time"
)

// QueryParam is one search parameter with its value, not yet encoded.
type QueryParam struct {
	Name, Value string
}

// Query is one search of one type.
type Query struct {
	Type string
	// Criteria are sent as they are, in order.
	Criteria []QueryParam
	// Filter are further criteria, which somebody else chose: the page of a Search with them fails with ErrNotApplied when its
	// self link does not name each.
	Filter []QueryParam
	// From and To bound lastUpdated, [From, To); a zero time leaves that side open.
	From, To time.Time
	// Sort is the value of _sort, empty for the server's own order.
	Sort string
	// Count is the number of rows asked for, 0 for the server's default.
	Count int
	// Patient narrows the search to the compartment of the Patient with this id: Patient/{id}/{Type}.
	Patient string
	// Post sends the search as a form, with nothing in the address: for lists that no address can hold.
	Post bool
	// ServerPages asks the server for next links, where the dialect would otherwise do without.
	ServerPages bool
	// IDsOnly asks for resources that hold no more than id and meta. A server that does not know that gives whole ones.
	IDsOnly bool

	// inclusive is set for a server whose "lt" holds the second, or millisecond, that it names.
	inclusive bool
}

// With returns a copy of q with more criteria.
func (q Query) With(criteria ...QueryParam) Query {
	q.Criteria = append(append([]QueryParam(nil), q.Criteria...), criteria...)
	return q
}

// Equal tells whether two queries ask for the same page.
func (q Query) Equal(other Query) bool {
	return q.path() == other.path() && q.Post == other.Post && q.ServerPages == other.ServerPages && q.encode() == other.encode()
}

// path is the address of the search below the base.
func (q Query) path() string {
	if q.Patient != "" {
		return "/Patient/" + url.PathEscape(q.Patient) + "/" + q.Type
	}
	return "/" + q.Type
}

// encode writes the query string. The window is always "ge" and "lt": the other prefixes differ between servers.
func (q Query) encode(extra ...QueryParam) string {
	var b strings.Builder
	add := func(name, value string) {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escape(name))
		b.WriteByte('=')
		b.WriteString(escape(value))
	}
	for _, p := range q.Criteria {
		add(p.Name, p.Value)
	}
	for _, p := range q.Filter {
		add(p.Name, p.Value)
	}
	if !q.From.IsZero() {
		add("_lastUpdated", "ge"+formatBound(q.From))
	}
	if !q.To.IsZero() {
		add("_lastUpdated", "lt"+q.before())
	}
	if q.Sort != "" {
		add("_sort", q.Sort)
	}
	if q.IDsOnly {
		add("_elements", "id,meta")
	}
	if q.Count > 0 {
		add("_count", strconv.Itoa(q.Count))
	}
	for _, p := range extra {
		add(p.Name, p.Value)
	}
	return b.String()
}

// before is what "lt" has to name so that the window ends at To.
func (q Query) before() string {
	switch {
	case !q.inclusive:
		return formatBound(q.To)
	case q.To.Nanosecond() == 0:
		return formatBound(q.To.Add(-time.Second))
	}
	return FormatInstant(q.To.Add(-time.Millisecond)) // with its fraction, so that it names a millisecond
}

// queryEscapes undoes what url.QueryEscape does to characters that a query may hold as they are; lists of references
// become a third shorter.
var queryEscapes = strings.NewReplacer("%3A", ":", "%2C", ",", "%2F", "/")

func escape(s string) string { return queryEscapes.Replace(url.QueryEscape(s)) }
