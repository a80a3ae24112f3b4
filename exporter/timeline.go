package exporter

import (
	"time"

	"sidecar/exporter/fhir"
)

// timeline bounds the times of deletions that carry none, as HAPI's: a history is newest first, so that a deletion is not
// later than the dated entry above it, nor earlier than the one below it. That holds within a page. Under writes the next
// page begins with entries that were shown before or came since, and a reading that begins anew starts from nothing.
type timeline struct {
	here, turned position // turned is where the last whole page ended
	// inPage tells that the dated entry above stands on the same page.
	inPage bool
	// unsorted tells that a page was not newest first: then neighbours say nothing.
	unsorted bool
	gaps     int64 // how many there were
}

// position is a place in a history.
type position struct {
	above time.Time // of the last dated entry, zero where there is none
	gap   *gap      // nil where no deletion came since then
}

// gap is where deletions without a time stand between two dated entries, as many as may be.
type gap struct {
	number int64
	above  time.Time
	// below is known once it is passed, and zero at the end of the history.
	below  time.Time
	passed bool
}

// deletion is a version without a time.
type deletion struct {
	version string
	// latest and earliest bound its time, zero where nothing does.
	latest, earliest time.Time

	gap    *gap // where it was seen last
	inPage bool // the entry above stands on the same page
}

// begin begins a page, maybe again, maybe the first one again. It may be called on nil, as end may.
func (l *timeline) begin() {
	if l != nil {
		l.here, l.inPage = l.turned, false
	}
}

// end ends a page that was read whole.
func (l *timeline) end() {
	if l != nil {
		l.turned = l.here
	}
}

// pass passes a dated entry, and returns the gap above it, nil where there is none.
func (l *timeline) pass(at time.Time) *gap {
	if at.IsZero() {
		return nil
	}
	l.unsorted = l.unsorted || l.inPage && at.After(l.here.above)
	passed := l.here.gap
	if passed != nil {
		passed.below, passed.passed = at, true
	}
	l.here, l.inPage = position{above: at}, true
	return passed
}

// stand returns the gap in which a deletion without a time stands.
func (l *timeline) stand() *gap {
	if l.here.gap == nil {
		l.here.gap = &gap{number: l.gaps, above: l.here.above}
		l.gaps++
	}
	return l.here.gap
}

// close ends the history, and returns its last gap, nil where there is none: had pages shifted before the last deletions, they
// would not be the last.
func (l *timeline) close() *gap {
	if l.here.gap != nil {
		l.here.gap.below, l.here.gap.passed = time.Time{}, true
	}
	return l.here.gap
}

// stand takes up where the deletion was seen, maybe again. What was known of its latest time stays true.
func (d *deletion) stand(g *gap, inPage bool) {
	d.settle()
	d.gap, d.inPage, d.earliest = g, inPage, time.Time{}
}

// settle bounds the time by the gap, once. Where pages have shifted, the first entry of a page is not older than the last one of the
// page before, which then says nothing of the deletions between.
func (d *deletion) settle() {
	if d.gap == nil {
		return
	}
	if d.inPage || d.gap.passed && d.gap.below.Before(d.gap.above) {
		d.latest = d.gap.above
	}
	if d.gap.passed {
		d.earliest = d.gap.below
	}
	d.gap = nil
}

// before and after tell that the deletion is on a side of a time. The time itself is before.
func (d *deletion) before(at time.Time) bool { return !d.latest.IsZero() && !d.latest.After(at) }
func (d *deletion) after(at time.Time) bool  { return d.earliest.After(at) }

// entry is the deletion with the latest time that it can have.
func (d *deletion) entry() *fhir.Entry {
	return &fhir.Entry{Version: d.version, LastUpdated: d.latest, Deleted: true}
}
