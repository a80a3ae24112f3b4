package fhir_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// fixed answers with the same bytes and costs next to nothing itself.
type fixed []byte

func (f fixed) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(f)), Request: r}, nil
}

// observations are resources of about a kilobyte, as many a page holds.
func observations(n int) []string {
	resources := make([]string, n)
	for i := range resources {
		resources[i] = fmt.Sprintf(`{"resourceType":"Observation","id":"o-%d","meta":{"versionId":"1","lastUpdated":"2024-05-01T12:00:00.%03dZ"},`+
			`"status":"final","code":{"coding":[{"system":"http://loinc.org","code":"8302-2","display":"Body Height"}],"text":"Body Height"},`+
			`"subject":{"reference":"Patient/%d"},"effectiveDateTime":"2024-05-01T12:00:00+02:00","note":[{"text":"%s"}],`+
			`"valueQuantity":{"value":%d.10,"unit":"cm","system":"http://unitsofmeasure.org","code":"cm"}}`,
			i, i%1000, i/7, strings.Repeat("all of it as it was, ", 20), 150+i%40)
	}
	return resources
}

// BenchmarkReader reads pages of 1,000 resources, with all that a crawl takes from each, and BenchmarkDecoder does the
// same with encoding/json. The ratio of their MB/s, which count the bytes as the server sent them, is to be 11 or more.
func BenchmarkReader(b *testing.B) {
	eachPage(b, func(b *testing.B, page []byte, rows int) {
		client := mockClient(b, fixed(page))
		c := compartment(b, "4.0.1")
		for b.Loop() {
			page, err := client.Search(b.Context(), fhir.Query{Type: "Observation", Count: 1000})
			if err != nil {
				b.Fatal(err)
			}
			page.Collect(c, false)
			got := 0
			err = page.Each(func(e *fhir.Entry) error {
				if e.ID != "" && !e.LastUpdated.IsZero() && e.Mode == "match" {
					got++
				}
				_, err := e.WriteTo(io.Discard)
				return err
			})
			if err != nil || got != rows {
				b.Fatalf("%d rows, %v", got, err)
			}
		}
	})
}

// BenchmarkDecoder is the baseline of BenchmarkReader: a Decoder that takes the entries one by one as raw messages, which
// are compacted, and read again for the fields.
func BenchmarkDecoder(b *testing.B) {
	eachPage(b, func(b *testing.B, page []byte, rows int) {
		for b.Loop() {
			if got, err := decodeByLibrary(page); err != nil || got != rows {
				b.Fatalf("%d rows, %v", got, err)
			}
		}
	})
}

func decodeByLibrary(page []byte) (rows int, err error) {
	dec := json.NewDecoder(bytes.NewReader(page))
	var line bytes.Buffer
	for { // up to the entries
		token, err := dec.Token()
		if err != nil {
			return rows, err
		}
		if token == "entry" {
			break
		}
	}
	if _, err := dec.Token(); err != nil {
		return rows, err
	}
	for dec.More() {
		var entry struct {
			FullURL  string
			Resource json.RawMessage
			Search   struct{ Mode string }
		}
		if err := dec.Decode(&entry); err != nil {
			return rows, err
		}
		var header struct {
			ResourceType, ID string
			Meta             struct {
				VersionID   string
				LastUpdated time.Time
			}
		}
		if err := json.Unmarshal(entry.Resource, &header); err != nil {
			return rows, err
		}
		line.Reset()
		if err := json.Compact(&line, entry.Resource); err != nil {
			return rows, err
		}
		if header.ID != "" && !header.Meta.LastUpdated.IsZero() && entry.Search.Mode == "match" {
			rows++
		}
	}
	return rows, nil
}

// eachPage runs a benchmark on every kind of page.
func eachPage(b *testing.B, run func(b *testing.B, page []byte, rows int)) {
	pages := map[string][]string{"observations": observations(1000), "generated": stamped(fhirtest.Generate(1, 60)), "synthea": synthea(b)}
	for _, name := range []string{"observations", "generated", "synthea"} {
		resources := pages[name]
		text := searchset(resources...)
		for _, form := range []struct{ name, page string }{{"compact", text}, {"pretty", pretty(b, text)}} {
			b.Run(name+"/"+form.name, func(b *testing.B) {
				if len(resources) == 0 {
					b.Skip("../shared/data is not there")
				}
				b.SetBytes(int64(len(form.page)))
				b.ReportAllocs()
				run(b, []byte(form.page), len(resources))
			})
		}
	}
}

// stamped gives at most a thousand resources the meta that a server adds.
func stamped(resources [][]byte) []string {
	var with []string
	for _, resource := range resources[:min(1000, len(resources))] {
		rest, _ := strings.CutPrefix(string(resource), "{")
		with = append(with, `{"meta":{"versionId":"1","lastUpdated":"2024-05-01T12:00:00.123Z"},`+rest)
	}
	return with
}

// synthea returns real-sized resources, none where the folder of test data is absent.
func synthea(b testing.TB) []string {
	file, err := os.Open("../../../shared/data/synthea-100.ndjson.gz")
	if err != nil {
		return nil
	}
	defer func() {
		if err := file.Close(); err != nil {
			b.Error(err)
		}
	}()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(unzipped)
	lines.Buffer(nil, 16<<20)
	var resources [][]byte
	for n := 0; len(resources) < 1000 && lines.Scan(); n++ {
		if n%30 == 0 { // from all types, which stand one after another
			resources = append(resources, bytes.Clone(lines.Bytes()))
		}
	}
	if err := lines.Err(); err != nil {
		b.Fatal(err)
	}
	return stamped(resources)
}
