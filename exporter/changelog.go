package exporter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sidecar/exporter/fhir"
)

// They are less in tests.
var (
	// repairIDs is how many ids of a type are repaired at once. Each further range of them costs a look through all that
	// the crawl wrote of the type.
	repairIDs = 8 << 10
	// changesBytes is how much of a history is sorted at once. Several types may be repaired at a time.
	changesBytes = 2 << 20
)

// changeLog is what the history of one type says since shortly before T, or since _since where that is earlier; or, where
// searched, what a search for such rows found, each in one version. There may be more than fits into memory, so that it is
// sorted on the disk by ids, and read by ranges of them. After a crash the history is read again.
type changeLog struct {
	changes // of no id: what all ranges have in common

	line   timeline
	lines  *sorter // an event each
	events int64
	bodies sink
	gaps   *os.File // what lies below each gap of the timeline; nil while there is none
	name   string   // tells it from another of the type
	path   string   // of the files, without their ends
}

func (r *run) newChangeLog(typ, name string) *changeLog {
	return &changeLog{
		changes: changes{
			typ: typ, until: r.job.TransactionTime, span: r.job.TransactionTime.Add(-r.repairSpan()), after: r.job.Kickoff.Since,
			strangers: r.newStrangers(typ),
		},
		name: name, path: filepath.Join(r.dir, typ+"."+name),
	}
}

// open makes the files ready, unless they are.
func (l *changeLog) open() (err error) {
	if l.lines != nil {
		return nil
	}
	l.lines = newSorter(filepath.Dir(l.path), filepath.Base(l.path))
	l.lines.limit = changesBytes
	l.bodies, err = openSink(l.path+".bodies", 0)
	return err
}

// close removes the files. It may be called on nil.
func (l *changeLog) close() error {
	if l == nil || l.lines == nil {
		return nil
	}
	err := errors.Join(l.lines.close(), l.bodies.remove())
	if l.gaps != nil {
		err = errors.Join(err, local(l.gaps.Close()), local(os.Remove(l.gaps.Name())))
	}
	return err
}

// The kinds of lines.
const (
	dated   = "dated"   // a version with its time, and maybe where its body lies
	undated = "undated" // a deletion without one, with the gap in which it stands
	twice   = "twice"   // a row that was written twice
)

// add adds a line. Lines sort by their ids, those of one id as they came.
func (l *changeLog) add(id, kind string, fields ...string) error {
	if err := l.open(); err != nil {
		return err
	}
	l.events++
	line := id + "\t" + fmt.Sprintf("%012x", l.events) + "\t" + kind
	for _, field := range fields {
		line += "\t" + field
	}
	return l.lines.add(line)
}

// see takes one entry of a history into account.
func (l *changeLog) see(row *fhir.Entry) error {
	if err := l.strangers.see(row); err != nil {
		return err
	}
	if row.Deleted && row.LastUpdated.IsZero() {
		g := l.line.stand()
		return l.add(row.ID, undated, row.Version, formatTime(g.above), strconv.FormatInt(g.number, 10), strconv.FormatBool(l.line.inPage))
	}
	if err := l.passed(l.line.pass(row.LastUpdated)); err != nil {
		return err
	}
	return l.found(row)
}

// found takes a version with a time into account, with its body if it may be the one as of T. A version from before the span
// stands in the output, unless something was changed since.
func (l *changeLog) found(row *fhir.Entry) error {
	if row.Deleted {
		return l.add(row.ID, dated, row.Version, formatTime(row.LastUpdated), "deleted")
	}
	var at, size int64
	if !row.LastUpdated.Before(l.span) && !row.LastUpdated.After(l.until) {
		var err error
		if at, size, err = l.hold(row); err != nil {
			return err
		}
	}
	return l.add(row.ID, dated, row.Version, formatTime(row.LastUpdated), strconv.FormatInt(at, 10), strconv.FormatInt(size, 10))
}

// hold keeps the body of a version, and returns where it lies.
func (l *changeLog) hold(row *fhir.Entry) (at, size int64, err error) {
	if err := l.open(); err != nil {
		return 0, 0, err
	}
	if err := l.bodies.open(); err != nil {
		return 0, 0, local(err)
	}
	at, l.bodies.changed = l.bodies.size, true
	size, err = row.WriteTo(l.bodies.buf)
	l.bodies.size += size
	return at, size, local(err)
}

// body is what hold kept. It fails with fhir.ErrMalformed where the server gave none.
func (l *changeLog) body(c *change, id string) (*fhir.Entry, error) {
	if c.size == 0 {
		return nil, fmt.Errorf("a version without its resource: %w", fhir.ErrMalformed)
	}
	if err := l.bodies.buf.Flush(); err != nil {
		return nil, local(err)
	}
	row, err := fhir.EntryAt(l.typ, id, l.bodies.file, c.at, c.size)
	if err != nil {
		return nil, local(err)
	}
	row.Version, row.LastUpdated = c.version, c.updated
	return row, nil
}

