package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Ensure that exports of a server that is written to all the time hold what its history says that it held at their
// transaction time, no row more, fewer, older or newer, and that increments lead from one such time to the next.
func TestWriter(t *testing.T) {
	server := ownHAPI(t)
	// All writes here are short. What settles later is taken from the history in any case.
	s := startSidecar(t, server.base, settings{"settle": "3s"})
	w := newWriter(t, server)
	r := &truth{server: server, ledger: w.ledger, versions: map[string]map[int]*version{}}
	t.Run("system at 5 per second", func(t *testing.T) {
		runs := s.exportUnder(t, w, 5, "$export", 1)
		r.catchUp(t)
		r.equalExport(t, "5/s, system", runs[0], r.wanted(t, "$export", runs[0]))
	})
	t.Run("chain at 20 per second", func(t *testing.T) {
		runs := s.exportUnder(t, w, 20, "$export", 4)
		r.catchUp(t)
		r.equalChain(t, runs)
	})
	for _, level := range []struct{ name, path string }{{"Patient", "Patient/$export"}, {"Group", "Group/" + groupBig + "/$export"}} {
		t.Run(level.name+" at 20 per second", func(t *testing.T) {
			runs := s.exportUnder(t, w, 20, level.path, 1)
			r.catchUp(t)
			r.equalExport(t, "20/s, "+level.name, runs[0], r.wanted(t, level.path, runs[0]))
		})
	}
	w.did(t)
}

// underWriter is an export during which a writer was at work.
type underWriter struct {
	*exported
	deleted set
	lines   int
	end     time.Time
}

// exportUnder runs exports while a writer is at work, each since the one before it.
func (s *sidecar) exportUnder(t *testing.T, w *writer, rate float64, path string, count int) []*underWriter {
	t.Helper()
	stint := w.start(t, rate, s.base)
	defer stint.stop(t)
	var runs []*underWriter
	for len(runs) < count {
		pause(t, time.Second) // in which something changes
		query := ""
		if len(runs) > 0 {
			since := runs[len(runs)-1].manifest.TransactionTime
			query = "?_since=" + url.QueryEscape(since.UTC().Format(instantLayout))
		}
		began := time.Now()
		run := &underWriter{exported: s.export(t, path+query)}
		run.end = time.Now()
		t.Logf("export %d took %.1f s", len(runs)+1, run.end.Sub(began).Seconds())
		run.deleted = downloadDeleted(t, run.manifest)
		for _, file := range run.manifest.Output {
			run.lines += *file.Count
		}
		runs = append(runs, run)
	}
	return runs
}

// downloadDeleted reads the ids out of the deleted files.
func downloadDeleted(t *testing.T, m manifest) set {
	t.Helper()
	deleted := set{}
	for _, file := range m.Deleted {
		for _, line := range downloadFile(t, file) {
			var bundle struct {
				Entry []struct {
					Request struct {
						Method string `json:"method"`
						URL    string `json:"url"`
					} `json:"request"`
				} `json:"entry"`
			}
			if err := json.Unmarshal(line, &bundle); err != nil {
				t.Fatalf("deleted file: %v", err)
			}
			for _, entry := range bundle.Entry {
				if entry.Request.Method != "DELETE" || deleted[entry.Request.URL] {
					t.Errorf("deleted file: %s of %s, want one DELETE", entry.Request.Method, entry.Request.URL)
				}
				deleted[entry.Request.URL] = true
			}
		}
	}
	return deleted
}

// wanted gives the versions that an export of everything at a level must hold.
func (r *truth) wanted(t *testing.T, path string, run *underWriter) map[string]*version {
	t.Helper()
	at := run.manifest.TransactionTime
	live := r.state(t, at)
	data := &dataset{rows: map[string]json.RawMessage{}}
	for key, v := range live {
		data.rows[key] = v.body
	}
	keys := expectedOf(t, data, path, at)
	maps.DeleteFunc(live, func(key string, _ *version) bool { return !keys[key] })
	return live
}

// tally are the differences between an export and the truth, by their kind.
type tally map[string][]string

var kinds = []string{"lost", "extra", "doubled", "older", "newer", "altered"}

// equalExport fails the test where an export differs from the truth, or does not say of itself that it is proved.
func (r *truth) equalExport(t *testing.T, name string, run *underWriter, want map[string]*version) {
	t.Helper()
	r.equalVersions(t, name, run, want)
	checkProofs(t, run)
}

