package exporter

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

// script is a history that is read: pages apart by blanks, each entry an id with its version and the seconds since T, as
// "a2+5" or "a1-30". "a3x" is a deletion without a time. Before a page, "!" begins the reading anew, and "~" reads the page
// again that was cut before.
type script string

func (s script) read(t *testing.T, h *changeLog) {
	t.Helper()
	for _, page := range strings.Fields(string(s)) {
		cut := strings.HasSuffix(page, "~")
		h.line.begin()
		for _, text := range strings.Split(strings.Trim(page, "!~"), ",") {
			row := &fhir.Entry{Type: "Observation", ID: text[:1], Version: text[1:2], Deleted: text[2] == 'x'}
			if !row.Deleted {
				seconds, err := strconv.Atoi(text[2:])
				if err != nil {
					t.Fatal(err)
				}
				row.LastUpdated = h.until.Add(time.Duration(seconds) * time.Second)
			}
			if err := h.see(row); err != nil {
				t.Fatal(err)
			}
		}
		if !cut {
			h.line.end()
		}
	}
	if err := h.end(); err != nil {
		t.Fatal(err)
	}
}

// whole is a log as if it were of one range, whose files are removed.
func (l *changeLog) whole(t *testing.T) *changes {
	t.Helper()
	whole := l.part("")
	err := l.each(func(part *changes) error {
		maps.Copy(whole.byID, part.byID)
		maps.Copy(whole.old, part.old)
		return nil
	})
	if err := errors.Join(err, l.close()); err != nil {
		t.Fatal(err)
	}
	return whole
}

// readScript reads a history for an increment since 300 seconds before T, with a span of repairs of 60.
func readScript(t *testing.T, s script) *changes {
	t.Helper()
	until := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	h := &changeLog{
		changes: changes{until: until, span: until.Add(-time.Minute), after: until.Add(-5 * time.Minute)},
		path:    filepath.Join(t.TempDir(), "Observation.changes"),
	}
	s.read(t, h)
	return h.whole(t)
}

// verdict of what is known of a deletion without a time.
func (c *change) dated(h *changes) string {
	switch {
	case c == nil:
		return "unknown"
	case c.undated:
		return "ask"
	case !c.known || !c.deleted:
		return "later or undone"
	case c.guessed && c.updated.After(h.after):
		return "before T, ask for _since"
	case c.updated.After(h.after):
		return "since"
	}
	return "before _since"
}

