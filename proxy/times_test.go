package proxy_test

import (
	"net/http"
	"net/url"
	"testing"
	"time"

	"sidecar/state"
)

// Ensure that the future is that of the server's clock: transaction times are rounded up by it, and clients send them back as
// _since whatever our clock says.
func TestFutureIsByTheServersClock(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"ahead": 10 * time.Minute, "behind": -10 * time.Minute, "the same": 0} {
		t.Run(name, func(t *testing.T) {
			h, sample := newFHIRHouse(t, nil)
			sample.Now = func() time.Time { return time.Now().Add(ahead) }
			h.exports.kickOff = acceptAll
			for _, parameter := range []string{"_since", "_until"} {
				for beside, want := range map[time.Duration]int{-time.Hour: 202, -time.Second: 202, time.Second: 202, 20 * time.Second: 400, time.Hour: 400} {
					at := time.Now().Add(ahead + beside).UTC().Format(time.RFC3339)
					got := h.ask(http.MethodGet, h.base+"/$export?"+parameter+"="+url.QueryEscape(at))
					if got.status != want {
						t.Errorf("%s %s beside the server's clock: got %d, want %d: %s", parameter, beside, got.status, want, got.body)
					}
				}
			}
		})
	}
}

// acceptAll begins no job and says that it has.
func acceptAll(kickoff state.Kickoff) (*state.Job, error) {
	return &state.Job{ID: "job-1", Status: state.Accepted, Kickoff: kickoff, Accepted: time.Now()}, nil
}

// Ensure that a part of a date means its first instant in UTC, in both bounds and however they are sent.
func TestPartOfADate(t *testing.T) {
	for sent, want := range map[string]time.Time{
		"2010":       time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC),
		"2010-02":    time.Date(2010, 2, 1, 0, 0, 0, 0, time.UTC),
		"2010-02-03": time.Date(2010, 2, 3, 0, 0, 0, 0, time.UTC),
	} {
		t.Run(sent, func(t *testing.T) {
			h, _ := newFHIRHouse(t, nil)
			h.exports.kickOff = acceptAll
			body := func(name, typ string) string { return posted(`{"name":"` + name + `","` + typ + `":"` + sent + `"}`) }
			for _, got := range []answer{
				h.ask(http.MethodGet, h.base+"/$export?_since="+sent),
				h.ask(http.MethodGet, h.base+"/$export?_until="+sent),
				h.send(http.MethodPost, h.base+"/$export", body("_since", "valueDateTime"), "Content-Type", "application/fhir+json"),
				h.send(http.MethodPost, h.base+"/$export", body("_until", "valueString"), "Content-Type", "application/fhir+json"),
			} {
				if got.status != http.StatusAccepted {
					t.Fatalf("got %d %s", got.status, got.body)
				}
			}
			for i, kickoff := range h.exports.asked {
				at := kickoff.Since
				if i%2 == 1 {
					at = kickoff.Until
				}
				if !at.Equal(want) {
					t.Errorf("request %d: got %s, want %s", i, at, want)
				}
			}
		})
	}
}
