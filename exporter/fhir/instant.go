package fhir

import (
	"fmt"
	"time"
)

// instantLayout is FHIR's instant with milliseconds, in UTC with "Z": servers differ in how they read an offset.
const instantLayout = "2006-01-02T15:04:05.000Z"

// ParseInstant reads a FHIR instant: a date and a time to the second or finer, with a zone (data type instant of FHIR
// R4). A year outside 1 to 9999 or a date that does not exist is an error.
func ParseInstant(s string) (time.Time, error) {
	t, err := parseStamp(s)
	if err != nil || t.Year() < 1 || !hasInstantForm(s) {
		return time.Time{}, fmt.Errorf("not an instant such as 2021-12-08T08:28:07.000Z")
	}
	return t, nil
}

// parseStamp reads a time that a server wrote. It is not choosy: an odd stamp must not stop an export.
func parseStamp(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	return t.UTC(), err
}

// parseStampText is parseStamp without an allocation for what is an instant by the letter.
func parseStampText(text []byte) (time.Time, error) {
	var t time.Time
	if t.UnmarshalText(text) == nil {
		return t.UTC(), nil
	}
	return parseStamp(string(text))
}

// hasInstantForm refuses what Go's parser lets through: hours of one digit, a comma before the fraction, and digits
// finer than nanoseconds, which it cuts.
func hasInstantForm(s string) bool {
	const seconds = len("2021-12-08T08:28:07")
	if len(s) <= seconds || s[seconds-3] != ':' {
		return false
	}
	digits := 0
	if s[seconds] == '.' {
		for digits = 0; s[seconds+1+digits] >= '0' && s[seconds+1+digits] <= '9'; digits++ {
		}
	}
	return s[seconds] != ',' && digits <= 9
}

// FormatInstant writes t as an instant with milliseconds in UTC. Finer digits are cut.
func FormatInstant(t time.Time) string { return t.UTC().Format(instantLayout) }

// formatBound writes a bound of a search window: whole seconds where it is one, since some servers drop or misread
// fractions (upstreams differ; see Profile.Milliseconds).
func formatBound(t time.Time) string {
	if t.Nanosecond() == 0 {
		return t.UTC().Format("2006-01-02T15:04:05Z")
	}
	return FormatInstant(t)
}
