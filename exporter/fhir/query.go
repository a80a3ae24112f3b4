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
	// From and To bound lastUpdated, [From, To); a zero time leaves that side open.
	From, To time.Time
	// Sort is the value of _sort, empty for the server's own order.
	Sort string
	// Count is the number of rows asked for, 0 for the server's default.
	Count int
	// ServerPages asks the server for next links, where the dialect would otherwise do without.
	ServerPages bool
	// Post sends the parameters as the form of POST Type/_search, with nothing in the address.
	Post bool
	// Patient searches in the compartment of the Patient with this id (Patient/{id}/{Type}); empty for the whole type.
	Patient string
}

// With returns a copy of q with more criteria.
func (q Query) With(criteria ...QueryParam) Query {
	q.Criteria = append(append([]QueryParam(nil), q.Criteria...), criteria...)
	return q
}

// Equal tells whether two queries ask for the same page.
func (q Query) Equal(other Query) bool {
	return q.Type == other.Type && q.Post == other.Post && q.Patient == other.Patient && q.ServerPages == other.ServerPages && q.encode() == other.encode()
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
	if !q.From.IsZero() {
		add("_lastUpdated", "ge"+formatBound(q.From))
	}
	if !q.To.IsZero() {
		add("_lastUpdated", "lt"+formatBound(q.To))
	}
	if q.Sort != "" {
		add("_sort", q.Sort)
	}
	if q.Count > 0 {
		add("_count", strconv.Itoa(q.Count))
	}
	for _, p := range extra {
		add(p.Name, p.Value)
	}
	return b.String()
}

// queryEscapes undoes what url.QueryEscape does to characters that a query may hold as they are; lists of references
// become a third shorter.
var queryEscapes = strings.NewReplacer("%3A", ":", "%2C", ",", "%2F", "/")

func escape(s string) string { return queryEscapes.Replace(url.QueryEscape(s)) }
