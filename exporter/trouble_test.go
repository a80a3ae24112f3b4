package exporter_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// smallPages makes ten rows a page, one slice at a time.
func smallPages(c *exporter.Config) { c.PageSize, c.Workers = 10, 1 }

// thirtyRows is less than would be cut into slices.
func thirtyRows(t *testing.T) func(*fhirtest.Server) {
	return func(s *fhirtest.Server) { spread(t, s, "Observation", 30, 7*time.Second, time.Hour) }
}

// Ensure rows that change before they are read are exported as of T although a page of the history expires: neither 404
// nor 410 on a link says that there is no history.
func TestExpiredHistoryPageLosesNothing(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusGone} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			fill := func(s *fhirtest.Server) { spread(t, s, "Observation", 120, 7*time.Second, time.Hour) }
			inBubble(t, fhirtest.HAPI(), smallPages, fill, func(t *testing.T, b *bubble) {
				want := b.snapshot()
				var once atomic.Bool
				b.link.hook = func(r *http.Request) {
					if !isRowPage(r) || once.Swap(true) {
						return
					}
					for i := range 120 { // more than a page of the history
						if err := b.sample.Put(fmt.Appendf(nil, `{"resourceType":"Observation","id":"Obs-%d","language":"fr"}`, i)); err != nil {
							t.Error(err)
						}
					}
				}
				b.sample.Fail(fhirtest.Fault{ExpirePages: status, Match: func(r *http.Request) bool { return once.Load() }})
				same(t, b.rows(b.finish(b.kickOff(system()))), want)
			})
		})
	}
}

// isRowPage matches the reading of rows, not the probes and counts.
func isRowPage(r *http.Request) bool {
	query := r.URL.Query()
	return query.Get("_sort") == "_lastUpdated" && query.Get("_count") == "10"
}

// Ensure a slice that is being read again, because the server counted more than it gave, is not doubled by a crash.
func TestKilledWhileASliceIsReadAgain(t *testing.T) {
	for at := range 6 {
		for _, hard := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d/hard=%v", at, hard), func(t *testing.T) {
				t.Parallel()
				inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
					var pages atomic.Int64
					var reached <-chan struct{}
					frozen := make(chan struct{})
					b.link.hook = func(r *http.Request) {
						if !isRowPage(r) {
							return
						}
						page := pages.Add(1)
						if page == 3 { // a row of the first page becomes visible late
							err := b.sample.PutAt([]byte(`{"resourceType":"Observation","id":"late"}`), time.Now().Add(-63*time.Minute))
							if err != nil {
								t.Error(err)
							}
						}
						if page == int64(4+at) {
							reached = b.events.freeze(1)
							close(frozen)
						}
					}
					id := b.kickOff(system())
					select {
					case <-frozen:
						select {
						case <-reached:
							b.resume(hard)
						case <-time.After(time.Hour):
						}
					case <-time.After(time.Hour):
					}
					same(t, b.rows(b.finish(id)), b.snapshot())
				})
			})
		}
	}
}

// Ensure an export says when rows may be missing because they changed before they were read and no history has them.
func TestMissingHistoryIsRemarked(t *testing.T) {
	refuse := func(p *fhirtest.Personality) { p.NoHistory = true }
	inBubble(t, with(fhirtest.Plain(), refuse), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		job := b.finish(b.kickOff(system()))
		if job.Status != state.Completed || len(job.Issues) != 1 || !strings.Contains(job.Issues[0].Text, "history") {
			t.Errorf("%s with the remarks %+v, want one on the history", job.Status, job.Issues)
		}
	})
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		spread(t, b.sample, "Condition", 5, time.Second, time.Hour)
		b.sample.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Condition/_history") }, Times: -1, Status: 405,
		})
		job := b.finish(b.kickOff(system()))
		if job.Status != state.Completed || len(job.Issues) != 1 || !strings.Contains(job.Issues[0].Text, "Condition") {
			t.Errorf("%s with the remarks %+v, want one on Condition's history", job.Status, job.Issues)
		}
	})
}

// Ensure a type that is not offered is a remark also where the server does not count.
func TestTypeNotOfferedByAServerThatDoesNotCount(t *testing.T) {
	silent := func(p *fhirtest.Personality) { p.NoSummaryCount = true }
	inBubble(t, with(fhirtest.Plain(), silent), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		refuseTotals(b.sample)
		b.sample.Fail(fhirtest.Fault{
			Match: func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/Condition") }, Times: -1, Status: 501,
		})
		job := b.finish(b.kickOff(system()))
		same(t, b.rows(job), b.snapshot())
		if len(job.Issues) != 2 {
			t.Errorf("remarks %+v, want one on the counts and one on the type", job.Issues)
		}
	})
}

