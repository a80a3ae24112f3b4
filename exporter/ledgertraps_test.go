package exporter_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// inForgetfulBubble runs fn on a server without history that has a small clinic, with a ledger.
func inForgetfulBubble(t *testing.T, edit func(*exporter.Config), fn func(t *testing.T, b *bubble)) {
	t.Helper()
	forgetful := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true })
	fill := clinic(t, 6, 4, group("g", member("Patient/p1"), member("Patient/p3")))
	inBubble(t, forgetful, func(c *exporter.Config) {
		withLedger(c)
		if edit != nil {
			edit(c)
		}
	}, fill, fn)
}

// ledgers are the names and contents of the valid ledgers.
func (b *bubble) ledgers() map[string]string {
	b.t.Helper()
	found := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(b.folder, "ledger", "*"))
	must(b.t, err)
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		must(b.t, err)
		found[filepath.Base(path)] = string(raw)
	}
	return found
}

// since is a system increment.
func since(t time.Time, types ...string) state.Kickoff {
	kickoff := system()
	kickoff.Since, kickoff.Types = t, types
	return kickoff
}

// isListing tells whether a request lists ids.
func isListing(r *http.Request) bool { return r.URL.Query().Get("_elements") == "id,meta" }

func wantDeleted(t *testing.T, b *bubble, job *state.Job, want ...string) {
	t.Helper()
	b.rows(job)
	if got := b.deleted(job); !slices.Equal(got, want) {
		t.Errorf("deleted %v, want %v", got, want)
	}
}

func says(job *state.Job, text string) bool { return strings.Contains(fmt.Sprint(job.Issues), text) }

// Ensure an increment that no ledger fits says so, names no deletion and leaves the ledger to the chain that it belongs to.
func TestIncrementWithoutAFittingLedger(t *testing.T) {
	inForgetfulBubble(t, nil, func(t *testing.T, b *bubble) {
		early := time.Now()
		<-time.After(time.Minute)
		job := b.finish(b.kickOff(since(early, "Immunization")))
		if wantDeleted(t, b, job); !says(job, "there is no ledger") || len(b.ledgers()) > 0 {
			t.Errorf("remarks %+v and %d ledgers, want one on the missing ledger and none", job.Issues, len(b.ledgers()))
		}
		full := b.finish(b.kickOff(since(time.Time{}, "Immunization")))
		if says(full, "deleted since") {
			t.Errorf("a full export has the remarks %+v", full.Issues)
		}
		begun := b.ledgers()
		must(t, b.sample.Delete("Immunization", "i1"))
		<-time.After(time.Minute)
		for name, from := range map[string]time.Time{
			"earlier": full.TransactionTime.Add(-time.Second), "later": full.TransactionTime.Add(time.Second),
		} {
			job := b.finish(b.kickOff(since(from, "Immunization")))
			if wantDeleted(t, b, job); !says(job, "of another one") {
				t.Errorf("%s: remarks %+v, want one that the ledger is of another time", name, job.Issues)
			}
			if !maps.Equal(b.ledgers(), begun) {
				t.Errorf("%s: the ledger was changed", name)
			}
		}
		group := groupOf("g", "Immunization") // another scope
		group.Since = full.TransactionTime
		if job := b.finish(b.kickOff(group)); !says(job, "there is no ledger") {
			t.Errorf("remarks %+v, want one on the missing ledger of the Group", job.Issues)
		}
		again := since(full.TransactionTime.In(time.FixedZone("", 3600)), "Immunization")
		again.Base = "http://elsewhere/fhir" // the caller's base does not matter
		wantDeleted(t, b, b.finish(b.kickOff(again)), "Immunization/i1")
	})
	inForgetfulBubble(t, func(c *exporter.Config) { c.Ledger = "" }, func(t *testing.T, b *bubble) {
		full := b.finish(b.kickOff(system()))
		<-time.After(time.Minute)
		job := b.finish(b.kickOff(since(full.TransactionTime, "Immunization")))
		if !says(job, "the setting ledger is off") || len(b.ledgers()) > 0 {
			t.Errorf("remarks %+v and %d ledgers, want one on the setting and none", job.Issues, len(b.ledgers()))
		}
	})
}

