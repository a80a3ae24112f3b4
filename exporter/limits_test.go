package exporter_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure an export that would be larger than one may be fails, and is never cut to that size: one byte decides.
func TestExportBytes(t *testing.T) {
	total := int64(0)
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		files, err := b.store.Files(t.Context(), b.finish(b.kickOff(system())).ID)
		must(t, err)
		for _, file := range files {
			if file.Kind == state.Output {
				total += file.Bytes
			}
		}
	})
	export := func(bytes int64, kickoff state.Kickoff, look func(*testing.T, *bubble, *state.Job)) {
		edit := func(c *exporter.Config) { smallPages(c); c.MaxExportBytes = bytes }
		fill := thirtyRows(t)
		if kickoff.OrganizeBy != "" {
			fill = ward(t)
		}
		inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) { look(t, b, b.finish(b.kickOff(kickoff))) })
	}
	tooCostly := func(t *testing.T, _ *bubble, job *state.Job) {
		if job.Status != state.Failed || job.Failure.Code != "too-costly" || job.Failure.Status != 400 {
			t.Errorf("%s %+v with the remarks %v", job.Status, job.Failure, job.Issues)
		}
	}
	organized := system()
	organized.OrganizeBy = "Patient"
	export(total, system(), func(t *testing.T, b *bubble, job *state.Job) { same(t, b.rows(job), b.snapshot()) })
	export(total-1, system(), tooCostly)
	export(1, system(), tooCostly)
	export(1, organized, tooCostly)
}

// Ensure kick-offs of one client that come at once are counted one by one.
func TestJobsPerClientAtOnce(t *testing.T) {
	edit := func(c *exporter.Config) { smallPages(c); c.MaxJobsPerClient, c.MaxRunning = 2, 100 }
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		var taken atomic.Int32
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				switch _, err := b.KickOff(t.Context(), system()); {
				case err == nil:
					taken.Add(1)
				case !errors.Is(err, state.ErrTooMany):
					t.Error(err)
				}
			})
		}
		if all.Wait(); taken.Load() != 2 {
			t.Errorf("%d exports are kept, want 2", taken.Load())
		}
	})
}

// Ensure one client cannot keep more exports than it may, and that it keeps nobody else from theirs.
func TestJobsPerClient(t *testing.T) {
	edit := func(c *exporter.Config) { smallPages(c); c.MaxJobsPerClient, c.MaxRunning = 2, 10 }
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		of := func(client string) error {
			kickoff := system()
			kickoff.Client = client
			_, err := b.KickOff(t.Context(), kickoff)
			return err
		}
		kickoff := system()
		kickoff.Client = "a"
		first := b.kickOff(kickoff)
		must(t, of("a"), of("b"), of(""), of(""))
		for _, client := range []string{"a", ""} {
			if err := of(client); !errors.Is(err, state.ErrTooMany) {
				t.Errorf("a third export of %q: %v", client, err)
			}
		}
		must(t, of("b"), b.Cancel(t.Context(), first), of("a"))
		<-time.After(time.Hour)
		if err := of("a"); !errors.Is(err, state.ErrTooMany) {
			t.Errorf("exports that have ended do not count: %v", err)
		}
	})
}