// gapBytes is the size of a gap's record: the time below it, in seconds and nanoseconds. All zero is one that was never
// passed, as of a page that broke off.
const gapBytes = 16

// passed notes what lies below a gap, where there is one.
func (l *changeLog) passed(g *gap) (err error) {
	if g == nil {
		return nil
	}
	if l.gaps == nil {
		if l.gaps, err = os.OpenFile(l.path+".gaps", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600); err != nil {
			return local(err)
		}
	}
	var record [gapBytes]byte
	binary.LittleEndian.PutUint64(record[:], uint64(g.below.Unix()))
	binary.LittleEndian.PutUint64(record[8:], uint64(g.below.Nanosecond()))
	_, err = l.gaps.WriteAt(record[:], g.number*gapBytes)
	return local(err)
}

// below completes a gap.
func (l *changeLog) below(g *gap) error {
	var record [gapBytes]byte
	if l.gaps == nil {
		return nil
	}
	if _, err := l.gaps.ReadAt(record[:], g.number*gapBytes); err != nil && !errors.Is(err, io.EOF) {
		return local(err)
	}
	if record == [gapBytes]byte{} {
		return nil
	}
	seconds, rest := int64(binary.LittleEndian.Uint64(record[:])), int64(binary.LittleEndian.Uint64(record[8:]))
	g.below, g.passed = time.Unix(seconds, rest).UTC(), true
	return nil
}

// end ends the reading of a history.
func (l *changeLog) end() error { return l.passed(l.line.close()) }

// each hands the changes to fn, range by range of ids, all of which belong to one range: one at least, also without a change.
func (l *changeLog) each(fn func(*changes) error) error {
	if err := l.open(); err != nil {
		return err
	}
	lines, err := l.lines.sorted()
	if err != nil {
		return err
	}
	part, last := l.part(""), ""
	for {
		line, more, err := lines.next()
		if err != nil {
			return err
		}
		if !more {
			part.place(l.line.unsorted)
			return fn(part)
		}
		id, event, _ := strings.Cut(line, "\t")
		if id != last && len(part.byID)+len(part.old) >= repairIDs {
			part.to = id
			part.place(l.line.unsorted)
			if err := fn(part); err != nil {
				return err
			}
			part = l.part(id)
		}
		last = id
		if err := l.replay(part, id, event); err != nil {
			return err
		}
	}
}

// part returns an empty range that begins at an id.
func (l *changeLog) part(from string) *changes {
	part := l.changes
	part.from, part.byID, part.old = from, map[string]*change{}, map[string]*change{}
	return &part
}

// replay takes one line into account.
func (l *changeLog) replay(part *changes, id, event string) error {
	fields := strings.Split(event, "\t")
	if len(fields) < 2 {
		return errTornLog
	}
	kind, fields := fields[1], fields[2:]
	if kind == twice {
		if part.byID[id] == nil {
			part.byID[id] = &change{}
		}
		return nil
	}
	if len(fields) < 3 {
		return errTornLog
	}
	row := &fhir.Entry{ID: id, Version: fields[0], Deleted: kind == undated || fields[2] == "deleted"}
	at, err := parseTime(fields[1])
	if err != nil {
		return local(err)
	}
	switch {
	case kind == undated:
		return l.replayUndated(part, row, at, fields[2:])
	case row.Deleted:
		row.LastUpdated = at
		part.see(row, 0, 0)
		return nil
	}
	begin, errBegin := strconv.ParseInt(fields[2], 10, 64)
	size, errSize := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	row.LastUpdated = at
	part.see(row, begin, size)
	return local(errors.Join(errBegin, errSize))
}

// replayUndated takes a deletion without a time into account, which stands below a time in a gap.
func (l *changeLog) replayUndated(part *changes, row *fhir.Entry, above time.Time, fields []string) error {
	if len(fields) != 2 {
		return errTornLog
	}
	number, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return local(err)
	}
	g := &gap{number: number, above: above}
	if err := l.below(g); err != nil {
		return err
	}
	if c := part.of(row, !above.IsZero() && above.Before(part.span)); c != nil {
		d := c.deletion(row.Version)
		d.stand(g, fields[1] == "true")
		d.settle()
	}
	return nil
}

var errTornLog = local(errors.New("a line of the sorted history is not whole"))

// formatTime writes a time of any year with all its digits, the zero time as nothing.
func formatTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d.%d", at.Unix(), at.Nanosecond())
}

func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	seconds, rest, _ := strings.Cut(text, ".")
	whole, err := strconv.ParseInt(seconds, 10, 64)
	nanoseconds, errRest := strconv.ParseInt(rest, 10, 64)
	return time.Unix(whole, nanoseconds).UTC(), errors.Join(err, errRest)
}
