package exporter_test

import (
	"net/http"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure the server is asked within the quiet hours only, and an export goes on where it stood when they return, although
// they are longer away than a job may wait for a server.
func TestQuietHours(t *testing.T) {
	edit := func(c *exporter.Config) {
		smallPages(c)
		// The bubble's clock begins at midnight UTC, and a request takes 0.3 s: a minute is not enough for the job.
		begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Local().Add(2 * time.Hour)
		hours, err := exporter.ParseHours(begin.Format("15:04") + "-" + begin.Add(time.Minute).Format("15:04"))
		if err != nil {
			t.Fatal(err)
		}
		c.QuietHours = hours
	}
	fill := func(s *fhirtest.Server) { spread(t, s, "Observation", 1500, time.Second, time.Hour) }
	inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
		want, days := b.snapshot(), map[int]int{}
		b.link.hook = func(*http.Request) {
			now := time.Now().UTC()
			days[now.Day()]++
			if now.Hour() != 2 || now.Minute() > 0 && now.Second() > 0 { // one that was let through may arrive a little late
				t.Errorf("the server is asked at %s", now.Format(time.TimeOnly))
			}
		}
		id := b.kickOff(system())
		for range 15 { // finish waits two hours
			job, err := b.store.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if !job.Running() {
				break
			}
			<-time.After(24 * time.Hour)
		}
		job, err := b.store.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		same(t, b.rows(job), want)
		if len(days) < 2 {
			t.Errorf("asked on %d days, want several", len(days))
		}
	})
}
