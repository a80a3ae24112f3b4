package exporter_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// probings is how often the server was probed since the last ResetRequests: each probing asks for an unknown parameter once.
func probings(s *fhirtest.Server) int {
	n := 0
	for _, r := range s.Requests() {
		if strings.Contains(r.RawQuery, "no-such-param-x") {
			n++
		}
	}
	return n
}

// exportOnce runs an export to its end, which is the state of the server, and returns how often the server was probed for it.
func exportOnce(t *testing.T, b *bubble) int {
	t.Helper()
	b.sample.ResetRequests()
	same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
	return probings(b.sample)
}

// Ensure a server is asked once a day, not again after a restart, and again when it promised too much.
func TestProfileIsKeptForADay(t *testing.T) {
	inBubble(t, fhirtest.Plain(), nil, thirtyRows(t), func(t *testing.T, b *bubble) {
		if profile, _ := b.Profile(t.Context()); profile != nil {
			t.Errorf("a profile before the first export: %+v", profile)
		}
		for _, step := range []struct {
			name   string
			before func()
			want   int
		}{
			{"first", func() {}, 1},
			{"second", func() {}, 0},
			{"after a restart", func() { b.resume(false) }, 0},
			{"after a crash", func() { b.resume(true) }, 0},
			{"within a day", func() { <-time.After(20 * time.Hour) }, 0},
			{"after a day", func() { <-time.After(5 * time.Hour) }, 1},
			{"after a doubt", func() { b.Doubt(t.Context(), "a test") }, 1},
			{"after that", func() {}, 0},
			{"after a doubt and a restart", func() {
				b.Doubt(t.Context(), "a test")
				b.resume(false)
			}, 1},
		} {
			step.before()
			if got := exportOnce(t, b); got != step.want {
				t.Errorf("%s: probed %d times, want %d", step.name, got, step.want)
			}
		}
		if profile, at := b.Profile(t.Context()); profile == nil || !profile.Keyset || time.Since(at) > time.Hour {
			t.Errorf("got %+v of %s", profile, at)
		}
	})
}

// Ensure a profile with an error in it lives ten minutes, and one of an empty server not at all.
func TestUncertainProfilesAreRenewedSoon(t *testing.T) {
	inBubble(t, fhirtest.Plain(), nil, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.sample.Fail(fhirtest.Fault{Times: 2, Status: http.StatusInternalServerError, Match: func(r *http.Request) bool {
			return strings.Contains(r.URL.RawQuery, "no-such-param-x")
		}})
		if got := exportOnce(t, b); got != 2 {
			t.Errorf("asked %d times, want a second time after the error", got)
		}
		if got := exportOnce(t, b); got != 0 {
			t.Errorf("probed %d times within ten minutes", got)
		}
		<-time.After(11 * time.Minute)
		if got := exportOnce(t, b); got != 1 {
			t.Errorf("probed %d times after ten minutes, want 1", got)
		}
	})
	inBubble(t, fhirtest.Plain(), nil, func(*fhirtest.Server) {}, func(t *testing.T, b *bubble) {
		exportOnce(t, b)
		if profile, _ := b.Profile(t.Context()); profile != nil {
			t.Errorf("kept %+v of an empty server", profile)
		}
	})
}

// Ensure a new version of the server is asked anew.
func TestProfileIsOfOneVersionOfTheServer(t *testing.T) {
	inBubble(t, fhirtest.Plain(), nil, thirtyRows(t), func(t *testing.T, b *bubble) {
		exportOnce(t, b)
		newer := fhirtest.Plain()
		newer.Version = "2.0.0"
		sample := newSample(newer)
		thirtyRows(t)(sample)
		<-time.After(time.Hour) // the CapabilityStatement is read again by then
		b.link.handler, b.sample = sample, sample
		if got := exportOnce(t, b); got != 1 {
			t.Errorf("probed %d times, want 1", got)
		}
	})
}

// Ensure a server that stops to keep its promises is noticed by the export that they fail, and asked anew by the next.
func TestBrokenPromiseIsDoubted(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		exportOnce(t, b)
		b.sample = newSample(with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true }))
		thirtyRows(t)(b.sample)
		b.link.handler = b.sample
		if job := b.finish(b.kickOff(system())); job.Status == state.Completed { // by a poorer strategy
			same(t, b.rows(job), b.snapshot())
		} else if job.Failure.Code != "incomplete" {
			t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
		}
		if got := probings(b.sample); got != 0 {
			t.Errorf("probed %d times before anything was wrong", got)
		}
		if got := exportOnce(t, b); got != 1 {
			t.Errorf("probed %d times after a broken promise, want 1", got)
		}
		if profile, _ := b.Profile(t.Context()); profile == nil || profile.Keyset {
			t.Errorf("got %+v, want no keyset", profile)
		}
	})
}
