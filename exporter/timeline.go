package exporter

import (
	"slices"
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
}

// position is a place in a history.
type position struct {
	above   time.Time // of the last dated entry, zero where there is none
	waiting []waiting // the deletions since then
}

// waiting is a deletion that no dated entry stands below yet. latest bounds it if no page has shifted before that.
type waiting struct {
	*deletion
	latest time.Time
}

// deletion is a version without a time.
type deletion struct {
	version string
	// latest and earliest bound its time, zero where nothing does.
	latest, earliest time.Time
}

// begin begins a page, maybe again, maybe the first one again. It may be called on nil, as end may.
func (l *timeline) begin() {
	if l == nil {
		return
	}
	l.here = position{l.turned.above, slices.Clone(l.turned.waiting)}
	l.inPage = false
}

// end ends a page that was read whole.
func (l *timeline) end() {
	if l != nil {
		l.turned = l.here
	}
}

// pass passes a dated entry. Where pages have shifted, the first one of a page is not older than the last one of the page
// before, which then says nothing of the deletions between.
func (l *timeline) pass(at time.Time) {
	if at.IsZero() {
		return
	}
	l.unsorted = l.unsorted || l.inPage && at.After(l.here.above)
	for _, d := range l.here.waiting {
		d.earliest = at
		if at.Before(d.latest) {
			d.deletion.latest = d.latest
		}
	}
	l.here.above, l.here.waiting, l.inPage = at, l.here.waiting[:0], true
}

// bound passes a deletion without a time.
func (l *timeline) bound(d *deletion) {
	w := waiting{deletion: d}
	if l.inPage {
		d.latest = l.here.above
	} else {
		w.latest = l.here.above
	}
	d.earliest = time.Time{}
	l.here.waiting = append(l.here.waiting, w)
}

// close ends the history: had pages shifted before its last deletions, they would not be the last.
func (l *timeline) close() {
	for _, d := range l.here.waiting {
		if !d.latest.IsZero() {
			d.deletion.latest = d.latest
		}
	}
}

// before and after tell that the deletion is on a side of a time. The time itself is before.
func (d *deletion) before(at time.Time) bool { return !d.latest.IsZero() && !d.latest.After(at) }
func (d *deletion) after(at time.Time) bool  { return d.earliest.After(at) }

// entry is the deletion with the latest time that it can have.
func (d *deletion) entry() *fhir.Entry {
	return &fhir.Entry{Version: d.version, LastUpdated: d.latest, Deleted: true}
}
