package exporter_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// lookAtPages reads all manifest pages of all jobs with their files, and holds them against those that were read before.
func (b *bubble) lookAtPages() {
	b.t.Helper()
	jobs, err := b.store.List(b.t.Context())
	must(b.t, err)
	for _, job := range jobs {
		pages := len(job.Pages)
		if pages > 0 && job.Status == state.Completed {
			pages++
		}
		for number := 1; number <= pages; number++ {
			name := fmt.Sprintf("%s/%d", job.ID, number)
			if b.pages[name] != "" && job.Running() {
				continue // the end tells
			}
			text := b.page(job, number)
			if before := b.pages[name]; before != "" && before != text {
				b.t.Errorf("page %d was\n%s\nand is\n%s", number, before, text)
			}
			b.pages[name] = text
		}
	}
}

// page is a page as a client reads it while there is no next one, and its files.
func (b *bubble) page(job *state.Job, number int) string {
	b.t.Helper()
	files, err := b.store.Files(b.t.Context(), job.ID)
	must(b.t, err)
	body, err := state.EncodePage(job, number, files, false, func(file state.File) string { return file.Name }, "")
	must(b.t, err)
	text := string(body)
	for _, file := range state.PageFiles(job, number, files) {
		if !job.Shows(file) {
			b.t.Errorf("page %d lists %s, which cannot be fetched", number, file.Name)
		}
		text += file.Name + "\n" + strings.Join(b.lines(job.Folder+"/"+file.Name), "\n") + "\n"
	}
	return text
}

// slow makes the server so slow that an export lasts for longer than late writes are waited for.
func (b *bubble) slow() {
	hook := b.link.hook
	b.link.hook = func(r *http.Request) {
		<-time.After(time.Second)
		hook(r)
	}
}

// Ensure that a short export is shown in parts where all writes that it has to hold were waited for, and in one where some may
// show late.
func TestPagesOfAShortExport(t *testing.T) {
	shown := []string{"Condition", "Encounter", "Observation", "Patient"}
	for _, passHere := range []bool{true, false} {
		t.Run(fmt.Sprintf("writes pass here %t", passHere), func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) {
				if c.PageSize, c.Workers, c.PageRows = 20, 2, 60; passHere {
					done := make(chan struct{})
					close(done)
					c.Writes = &heldWrites{done: done}
				}
			}
			inBubble(t, fhirtest.HAPI(), edit, killData(t), func(t *testing.T, b *bubble) {
				b.finish(b.kickOff(kickoffOf(state.System, "Patient"))) // the probes
				want := b.snapshot()
				maps.DeleteFunc(want, func(key, _ string) bool { return !slices.Contains(shown, strings.Split(key, "/")[0]) })
				kickoff := kickoffOf(state.System, shown...)
				kickoff.PartialManifests = true
				kicked := time.Now()
				job := b.finish(b.kickOff(kickoff))
				same(t, b.rows(job), want)
				if took := job.Finished.Sub(kicked); took > time.Minute {
					t.Errorf("the export took %s", took)
				}
				if (len(job.Pages) > 1) != passHere {
					t.Errorf("%d pages before the last one", len(job.Pages))
				}
			})
		})
	}
}

// Ensure that the types of an export whose client takes several manifests are shown before others are read, that no page
// changes, and that the pages together are the export, wherever the process is ended while data change.
func TestPagesAreShownEarlyAndNeverChange(t *testing.T) {
	edit := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers, c.PageRows = 20, 2<<10, 2, 60 }
	export := func(t *testing.T, at int64, hard bool) (events int64) {
		inBubble(t, fhirtest.HAPI(), edit, killData(t), func(t *testing.T, b *bubble) {
			want := b.snapshot()
			writeBehind(t, b, 1)
			b.slow()
			kickoff := system()
			kickoff.PartialManifests = true
			reached := b.events.freeze(at)
			id := b.kickOff(kickoff)
			if at > 0 {
				select {
				case <-reached:
					b.resume(hard)
				case <-time.After(10 * patience): // the run ended before
					b.events.thaw()
				}
			}
			job := b.finish(id)
			same(t, b.rows(job), want)
			if events = b.events.n.Load(); at > 0 { // who begins anew waits for late writes anew, and may be done before
				return
			}
			var shown []string
			for _, page := range job.Pages {
				shown = append(shown, page.Types...)
			}
			for _, typ := range []string{"Condition", "Encounter"} { // 50 rows and 90; Observation closes the last group
				if !slices.Contains(shown, typ) {
					t.Errorf("%s stands in no page before the end: %v", typ, shown)
				}
			}
			if len(job.Pages) < 2 || slices.Contains(shown, "Patient") {
				t.Errorf("%d pages before the last one, of %v", len(job.Pages), shown)
			}
		})
		return events
	}
	total := export(t, 0, false)
	for at := int64(1); at <= total; at += max(1, total/10) {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			export(t, at, at/(total/10)%2 == 0)
		})
	}
}
