package fhir

import (
	"encoding/json"
	"fmt"
	"time"
)

// Group is what a FHIR Group says about its members.
type Group struct {
	// LastUpdated is meta.lastUpdated, zero where there is none.
	LastUpdated time.Time
	Members     []Member
	// Person tells that the members are persons, as far as the Group says what they are.
	Person bool
	// Characteristic tells that membership is also, or only, described by characteristics, which nobody here resolves.
	Characteristic bool
}

// Member is one member of a Group.
type Member struct {
	// Reference is the literal reference of member.entity.
	Reference string
	Inactive  bool
	// Start and End are the bounds of member.period, zero where open. End is exclusive.
	Start, End time.Time
}

// ActiveAt tells whether the member belongs to the Group at t: not inactive, and t within the period.
func (m *Member) ActiveAt(t time.Time) bool {
	return !m.Inactive && !t.Before(m.Start) && (m.End.IsZero() || t.Before(m.End))
}

// ParseGroup reads a Group resource. It fails with ErrMalformed when it is none or a member's period cannot be read: a
// guess would export a patient too many or too few.
func ParseGroup(resource []byte) (*Group, error) {
	var wire struct {
		ResourceType   string
		Type           string
		Meta           struct{ LastUpdated string }
		Characteristic []json.RawMessage
		Member         []struct {
			Entity   struct{ Reference string }
			Inactive bool
			Period   struct{ Start, End string }
		}
	}
	if json.Unmarshal(resource, &wire) != nil || wire.ResourceType != "Group" {
		return nil, fmt.Errorf("read Group: not a Group: %w", ErrMalformed)
	}
	group := &Group{Person: wire.Type == "person" || wire.Type == "", Characteristic: len(wire.Characteristic) > 0, Members: make([]Member, 0, len(wire.Member))}
	if updated, err := parseStamp(wire.Meta.LastUpdated); err == nil {
		group.LastUpdated = updated
	}
	for _, m := range wire.Member {
		member := Member{Reference: m.Entity.Reference, Inactive: m.Inactive}
		var err error
		if m.Period.Start != "" {
			if member.Start, _, err = parseDateTime(m.Period.Start); err != nil {
				return nil, fmt.Errorf("read Group: period of a member: %w", ErrMalformed)
			}
		}
		if m.Period.End != "" {
			if _, member.End, err = parseDateTime(m.Period.End); err != nil {
				return nil, fmt.Errorf("read Group: period of a member: %w", ErrMalformed)
			}
		}
		group.Members = append(group.Members, member)
	}
	return group, nil
}

// parseDateTime reads a FHIR dateTime and returns the span [from, to) that it names: a year, a month, a day, a second
// or finer. Dates are taken in UTC.
func parseDateTime(s string) (from, to time.Time, err error) {
	for _, form := range []struct {
		layout              string
		years, months, days int
		span                time.Duration
	}{
		{"2006", 1, 0, 0, 0},
		{"2006-01", 0, 1, 0, 0},
		{"2006-01-02", 0, 0, 1, 0},
		{time.RFC3339Nano, 0, 0, 0, time.Second},
	} {
		if from, err = time.Parse(form.layout, s); err == nil {
			from = from.UTC()
			return from, from.AddDate(form.years, form.months, form.days).Add(form.span), nil
		}
	}
	return time.Time{}, time.Time{}, err
}
