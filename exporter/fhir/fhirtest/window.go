package fhirtest

import (
	"net/http"
	"strings"
	"time"
)

// prefixes of a date parameter.
const prefixes = "eq ne gt lt ge le sa eb"

// moment is a date or instant of a query: the span of time that it names at its precision.
type moment struct{ from, to time.Time }

// dateLayouts are the forms without fractions, with the step that their precision names.
var dateLayouts = []struct {
	layout string
	years  int
	months int
	days   int
	step   time.Duration
}{
	{"2006", 1, 0, 0, 0},
	{"2006-01", 0, 1, 0, 0},
	{"2006-01-02", 0, 0, 1, 0},
	{"2006-01-02T15:04Z07:00", 0, 0, 0, time.Minute},
	{"2006-01-02T15:04", 0, 0, 0, time.Minute},
	{"2006-01-02T15:04:05Z07:00", 0, 0, 0, time.Second},
	{"2006-01-02T15:04:05", 0, 0, 0, time.Second},
}

// parseMoment reads a date; a fraction narrows the span to its last digit. A server of whole seconds cuts fractions.
func parseMoment(value string, granule time.Duration) (moment, error) {
	for _, l := range dateLayouts {
		t, err := time.Parse(l.layout, value)
		if err != nil {
			continue
		}
		step := l.step
		if _, fraction, ok := strings.Cut(value, "."); ok && step == time.Second {
			digits := strings.IndexFunc(fraction, func(r rune) bool { return r < '0' || r > '9' })
			if digits < 0 {
				digits = len(fraction)
			}
			for range min(digits, 9) {
				step /= 10
			}
		}
		if step > 0 && step < granule {
			step = granule
		}
		if step > 0 {
			t = t.UTC().Truncate(step)
		}
		return moment{t, t.AddDate(l.years, l.months, l.days).Add(step)}, nil
	}
	return moment{}, refuse(http.StatusBadRequest, "invalid date or instant")
}

// window is a half-open span of lastUpdated; a zero end is open.
type window struct{ from, to time.Time }

func (w *window) after(t time.Time) {
	if t.After(w.from) {
		w.from = t
	}
}

func (w *window) before(t time.Time) {
	if w.to.IsZero() || t.Before(w.to) {
		w.to = t
	}
}

func (w *window) holds(t time.Time) bool {
	return !t.Before(w.from) && (w.to.IsZero() || t.Before(w.to))
}

// parseWindow reads one value of _lastUpdated, prefix and all.
func parseWindow(value string, p *Personality) (window, error) {
	prefix := "eq"
	if len(value) > 2 && value[0] >= 'a' && strings.Contains(prefixes, value[:2]) {
		prefix, value = value[:2], value[2:]
	}
	m, err := parseMoment(value, p.granule())
	if err != nil {
		return window{}, err
	}
	if prefix == "lt" && p.InclusiveLT {
		prefix = "le"
	}
	switch prefix {
	case "eq":
		return window(m), nil
	case "ge":
		return window{from: m.from}, nil
	case "gt", "sa":
		return window{from: m.to}, nil
	case "lt", "eb":
		return window{to: m.from}, nil
	case "le":
		return window{to: m.to}, nil
	}
	return window{}, refuse(http.StatusBadRequest, "date prefix %s is not offered", prefix)
}
