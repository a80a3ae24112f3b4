package proxy

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"sidecar/state"
)

// nextFilter is a comma that begins another filter. Any other one belongs to a value, as in gender=male,female.
var nextFilter = regexp.MustCompile(`,[A-Z][A-Za-z]*\?`)

// splitFilters splits the comma lists of the guide's second version.
func splitFilters(values []string) []string {
	var all []string
	for _, value := range values {
		begin := 0
		for _, comma := range nextFilter.FindAllStringIndex(value, -1) {
			all = append(all, value[begin:comma[0]])
			begin = comma[0] + 1
		}
		all = append(all, value[begin:])
	}
	return all
}

// criteria are the parameters of a search that begin with an underscore and choose rows (FHIR, section "Parameters for all
// resources"). All others say how a result looks, which the guide forbids in a filter, or how the search is done.
var criteria = []string{
	"_content", "_filter", "_has", "_id", "_in", "_language", "_lastUpdated", "_list", "_profile", "_security", "_source", "_tag", "_text",
}

// maxFilters bounds the filters of one kick-off: each one is a crawl of its type.
const maxFilters = 100

func (r *reading) typeFilters(values []string) {
	filters := splitFilters(values)
	if len(filters) > maxFilters {
		r.fault("_typeFilter", "too-costly", "a kick-off may have 100 filters in _typeFilter at most")
		return
	}
	for _, value := range filters {
		typ, query, found := strings.Cut(value, "?")
		if !found || !isWord(typ) {
			r.fault("_typeFilter", "invalid", "a _typeFilter does not begin with a resource type and a question mark; its query must be percent-encoded")
			continue
		}
		query = mendQuery(query)
		if wrong := wrongInFilter(query); wrong != "" {
			r.fault("_typeFilter", "invalid", "_typeFilter of "+typ+" "+wrong)
			continue
		}
		if filter := (state.TypeFilter{Type: typ, Query: query}); !slices.Contains(r.Filters, filter) {
			r.Filters = append(r.Filters, filter)
		}
	}
}

// wrongInFilter says why a query cannot be a filter; empty for one that can. Values are not repeated.
func wrongInFilter(query string) string {
	given, err := url.ParseQuery(query)
	if err != nil {
		return "cannot be read: check its percent signs and semicolons"
	}
	for name, values := range given {
		base, _, _ := strings.Cut(name, ":")
		switch {
		case base == "" || slices.Contains(values, ""):
			return "has a parameter without name or value" // which servers pass over
		case base[0] == '_' && !slices.Contains(criteria, base):
			return "holds " + printable(base) + ", which is not a criterion of a search"
		}
	}
	if len(given) == 0 {
		return "has no criterion"
	}
	return ""
}

// zoned is an instant whose zone's plus was not encoded twice, as it would have to be, and thus arrives as plus or blank.
var zoned = regexp.MustCompile(`(T\d\d:\d\d(?::\d\d(?:\.\d+)?)?)[ +](\d\d:\d\d)`)

// mendQuery encodes what may not stand in a query and leaves the rest in the client's own encoding.
func mendQuery(query string) string {
	query = zoned.ReplaceAllString(query, "$1%2B$2")
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c >= 0x7f || strings.IndexByte("\"#<>[]\\^`{|}", c) >= 0 {
			const digits = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
