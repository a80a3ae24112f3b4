package proxy

import (
	"net/http"
	"strings"

	"sidecar/state"
)

// preferences are what a client prefers (RFC 7240; Bulk Data guide, section "Bulk Data Kick-off Request").
type preferences struct {
	respondAsync   bool
	separateStatus bool
	// handling is strict, lenient, or empty where the client says neither.
	handling string
}

// parsePrefer reads all Prefer headers: comma lists, names in any case, values as tokens or quoted. A semicolon, which
// begins a preference's own parameters, is taken for a comma too, as FHIR clients write it. Of a preference that is
// repeated the first one counts (RFC 7240, section 2).
func parsePrefer(header http.Header) preferences {
	var p preferences
	for _, line := range header.Values("Prefer") {
		for _, part := range splitQuoted(line, ",;") {
			name, value, _ := strings.Cut(part, "=")
			value = strings.ToLower(unquote(strings.TrimSpace(value)))
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "respond-async":
				p.respondAsync = true
			case "separate-export-status":
				p.separateStatus = true
			case "handling":
				if p.handling == "" && (value == "strict" || value == "lenient") {
					p.handling = value
				}
			}
		}
	}
	return p
}

func (p preferences) lenient() bool { return p.handling == "lenient" }

// applied is the Preference-Applied of an accepted kick-off. With separate-export-status the guide wants respond-async
// named as well, asked for or not.
func (p preferences) applied() string {
	var names []string
	if p.respondAsync || p.separateStatus {
		names = append(names, "respond-async")
	}
	if p.separateStatus {
		names = append(names, "separate-export-status")
	}
	if p.handling != "" {
		names = append(names, "handling="+p.handling)
	}
	return strings.Join(names, ", ")
}

// settle decides about what is wrong with a kick-off: it is refused, or, where the client prefers that and may, ignored and
// reported by the export.
func (p preferences) settle(kickoff *state.Kickoff, wrong faults) error {
	if len(wrong) == 0 {
		return nil
	}
	if !p.lenient() || len(wrong) > maxShown {
		return wrong
	}
	var left faults
	for _, f := range wrong {
		if f.ignorable(kickoff) {
			kickoff.Ignored = append(kickoff.Ignored, state.Issue{Severity: "warning", Code: f.code, Text: "ignored: " + f.text})
		} else {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		return left
	}
	return nil
}

// splitQuoted splits a header's value at any of the separators that stands outside of a quoted string.
func splitQuoted(s, separators string) []string {
	var parts []string
	begin, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(separators, s[i]) >= 0:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[begin:])
}

// unquote returns what a quoted string holds, and anything else as it is.
func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '\\' && i+1 < len(s)-1 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