// Ensure nothing is called deleted that the server still has, nothing stands in output and deleted, and what cannot be told
// yet is told by the next increment.
func TestLedgerAsksBeforeItTells(t *testing.T) {
	omit := func(c *exporter.Config) { c.WithoutHistory = exporter.OmitChanged }
	inForgetfulBubble(t, omit, func(t *testing.T, b *bubble) {
		full := b.finish(b.kickOff(system()))
		<-time.After(time.Minute)
		must(t, b.sample.Delete("Immunization", "i0"), b.sample.Delete("Immunization", "i1"), b.sample.Put(dose("i1", "p1")),
			b.sample.Put(dose("i2", "p2")), b.sample.Put(dose("short", "p2")), b.sample.Delete("Immunization", "short"), b.sample.Delete("Immunization", "i3"))
		b.sample.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Immunization/i3") }, Times: 1, Status: 403,
		})
		<-time.After(time.Minute)
		var changed atomic.Bool
		b.link.hook = func(r *http.Request) {
			if !isListing(r) || !strings.HasSuffix(r.URL.Path, "/Immunization") || changed.Swap(true) {
				return
			}
			// After T, and after the output was read
			must(t, b.sample.Delete("Immunization", "i2"), b.sample.Delete("Immunization", "i4"), b.sample.Put(dose("i5", "p4")))
		}
		second := b.finish(b.kickOff(since(full.TransactionTime)))
		wantDeleted(t, b, second, "Immunization/i0", "Immunization/i4")
		if !changed.Load() || !says(second, "1 Immunization resources are found by no search and cannot be read") {
			t.Errorf("changed %v, remarks %+v, want one on what cannot be read", changed.Load(), second.Issues)
		}
		rows := b.rows(second)
		if rows["Immunization/i1"] == "" || rows["Immunization/i2"] == "" || len(rows) != 2 {
			t.Errorf("the output has %d resources, want what was made again and what was changed", len(rows))
		}
		<-time.After(time.Minute)
		must(t, b.sample.Delete("Immunization", "i5"))
		<-time.After(time.Minute)
		third := b.finish(b.kickOff(since(second.TransactionTime)))
		wantDeleted(t, b, third, "Immunization/i2", "Immunization/i3", "Immunization/i5")
		<-time.After(time.Minute)
		wantDeleted(t, b, b.finish(b.kickOff(since(third.TransactionTime))))
	})
}

// Ensure a type that cannot be listed is remarked, and its deletions come with the next increment.
func TestLedgerOfATypeThatCannotBeListed(t *testing.T) {
	inForgetfulBubble(t, nil, func(t *testing.T, b *bubble) {
		full := b.finish(b.kickOff(since(time.Time{}, "Immunization")))
		must(t, b.sample.Delete("Immunization", "i1"))
		<-time.After(time.Minute)
		b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool {
			bounds := r.URL.Query()["_lastUpdated"]
			return strings.HasSuffix(r.URL.Path, "/Immunization") && len(bounds) == 1 && strings.HasPrefix(bounds[0], "lt") && r.URL.Query().Get("_summary") == ""
		}, Times: -1, Status: 403})
		second := b.finish(b.kickOff(since(full.TransactionTime, "Immunization")))
		if wantDeleted(t, b, second); !says(second, "cannot be listed") {
			t.Errorf("remarks %+v, want one on the listing", second.Issues)
		}
		b.sample.ClearFaults()
		<-time.After(time.Minute)
		wantDeleted(t, b, b.finish(b.kickOff(since(second.TransactionTime, "Immunization"))), "Immunization/i1")
	})
}

// Ensure exports that are cancelled or fail leave the ledger as it was.
func TestEndedExportsLeaveTheLedger(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, b *bubble, kickoff state.Kickoff){
		"cancelled": func(t *testing.T, b *bubble, kickoff state.Kickoff) {
			reached := b.events.freezeWhen(func(name string) bool {
				return strings.Contains(name, "before put manifest") || strings.Contains(name, "/manifest.json")
			})
			id := b.kickOff(kickoff)
			<-reached
			b.events.thaw() // what waits goes on waiting; what removes the export must not
			must(t, b.Cancel(t.Context(), id))
			<-time.After(time.Minute)
		},
		"failed": func(t *testing.T, b *bubble, kickoff state.Kickoff) {
			b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Patient") }, Times: -1, Status: 403})
			if job := b.finish(b.kickOff(kickoff)); job.Status != state.Failed {
				t.Fatalf("the export ended %s", job.Status)
			}
			b.sample.ClearFaults()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inForgetfulBubble(t, nil, func(t *testing.T, b *bubble) {
				full := b.finish(b.kickOff(system()))
				begun := b.ledgers()
				must(t, b.sample.Delete("Immunization", "i1"))
				<-time.After(time.Minute)
				end(t, b, system())
				end(t, b, since(full.TransactionTime))
				if !maps.Equal(b.ledgers(), begun) || len(begun) == 0 {
					t.Errorf("%d ledgers were changed", len(begun))
				}
				wantDeleted(t, b, b.finish(b.kickOff(since(full.TransactionTime))), "Immunization/i1")
			})
		})
	}
}

