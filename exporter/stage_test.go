package exporter_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure a job tells what it does: that it asks, settles and plans, that it waits for the server, and nothing when it has ended.
func TestStagesAreTold(t *testing.T) {
	edit := func(c *exporter.Config) {
		smallPages(c)
		c.Settle = 5 * time.Minute
	}
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		away := time.Time{}
		b.link.handler = &altered{sample: b.link.handler, before: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("_sort") != "_lastUpdated" || time.Now().After(away) {
				return false
			}
			refuse(w, http.StatusServiceUnavailable)
			return true
		}}
		id := b.kickOff(system())
		told, retries := map[string]bool{}, int64(0)
		for running := true; running; <-time.After(100 * time.Millisecond) {
			said := b.Stage(id)
			told[said] = true
			retries = max(retries, b.Retries(id))
			if said == "planning" && away.IsZero() {
				away = time.Now().Add(time.Minute)
			}
			job, err := b.store.Get(t.Context(), id)
			must(t, err)
			running = job.Running()
		}
		for _, want := range []string{"asking what the server can do", "waiting until the server's last writes have settled", "planning", "waiting for the FHIR server"} {
			if !told[want] {
				t.Errorf("it never says %q: %v", want, told)
			}
		}
		if retries == 0 {
			t.Error("it never says that a request was sent again")
		}
		<-time.After(time.Second)
		if said := b.Stage(id); said != "" || b.Retries(id) != 0 {
			t.Errorf("a job that has ended says %q and %d requests sent again", said, b.Retries(id))
		}
	})
}

// Ensure a job that waits for the quiet hours says when they begin.
func TestStageOutsideOfTheQuietHours(t *testing.T) {
	begin := time.Date(2000, 1, 1, 5, 0, 0, 0, time.UTC).Local().Format("15:04")
	end := time.Date(2000, 1, 1, 6, 0, 0, 0, time.UTC).Local().Format("15:04")
	edit := func(c *exporter.Config) {
		hours, err := exporter.ParseHours(begin + "-" + end)
		must(t, err)
		c.QuietHours = hours
	}
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		id := b.kickOff(system())
		<-time.After(time.Minute)
		if said := b.Stage(id); !strings.Contains(said, "quiet hours from "+begin) {
			t.Errorf("it says %q", said)
		}
	})
}
