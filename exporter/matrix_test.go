package exporter_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure each product survives each failure in the same way: what a product can do decides the way, never the result.
func TestEveryFailureOnEveryServer(t *testing.T) {
	servers := append(personalities(),
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.IgnoreSort = "no sort", true }),
		with(fhirtest.Blaze(), func(p *fhirtest.Personality) { p.Name, p.IgnoreSort = "no sort, seconds", true }),
		with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.Name, p.MaxCount = "seven rows a page", 7 }),
	)
	for name, make := range map[string]func() cell{
		"401 once":  func() cell { return cell{before: status(401, 1, nil, observations)} },
		"409 once":  func() cell { return cell{before: status(409, 1, nil, observations)} },
		"429":       func() cell { return cell{before: status(429, 4, http.Header{"Retry-After": {"3"}}, observations)} },
		"502":       func() cell { return cell{before: status(502, 4, nil, observations)} },
		"500 twice": func() cell { return cell{before: status(500, 2, nil, observations)} },
		"504":       func() cell { return cell{before: status(504, 4, nil, observations)} },
		"remark": func() cell {
			return cell{after: onRead("Observation", tell("Obs-3", "information", "informational", -1))}
		},
		"severe outcome once":   func() cell { return cell{after: onRead("Observation", tell("Obs-3", "error", "too-costly", 1))} },
		"rows without resource": func() cell { return cell{after: onRead("Observation", bare)} },
		"broken row": func() cell {
			return cell{after: onRead("Observation", poison("Obs-17")), code: "incomplete", holes: 1, rows: 1, written: 54, reason: "exception"}
		},
		"severe outcome for a row": func() cell {
			return cell{
				after: onRead("Observation", tell("Obs-17", "error", "suppressed", -1)),
				code:  "incomplete", holes: 1, rows: -1, written: 55, reason: "suppressed",
			}
		},
		"403 on a type": func() cell {
			return cell{before: status(403, -1, nil, anyOf("Condition")), code: "forbidden", holes: 1, rows: -1, written: 30, reason: "forbidden"}
		},
	} {
		for _, server := range servers {
			c := make()
			c.server = server
			t.Run(name+"/"+server.Name, c.run)
		}
	}
}

// Ensure an export that bisects is the same wherever it is killed, also while it closes in on a broken row.
func TestKilledWhileBisecting(t *testing.T) {
	noSort := with(fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true })
	for name, server := range map[string]fhirtest.Personality{"no sort": noSort, "sort": fhirtest.Plain()} {
		for _, at := range []int64{70, 80, 90, 110, 130, 150} {
			for _, broken := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/broken=%v", name, at, broken), func(t *testing.T) {
					t.Parallel()
					fill := func(s *fhirtest.Server) {
						spread(t, s, "Observation", 200, 3*time.Second, time.Hour)
						burst(t, s, "Observation", 25, 90*time.Minute)
					}
					inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
						want := b.snapshot()
						if broken {
							b.link.handler = &altered{sample: b.link.handler, after: onRead("Observation", poison("Obs-117"))}
						}
						reached := b.events.freeze(at)
						id := b.kickOff(system())
						select {
						case <-reached:
							b.resume(true)
						case <-time.After(time.Hour):
							b.events.thaw()
						}
						job := b.finish(id)
						if !broken {
							same(t, b.rows(job), want)
							return
						}
						(&cell{code: "incomplete", holes: 1, rows: 1, written: 224, reason: "exception"}).failed(t, b, job)
					})
				})
			}
		}
	}
}
