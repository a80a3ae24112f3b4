package exporter_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
)

// Ensure the log says in numbers what was handed out, for when the files and the job are gone, and names nobody.
func TestCompletedExportIsAccountedForInTheLog(t *testing.T) {
	var out bytes.Buffer
	edit := func(c *exporter.Config) {
		smallPages(c)
		c.Log = slog.New(slog.NewTextHandler(&out, nil))
	}
	inBubble(t, fhirtest.Plain(), edit, readings(t), func(t *testing.T, b *bubble) {
		kickoff := filteredBy("subject=Patient/p1")
		b.finish(b.kickOff(kickoff))
		synctest.Wait()
		_, said, _ := strings.Cut(out.String(), `msg="export completed"`)
		for _, want := range []string{" level=system ", " transaction_time=2000-", " types=2 ", " files=", " resources=90 ", " bytes="} {
			if !strings.Contains(said, want) {
				t.Errorf("the log lacks %q: %s", want, said)
			}
		}
		if strings.Contains(out.String(), "p1") {
			t.Errorf("the log holds what was searched for: %s", out.String())
		}
	})
}