// Ensure a deletion without a time is dated by its neighbours only where they are that, and else left to its own history.
func TestUndatedDeletionIsDatedByItsNeighbours(t *testing.T) {
	for name, test := range map[string]struct {
		history script
		want    string
	}{
		"before T":                    {"b1-1,a2x,c1-2", "since"},
		"after T":                     {"b1+2,a2x,c1+1", "later or undone"},
		"on either side of T":         {"b1+2,a2x,c1-1", "ask"},
		"at T":                        {"b1+0,a2x,c1-1", "since"},
		"on either side of _since":    {"b1-290,a2x,c1-310", "before T, ask for _since"},
		"before _since":               {"b1-300,a2x,c1-310", "before _since"},
		"the newest of all":           {"a2x,c1-1", "ask"},
		"alone":                       {"a2x", "ask"},
		"the oldest of all":           {"b1-1,a2x", "before T, ask for _since"},
		"the oldest, before _since":   {"b1-301,a2x", "before _since"},
		"at the end of a page":        {"b1-1,a2x c1-2", "since"},
		"at the beginning of a page":  {"b1-1 a2x,c1-2", "since"},
		"a page of its own":           {"b1-1 a2x c1-2", "since"},
		"on two pages":                {"d1+1,b1-1,a2x,c1-2 a2x,c1-2,e1-3", "since"},
		"below the end of its page":   {"b1+1,a2x,c1-1 a2x,c1-1,d1-2", "ask"},
		"far below, seen again":       {"b1+2,a2x,c1+1,d1-99 a2x,c1+1,d1-99", "later or undone"},
		"behind a shift":              {"b1+2,c1-1 c1-1,a2x,d1-2", "since"},
		"last on a page that shifts":  {"b1+2,c1-1,a2x b1+2,c1-1,a2x,d1-290 e1-310", "since"},
		"lower bound behind a shift":  {"b1-290,a2x b1-290,a2x,c1-310", "before T, ask for _since"},
		"new on a page that shifts":   {"b1-1,c1-2 a2x,e1+1,b1-1 c1-2,d1-3", "later or undone"},
		"new, above the first again":  {"b1-1,c1-2 f1+2,a2x,b1-1 c1-2,d1-3", "ask"},
		"new, of one time with both":  {"b1-1,c1-1 a2x,b1-1 c1-1,d1-3", "ask"},
		"new, among old ones":         {"b1-1,c1-99 a2x,b1-1,c1-99", "ask"},
		"new when it begins anew":     {"b1-1,c1-99 !a2x,e1+1,b1-1,c1-99", "later or undone"},
		"open when it begins anew":    {"b1+2,a2x !e1+3,b1+2,a2x,c1-1", "ask"},
		"the oldest, begun anew":      {"b1+2,a2x !e1+3,b1+2,a2x", "ask"},
		"begun anew above it":         {"b1-1,a2x !e1+3,b1-1,a2x c1-2", "since"},
		"new when a page is cut":      {"b1-1,c1-99~ !a2x,e1+1,b1-1,c1-99", "later or undone"},
		"new when page two is cut":    {"d1+9,e1+8 b1-1,c1-2~ f1+7,a2x,g1+6 b1-1,c1-2", "later or undone"},
		"deleted twice, the last old": {"b1-200,a4x,a3-310,a2x,c1-320", "before T, ask for _since"},
		"deleted twice, both since":   {"b1-200,a4x,a3-210,a2x,c1-310", "since"},
		"made again before T":         {"a3-1,a2x,c1-310", "later or undone"},
		"made again after T":          {"a3+1,b1-1,a2x,c1-2", "since"},
		"made again by a late commit": {"b1-1,a2x,a3-90", "later or undone"},
		"open, but made again":        {"b1+1,a2x,c1-1,a3-2", "later or undone"},
		"not newest first":            {"b1-99,a2x,c1+5,d1-1", "ask"},
		"not newest first elsewhere":  {"b1-9,a2x,c1-10,d1-20,e1-15", "ask"},
		"old, and not newest first":   {"b1-99,a2x,c1-110,d1+5", "ask"},
	} {
		t.Run(name, func(t *testing.T) {
			h := readScript(t, test.history)
			c := h.byID["a"]
			if c == nil {
				c = h.old["a"]
			}
			if got := c.dated(h); got != test.want {
				t.Errorf("%s: %s, want %s", test.history, got, test.want)
			}
		})
	}
}

// drawnHistory is a server's history of a few ids, which grows while it is read.
type drawnHistory struct {
	random *rand.Rand
	log    []fhir.Entry // oldest first, with the times of deletions
	now    time.Time
	named  bool // versions are no numbers
}

// write adds some versions, maybe at one time.
func (d *drawnHistory) write(n int) {
	for range n {
		d.now = d.now.Add(time.Duration(d.random.IntN(4)) * time.Second)
		id := strconv.Itoa(d.random.IntN(12))
		row := fhir.Entry{Type: "Observation", ID: id, Version: "1", LastUpdated: d.now}
		if last := d.last(id, d.now); last != nil {
			if last.LastUpdated.Equal(d.now) {
				continue
			}
			version, _ := strconv.Atoi(strings.TrimPrefix(last.Version, "v"))
			row.Version, row.Deleted = strconv.Itoa(version+1), !last.Deleted && d.random.IntN(4) > 0
		}
		if d.named && !strings.HasPrefix(row.Version, "v") {
			row.Version = "v" + row.Version
		}
		d.log = append(d.log, row)
	}
}

