package exporter

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

// BenchmarkChange shows how many bytes of memory an entry of the history holds while its type is repaired, whose _since may be
// long ago: of what lies before the span of repairs only deletions are held.
func BenchmarkChange(b *testing.B) {
	const many = 300_000
	now := time.Now()
	for name, row := range map[string]fhir.Entry{
		"changed in the span": {LastUpdated: now},
		"changed before it":   {LastUpdated: now.Add(-time.Hour)},
		"deleted before it":   {LastUpdated: now.Add(-time.Hour), Deleted: true},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				h := &changes{
					until: now, span: now.Add(-repairSpan), after: now.Add(-1000 * time.Hour),
					byID: map[string]*change{}, old: map[string]*change{},
				}
				for i := range many {
					entry := row
					entry.Type, entry.ID, entry.Version = "Observation", fmt.Sprintf("%08x-0000-4000-8000-%012x", i, i), "12"
					if err := h.see(&entry); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/many, "held-B/change")
				runtime.KeepAlive(h)
			}
		})
	}
}