// Ensure a row whose deletion before T becomes visible after its reading is taken out again, and that the job says so.
func TestDeletionSeenTooLateIsTakenOut(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		clock := b.sample.Now
		var pages atomic.Int64
		b.link.hook = func(r *http.Request) {
			if isRowPage(r) && pages.Add(1) == 3 {
				jobs, err := b.store.List(t.Context())
				if err != nil {
					t.Error(err)
				}
				b.sample.Now = func() time.Time { return jobs[0].TransactionTime.Add(-time.Second) }
				if err := b.sample.Delete("Observation", "Obs-0"); err != nil {
					t.Error(err)
				}
				b.sample.Now = clock
			}
		}
		lateIsTakenOut(t, b, b.finish(b.kickOff(system())))
	})
}

// lateIsTakenOut checks an export in which one late write made a row stale.
func lateIsTakenOut(t *testing.T, b *bubble, job *state.Job) {
	t.Helper()
	same(t, b.rows(job), b.snapshot())
	if len(job.Issues) != 1 || !strings.Contains(job.Issues[0].Text, "settle") {
		t.Errorf("the remarks are %+v, want one that names settle", job.Issues)
	}
	for _, proof := range job.Proof {
		if proof.Type == "Observation" && (proof.Replaced != 1 || proof.Verdict != state.Proved || proof.Exported != int64(len(b.rows(job)))) {
			t.Errorf("the account is %+v, want one row replaced, the others exported and the type proved", proof)
		}
	}
}

// Ensure a link that expires within a crowded instant costs another pass and doubles nothing.
func TestExpiredLinkInACrowdedInstant(t *testing.T) {
	for _, personality := range personalities() {
		t.Run(personality.Name, func(t *testing.T) {
			t.Parallel()
			fill := func(s *fhirtest.Server) {
				thirtyRows(t)(s)
				burst(t, s, "Observation", 75, time.Hour+time.Minute)
			}
			inBubble(t, personality, smallPages, fill, func(t *testing.T, b *bubble) {
				skip := 2
				follows := func(*http.Request) bool { skip--; return skip == 0 }
				b.sample.Fail(fhirtest.Fault{Match: follows, ExpirePages: http.StatusGone})
				b.sample.Fail(fhirtest.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("_page") }, CutBody: true})
				same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
			})
		})
	}
}

// brokenBucket refuses its first puts of files.
type brokenBucket struct {
	blob.Bucket
	left atomic.Int64
}

func (b *brokenBucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	if strings.Contains(name, "/") && b.left.Add(-1) >= 0 {
		if _, err := io.CopyN(io.Discard, body, 100); err != nil { // a part was sent
			return err
		}
		return errors.New("bucket is away")
	}
	return b.Bucket.Put(ctx, name, media, body)
}

// Ensure a bucket that is away for a while costs time, and for good fails the job without its address in the text.
func TestBucketThatIsAway(t *testing.T) {
	for name, puts := range map[string]int64{"once": 1, "for a while": 7, "for good": 1 << 40} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edit := func(c *exporter.Config) {
				smallPages(c)
				c.MaxFileBytes, c.GiveUp = 1<<10, 40*time.Second
				if name == "for a while" {
					c.GiveUp = time.Hour
				}
				bucket := &brokenBucket{Bucket: c.Bucket}
				bucket.left.Store(puts)
				c.Bucket = bucket
			}
			inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				id := b.kickOff(system())
				job := b.finish(id)
				if name != "for good" {
					same(t, b.rows(job), b.snapshot())
					return
				}
				if job.Status != state.Failed || strings.Contains(job.Failure.Text, "away") {
					t.Fatalf("%s: %+v, want a failure without the bucket's words", job.Status, job.Failure)
				}
				if took := job.Finished.Sub(job.Accepted); took < 40*time.Second || took > 3*time.Minute { // reading, and the last pause
					t.Errorf("failed after %s, want give_up and a little", took)
				}
			})
		})
	}
}

// Ensure progress never goes back, also when a slice is read again.
func TestProgressNeverGoesBack(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		var pages atomic.Int64
		b.link.hook = func(r *http.Request) {
			if isRowPage(r) && pages.Add(1) == 3 {
				if err := b.sample.PutAt([]byte(`{"resourceType":"Observation","id":"late"}`), time.Now().Add(-63*time.Minute)); err != nil {
					t.Error(err)
				}
			}
		}
		id := b.kickOff(system())
		shown := int64(0)
		for running := true; running; <-time.After(50 * time.Millisecond) {
			job, err := b.store.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			slices, err := b.store.Slices(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			now := int64(0)
			for _, slice := range slices {
				now += slice.Shown
			}
			if now < shown {
				t.Errorf("shown %d rows after %d", now, shown)
			}
			shown, running = now, job.Running()
		}
		if pages.Load() < 6 || shown < 31 {
			t.Errorf("%d pages read and %d rows shown: the slice was not read again", pages.Load(), shown)
		}
	})
}
