package exporter_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// Ensure files keep to the sizes that a client asks for, wherever the process is ended, and that an export with them holds what
// one without does. That no file is too large, every test looks for.
func TestFilesKeepToTheSizesThatAreAskedFor(t *testing.T) {
	for name, test := range map[string]struct {
		least, most int64
		by          string
		large       bool // there is a resource that is larger than the files
	}{
		"largest":                {most: 700},
		"largest, a larger row":  {most: 700, large: true},
		"less than any row":      {most: 10, large: true},
		"more than the server's": {most: 1 << 20},
		"both":                   {least: 400, most: 1000},
		"smallest":               {least: 1500},
		"organised":              {most: 700, by: "Patient"},
		"organised, a large row": {most: 700, by: "Patient", large: true},
	} {
		for _, at := range []int64{0, 60, 140} {
			t.Run(fmt.Sprintf("%s/%d", name, at), func(t *testing.T) {
				t.Parallel()
				edit := func(c *exporter.Config) { c.PageSize, c.MaxFileBytes, c.Workers, c.Gzip = 12, 5000, 2, at == 60 }
				fill := func(s *fhirtest.Server) {
					rows(t, s, 60, 0)
					if test.large {
						rows(t, s, 1, 2000)
					}
				}
				inBubble(t, fhirtest.HAPI(), edit, fill, func(t *testing.T, b *bubble) {
					kickoff := kickoffOf(state.System, "Observation", "Condition", "Patient")
					want := b.rows(b.finish(b.kickOff(kickoff)))
					kickoff.MinFileBytes, kickoff.MaxFileBytes, kickoff.OrganizeBy = test.least, test.most, test.by
					reached := b.events.freeze(at)
					id := b.kickOff(kickoff)
					select {
					case <-reached:
						b.resume(at == 60)
					case <-time.After(10 * patience): // the run is whole
						b.events.thaw()
					}
					job := b.finish(id)
					same(t, b.rows(job), want)
					b.checkSmallest(t, job)
					said := slices.ContainsFunc(job.Issues, func(issue state.Issue) bool { return strings.Contains(issue.Text, "larger than _maximumFileSize") })
					if said != test.large {
						t.Errorf("the remarks are %+v", job.Issues)
					}
				})
			})
		}
	}
}

// rows puts Observations of two Patients with so much text, and two Conditions.
func rows(t *testing.T, s *fhirtest.Server, n, text int) {
	t.Helper()
	put := func(i int, line string) {
		must(t, s.PutAt([]byte(line), time.Now().Add(time.Duration(i)*time.Minute-2*time.Hour)))
	}
	for i := range n {
		put(i, fmt.Sprintf(`{"resourceType":"Observation","id":"of-%d-%d","subject":{"reference":"Patient/p%d"},"note":[{"text":%q}]}`, i, text, i%2, strings.Repeat("x", text)))
	}
	for i := range 2 {
		put(i, fmt.Sprintf(`{"resourceType":"Patient","id":"p%d"}`, i))
		put(i, fmt.Sprintf(`{"resourceType":"Condition","id":"c%d","subject":{"reference":"Patient/p0"}}`, i))
	}
}

// checkSmallest looks for files that are smaller than they have to be: only a type that is smaller as a whole has one.
func (b *bubble) checkSmallest(t *testing.T, job *state.Job) {
	t.Helper()
	files, err := b.store.Files(t.Context(), job.ID)
	must(t, err)
	all := map[string]int64{}
	for _, file := range files {
		all[file.Type] += file.Bytes
	}
	for _, file := range files {
		if file.Kind == state.Output && file.Bytes < min(job.Kickoff.MinFileBytes, all[file.Type]) {
			t.Errorf("%s has %d bytes of %d", file.Name, file.Bytes, all[file.Type])
		}
	}
}