// equalVersions fails the test where rows differ from the truth, and prints the account of them.
func (r *truth) equalVersions(t *testing.T, name string, run *underWriter, want map[string]*version) {
	t.Helper()
	found := tally{"doubled": make([]string, run.lines-len(run.rows))}
	for key, v := range want {
		line := run.rows[key]
		if line == nil {
			found["lost"] = append(found["lost"], key)
			continue
		}
		switch got := numberOf(t, line); {
		case got < v.number:
			found["older"] = append(found["older"], key)
		case got > v.number:
			found["newer"] = append(found["newer"], key)
		case !equalJSON(t, line, v.body):
			found["altered"] = append(found["altered"], key)
		}
	}
	for key := range run.rows {
		if want[key] == nil {
			found["extra"] = append(found["extra"], key)
		}
	}
	at := run.manifest.TransactionTime
	changed := r.changedBetween(t, at, run.end)
	if changed == 0 {
		t.Error("nothing changed between the transaction time and the end, so that the export shows nothing")
	}
	account := fmt.Sprintf("writer: %s: %d rows, %d changed between T and the end:", name, run.lines, changed)
	for _, kind := range kinds {
		account += fmt.Sprintf(" %d %s,", len(found[kind]), kind)
		if len(found[kind]) > 0 {
			t.Errorf("%s: %s", kind, summary(found[kind]))
			for _, key := range found[kind][:min(3, len(found[kind]))] {
				r.explain(t, key, at)
			}
		}
	}
	say("%s", strings.TrimSuffix(account, ","))
}

// explain logs the versions of a resource about the transaction time.
func (r *truth) explain(t *testing.T, key string, at time.Time) {
	t.Helper()
	for number, v := range r.versions[key] {
		t.Logf("%s version %d: deleted %v, from T%+v to T%+v", key, number, v.deleted, v.from.Sub(at), v.to.Sub(at))
	}
}

// equalChain checks a full export and those since it, and a replica that takes all of them in.
func (r *truth) equalChain(t *testing.T, runs []*underWriter) {
	t.Helper()
	replica := map[string]json.RawMessage{}
	var since time.Time
	for place, run := range runs {
		at, live := run.manifest.TransactionTime, r.wanted(t, "$export", run)
		want := maps.Clone(live)
		maps.DeleteFunc(want, func(_ string, v *version) bool { return !v.from.After(since) })
		name := "20/s, system"
		if place > 0 {
			name = fmt.Sprintf("20/s, increment %d", place)
			r.equalDeleted(t, run, live, since)
		} else if len(run.deleted) > 0 {
			t.Errorf("an export without _since reports %d deletions", len(run.deleted))
		}
		r.equalExport(t, name, run, want)
		maps.Copy(replica, run.rows)
		maps.DeleteFunc(replica, func(key string, _ json.RawMessage) bool { return run.deleted[key] })
		since = at
		whole := &underWriter{exported: &exported{manifest: run.manifest, rows: replica}, lines: len(replica), end: run.end}
		r.equalVersions(t, "replica after "+name, whole, live)
	}
}

// equalDeleted fails the test where an increment leaves out a deletion, or reports one of what exists.
func (r *truth) equalDeleted(t *testing.T, run *underWriter, live map[string]*version, since time.Time) {
	t.Helper()
	var unreported, alive, both []string
	gone := r.deletedBetween(t, since, run.manifest.TransactionTime)
	for key := range gone {
		if !run.deleted[key] {
			unreported = append(unreported, key)
		}
	}
	for key := range run.deleted {
		if live[key] != nil {
			alive = append(alive, key)
		}
		if run.rows[key] != nil {
			both = append(both, key)
		}
	}
	say("writer: %d deletions reported, %d of them of what was exported before", len(run.deleted), len(gone)-len(unreported))
	if len(unreported)+len(alive)+len(both) > 0 {
		t.Errorf("deletions not reported: %s; reported of what exists: %s; in output, too: %s",
			summary(unreported), summary(alive), summary(both))
	}
	for _, key := range slices.Concat(unreported, alive, both) {
		r.explain(t, key, run.manifest.TransactionTime)
	}
}

// checkProofs fails the test where the manifest does not say of each type that it is proved, with as many rows. What is read
// only because others refer to it is counted by nobody.
func checkProofs(t *testing.T, run *underWriter) {
	t.Helper()
	counts := map[string]int{}
	for key := range run.rows {
		counts[typeOf(key)]++
	}
	beside := !strings.Contains(run.manifest.Request, "/fhir/$export")
	for _, account := range run.manifest.Extension.Completeness {
		want := "proved"
		if beside && counts[account.Type] > 0 && slices.Contains(aroundTypes, account.Type) && account.Type != "Device" {
			want = "unverified"
		}
		if account.Verdict != want || account.Exported != counts[account.Type] {
			t.Errorf("manifest: %s is %s with %d rows, want %s with %d", account.Type, account.Verdict, account.Exported, want, counts[account.Type])
		}
		delete(counts, account.Type)
	}
	if len(counts) > 0 {
		t.Errorf("manifest: no account of %v", counts)
	}
}

func numberOf(t *testing.T, line json.RawMessage) int {
	t.Helper()
	var head struct {
		Meta struct {
			VersionID string `json:"versionId"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		t.Fatalf("decode a line: %v", err)
	}
	number, err := strconv.Atoi(head.Meta.VersionID)
	if err != nil {
		t.Fatalf("a line has the version %q", head.Meta.VersionID)
	}
	return number
}

func equalJSON(t *testing.T, a, b json.RawMessage) bool {
	t.Helper()
	var left, right bytes.Buffer
	if err := json.Compact(&left, a); err != nil {
		t.Fatalf("compact a line: %v", err)
	}
	if err := json.Compact(&right, b); err != nil {
		t.Fatalf("compact a version: %v", err)
	}
	return bytes.Equal(left.Bytes(), right.Bytes())
}
