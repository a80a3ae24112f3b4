package auth_test

import (
	"encoding/base64"
	"maps"
	"slices"
	"strings"
	"testing"

	"sidecar/proxy/auth"
)

func encodedText(text string) string { return base64.URLEncoding.EncodeToString([]byte(text)) }

func TestScopesOfSystemsGrantReadAndSearch(t *testing.T) {
	for value, want := range map[string]string{
		"":                        "",
		"system/Patient.rs":       "Patient",
		"system/Patient.cruds":    "Patient",
		"system/Patient.read":     "Patient",
		"system/Patient.*":        "Patient",
		"system/*.read":           "*",
		"system/*.rs openid":      "*",
		"system/A.rs system/B.rs": "A B",
		"\tsystem/A.rs\n":         "A",
		"system/Patient.r":        "",
		"system/Patient.s":        "",
		"system/Patient.sr":       "",
		"system/Patient.rrs":      "",
		"system/Patient.write":    "",
		"system/Patient.cud":      "",
		"system/Patient.":         "",
		"system/Patient":          "",
		"system/.rs":              "",
		"system/Patient.rs?a=b":   "",
		"system/Patient.rs.rs":    "",
		"System/Patient.rs":       "",
		"patient/Patient.rs":      "",
		"user/Patient.rs":         "",
		"Patient.rs":              "",
		"system/Patient.READ":     "",
	} {
		if got := strings.Join(slices.Sorted(maps.Keys(auth.ParseScopes(value))), " "); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
	var none auth.Scopes
	if all := auth.ParseScopes("system/*.rs"); !all.Allow("Patient") || !none.Allow("Patient") || auth.ParseScopes("").Allow("Patient") {
		t.Error("a type is allowed by all scopes and where nothing bounds them, and by no scope otherwise")
	}
}

// Ensure nothing is granted that no word of the value asks for, and that scopes only add to one another.
func FuzzParseScopes(f *testing.F) {
	for _, seed := range []string{"system/*.rs", "system/Patient.read user/*.rs", "system/Patient.rs?x=y", "system/.rs", "a/b.c  system/A.cruds", "system/é.rs"} {
		f.Add(seed, "system/Group.rs")
	}
	f.Fuzz(func(t *testing.T, one, other string) {
		scopes := auth.ParseScopes(one)
		if scopes == nil {
			t.Fatal("nil bounds nothing")
		}
		for typ := range scopes {
			if typ == "" || !strings.Contains(one, "system/"+typ+".") {
				t.Errorf("%q grants %q", one, typ)
			}
		}
		both := auth.ParseScopes(one + " " + other)
		want := maps.Clone(scopes)
		maps.Copy(want, auth.ParseScopes(other))
		if !maps.Equal(both, want) {
			t.Errorf("%q and %q: got %v, want %v", one, other, both, want)
		}
	})
}
