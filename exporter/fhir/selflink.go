package fhir

import (
	"net/url"
	"slices"
	"strings"
)

// ParseCriteria reads the parameters of a query string in their order. What is not encoded properly stands for itself.
func ParseCriteria(query string) []QueryParam {
	var criteria []QueryParam
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		criteria = append(criteria, QueryParam{decoded(name), decoded(value)})
	}
	return criteria
}

func decoded(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}

// names tells whether a self link repeats each of the criteria, as often as it is asked for. A plus that a server does not
// encode reads as a blank.
func names(self string, criteria []QueryParam) bool {
	if len(criteria) == 0 {
		return true
	}
	_, query, _ := strings.Cut(self, "?")
	applied := ParseCriteria(query)
	for _, want := range criteria {
		i := slices.IndexFunc(applied, func(p QueryParam) bool {
			return p.Name == want.Name && strings.ReplaceAll(p.Value, " ", "+") == strings.ReplaceAll(want.Value, " ", "+")
		})
		if i < 0 {
			return false
		}
		applied = slices.Delete(applied, i, i+1)
	}
	return true
}
