package exporter_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// fullDisk lets nothing be written into spool files that are made from now on. They lead to /dev/full, which answers as a
// disk without room does.
func fullDisk(b *bubble) {
	b.t.Helper()
	jobs, err := filepath.Glob(filepath.Join(b.folder, "spool", "*"))
	must(b.t, err)
	for n := range 40 * len(jobs) {
		path := filepath.Join(jobs[n/40], fmt.Sprintf("%d.ndjson", n%40))
		if err := os.Symlink("/dev/full", path); err != nil && !errors.Is(err, fs.ErrExist) {
			b.t.Error(err)
		}
	}
}

// Ensure a job waits for room on a full disk, with fewer and fewer requests, goes on when there is some, and fails after
// give_up when there is none, in words that are for clients and without anything left in the spool.
func TestDiskWithoutRoom(t *testing.T) {
	const giveUp = 30 * time.Minute
	edit := func(c *exporter.Config) { smallPages(c); c.Workers, c.GiveUp = 1, giveUp }
	for name, lasts := range map[string]time.Duration{"for a while": 20 * time.Minute, "for good": 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(system())) // the probes are over
				began, pages := time.Now(), 0
				b.link.hook = func(r *http.Request) {
					if isRowPage(r) && time.Since(began) < lasts {
						pages++
						fullDisk(b)
					}
				}
				id := b.kickOff(system())
				job := b.finish(id)
				took := job.Finished.Sub(began)
				if lasts < giveUp {
					same(t, b.rows(job), b.snapshot())
				} else {
					storageFailed(t, job)
					if _, err := os.Stat(filepath.Join(b.folder, "spool", id)); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("the spool of the failed job: %v, want that it is not there", err)
					}
				}
				if least := min(lasts, giveUp); took < least || took > least+10*time.Minute {
					t.Errorf("took %s, want %s and a little", took, least)
				}
				if pages < 3 || pages > 100 { // one every three seconds were 600
					t.Errorf("%d pages were asked for on a full disk", pages)
				}
				b.link.hook = nil
				same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot()) // the slot is free
			})
		})
	}
}