// Ensure of two exports at once the later one's ledger stays, whichever ends first.
func TestTwoExportsOfOneScope(t *testing.T) {
	two := func(c *exporter.Config) { c.MaxRunning, c.Workers = 2, 3 }
	inForgetfulBubble(t, two, func(t *testing.T, b *bubble) {
		b.rows(b.finish(b.kickOff(since(time.Time{}, "Patient")))) // so that the server is probed
		var held atomic.Bool
		b.link.hook = func(r *http.Request) {
			if isRowPage(r) && held.CompareAndSwap(false, true) {
				<-time.After(100 * time.Second)
			}
		}
		early := b.kickOff(since(time.Time{}, "Immunization"))
		<-time.After(20 * time.Second)
		late := b.finish(b.kickOff(since(time.Time{}, "Immunization")))
		kept := b.ledgers() // of Patient, too
		if job, err := b.store.Get(t.Context(), early); err != nil || !held.Load() || !job.Running() {
			t.Fatalf("the earlier export ended first: %v", err)
		}
		b.rows(b.finish(early))
		if !maps.Equal(b.ledgers(), kept) || len(kept) != 2 {
			t.Errorf("%d ledgers, the later one was replaced", len(kept))
		}
		must(t, b.sample.Delete("Immunization", "i7"))
		<-time.After(time.Minute)
		wantDeleted(t, b, b.finish(b.kickOff(since(late.TransactionTime, "Immunization"))), "Immunization/i7")
	})
}

// Ensure an increment and its ledger are the same wherever the process is ended.
func TestLedgerOfAKilledExport(t *testing.T) {
	n := 0
	has := strings.Contains
	for point, on := range map[string]func(name string) bool{
		"while the output is read": func(name string) bool {
			return has(name, "/Immunization?") && has(name, "_sort") && !has(name, "_elements")
		},
		"while ids are listed":       func(name string) bool { return has(name, "/Immunization?") && has(name, "_elements") },
		"while they are asked for":   func(name string) bool { return has(name, "/Immunization/i1?") },
		"after that":                 func(name string) bool { return has(name, "/Patient?") && has(name, "_elements") },
		"before the manifest":        func(name string) bool { return has(name, "before put") && has(name, "manifest") },
		"before the job is complete": func(name string) bool { return has(name, "after put") && has(name, "manifest") },
	} {
		for _, hard := range []bool{true, false} {
			if n++; sparse(n) {
				continue
			}
			t.Run(fmt.Sprintf("%s/hard=%v", point, hard), func(t *testing.T) {
				t.Parallel()
				one := func(c *exporter.Config) { c.Workers = 1 }
				inForgetfulBubble(t, one, func(t *testing.T, b *bubble) {
					full := b.finish(b.kickOff(system()))
					must(t, b.sample.Delete("Immunization", "i1"), b.sample.Put(dose("i2", "p2")))
					<-time.After(time.Minute)
					reached := b.events.freezeWhen(on)
					id := b.kickOff(since(full.TransactionTime))
					select {
					case <-reached:
						b.resume(hard)
					case <-time.After(10 * patience):
						t.Fatal("the point is never reached")
					}
					second := b.finish(id)
					wantDeleted(t, b, second, "Immunization/i1")
					must(t, b.sample.Delete("Immunization", "i2"))
					<-time.After(time.Minute)
					wantDeleted(t, b, b.finish(b.kickOff(since(second.TransactionTime))), "Immunization/i2")
				})
			})
		}
	}
}

// Ensure a crash between the end of a job and the publication of its ledger loses nothing.
func TestCrashBeforeALedgerIsPublished(t *testing.T) {
	inForgetfulBubble(t, nil, func(t *testing.T, b *bubble) {
		full := b.finish(b.kickOff(since(time.Time{}, "Immunization")))
		<-time.After(time.Minute)
		b.stop()
		dir := filepath.Join(b.folder, "spool", full.ID) // as it was before
		must(t, os.Mkdir(dir, 0o700))
		for name := range b.ledgers() {
			must(t, os.Rename(filepath.Join(b.folder, "ledger", name), filepath.Join(dir, name)))
		}
		b.start()
		must(t, b.sample.Delete("Immunization", "i1"))
		<-time.After(time.Minute)
		wantDeleted(t, b, b.finish(b.kickOff(since(full.TransactionTime, "Immunization"))), "Immunization/i1")
	})
}
