package auth

import "strings"

// Scopes are the types that a token lets its client read and search, from its scopes for systems: system/Patient.rs (SMART
// 2) and system/Patient.read (SMART 1). Not nil, so that a token without any grants nothing.
type Scopes map[string]bool

// allTypes is how a scope names every type.
const allTypes = "*"

// ParseScopes reads the value of the claim scope. A scope with a query behind it, which narrows it to some resources, grants
// nothing: what it leaves out could not be told from what there is.
func ParseScopes(value string) Scopes {
	scopes := Scopes{}
	for scope := range strings.FieldsSeq(value) {
		resource, rights, ok := strings.Cut(strings.TrimPrefix(scope, "system/"), ".")
		if ok && resource != "" && strings.HasPrefix(scope, "system/") && searches(rights) {
			scopes[resource] = true
		}
	}
	return scopes
}

// searches tells whether rights are enough to read and to search: "read" and "*" of SMART 1, "r" and "s" among "cruds" of
// SMART 2, where the letters stand in this order.
func searches(rights string) bool {
	if rights == "read" || rights == allTypes {
		return true
	}
	for _, right := range "cruds" {
		rest, has := strings.CutPrefix(rights, string(right))
		if !has && (right == 'r' || right == 's') {
			return false
		}
		rights = rest
	}
	return rights == ""
}

// Allow tells whether a type may be exported. Nil scopes bound nothing.
func (s Scopes) Allow(typ string) bool { return s == nil || s[allTypes] || s[typ] }