// last is an id's newest version at or before a time.
func (d *drawnHistory) last(id string, at time.Time) *fhir.Entry {
	for _, row := range slices.Backward(d.log) {
		if row.ID == id && !row.LastUpdated.After(at) {
			return &row
		}
	}
	return nil
}

// read reads it by pages that shift, are cut, and begin anew.
func (d *drawnHistory) read(t *testing.T, h *changeLog, calm bool) {
	t.Helper()
	const size = 5
	for at, anew := 0, 0; at < len(d.log); {
		h.line.begin()
		to := min(at+size, len(d.log))
		cut := !calm && d.random.IntN(6) == 0
		if cut {
			to -= d.random.IntN(to - at)
		}
		for n := at; n < to; n++ {
			row := d.log[len(d.log)-1-n]
			if row.Deleted {
				row.LastUpdated = time.Time{}
			}
			if err := h.see(&row); err != nil {
				t.Fatal(err)
			}
		}
		if !calm && d.random.IntN(3) == 0 {
			d.write(d.random.IntN(3 * size))
		}
		switch {
		case cut:
		case !calm && anew < 2 && d.random.IntN(10) == 0:
			at, anew = 0, anew+1
		default:
			h.line.end()
			at += size
		}
	}
	if err := h.end(); err != nil {
		t.Fatal(err)
	}
}

// Ensure no deletion without a time is ever dated wrongly, whatever is written while the history is read, and that few are left
// open when nothing is.
func TestUndatedDeletionsAreNeverDatedWrongly(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	asked, total, folder := 0, 0, t.TempDir()
	runs := 5_000
	if testing.Short() {
		runs = 1_000
	}
	for n := range runs {
		d := &drawnHistory{random: random, now: time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC), named: n%3 == 0}
		log := &changeLog{path: filepath.Join(folder, "Observation.changes")}
		d.write(random.IntN(10))
		log.after = d.now
		d.write(random.IntN(20))
		log.span = d.now
		d.write(random.IntN(20))
		log.until = d.now
		d.now = d.now.Add(time.Second)
		d.write(random.IntN(20))
		calm := n%2 == 0
		d.read(t, log, calm)
		h := log.whole(t)
		for id := range 12 {
			id := strconv.Itoa(id)
			truth := d.last(id, h.until)
			c := h.byID[id]
			if c == nil {
				if c = h.old[id]; c != nil && truth != nil && !truth.Deleted && truth.LastUpdated.Before(h.span) {
					continue // what was made again before the span stands in the output
				}
			}
			if c == nil {
				if truth != nil && (truth.Deleted || !truth.LastUpdated.Before(h.span)) {
					t.Fatalf("run %d: %+v was not seen", n, truth)
				}
				continue
			}
			if calm && len(c.deletions) > 0 {
				if total++; c.undated {
					asked++
				}
			}
			if fault := d.fault(h, c, truth); fault != "" {
				t.Fatalf("run %d: id %s is %+v as of T: %s: %+v", n, id, truth, fault, c)
			}
		}
	}
	if asked*3 > total {
		t.Errorf("%d of %d resources with deletions are left to their own history", asked, total)
	}
}

// fault tells what is wrongly known of a resource.
func (d *drawnHistory) fault(h *changes, c *change, truth *fhir.Entry) string {
	switch {
	case c.undated:
		return ""
	case c.known != (truth != nil):
		return fmt.Sprint("known: ", c.known)
	case truth == nil:
		return ""
	case c.version != truth.Version || c.deleted != truth.Deleted:
		return "version " + c.version
	case c.deleted && !c.guessed && c.updated.After(h.after) != truth.LastUpdated.After(h.after):
		return "on the wrong side of _since"
	case c.guessed && !c.updated.After(h.after) && truth.LastUpdated.After(h.after):
		return "older than _since"
	}
	return ""
}
