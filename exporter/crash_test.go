package exporter_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// faultyBucket has a fault of the program in it.
type faultyBucket struct {
	blob.Bucket
	mended *atomic.Bool
}

func (b *faultyBucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	if strings.HasSuffix(name, ".ndjson") && !b.mended.Load() {
		panic("a fault that names pat-1")
	}
	return b.Bucket.Put(ctx, name, media, body)
}

// Ensure a panic in any stage of an export ends that export with words that say nothing of the inside, that the process and
// later exports go on, and that a restart does not begin the broken one again.
func TestPanicEndsTheJobAlone(t *testing.T) {
	for stage, on := range map[string]func(*http.Request) bool{
		"clock": func(*http.Request) bool { return true },
		"plan":  func(r *http.Request) bool { return r.URL.Query().Get("_summary") == "count" },
		"crawl": func(r *http.Request) bool { return r.URL.Query().Get("_sort") == "_lastUpdated" },
		"asked ahead": func(r *http.Request) bool {
			return r.URL.Query().Get("_sort") == "_lastUpdated" && strings.Contains(r.URL.RawQuery, "_lastUpdated=ge")
		},
		"repair": func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/_history") },
		"bucket": nil,
	} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			var mended atomic.Bool
			edit := func(c *exporter.Config) {
				c.PageSize, c.Workers = 10, 4
				c.Bucket = &faultyBucket{Bucket: c.Bucket, mended: &mended}
			}
			inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
				mended.Store(true)
				want := b.rows(b.finish(b.kickOff(system())))
				if mended.Store(on != nil); on != nil {
					b.link.hook = func(r *http.Request) {
						if on(r) {
							panic("a fault that names pat-1")
						}
					}
				}
				id := b.kickOff(system())
				job := b.finish(id)
				if job.Status != state.Failed || job.Failure.Code != "exception" || !strings.Contains(job.Failure.Text, "an error inside the export sidecar") {
					t.Fatalf("%s %+v, want a failure inside the sidecar", job.Status, job.Failure)
				}
				b.link.hook = nil
				mended.Store(true)
				b.resume(false)
				if job := b.finish(id); job.Status != state.Failed {
					t.Errorf("after a restart the job is %s", job.Status)
				}
				same(t, b.rows(b.finish(b.kickOff(system()))), want)
			})
		})
	}
}
