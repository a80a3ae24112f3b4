package fhir_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
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

// BenchmarkPage reads a page of 1,000 resources, with all that a crawl takes from each. The MB/s count the bytes as
// the server sent them.
func BenchmarkPage(b *testing.B) {
	page := searchset(observations(1000)...)
	for _, form := range []struct{ name, page string }{{"compact", page}, {"pretty", pretty(b, page)}} {
		b.Run(form.name, func(b *testing.B) {
			client := mockClient(b, fixed(form.page))
			b.SetBytes(int64(len(form.page)))
			b.ReportAllocs()
			for b.Loop() {
				page, err := client.Search(b.Context(), fhir.Query{Type: "Observation", Count: 1000})
				if err != nil {
					b.Fatal(err)
				}
				rows := 0
				err = page.Each(func(e *fhir.Entry) error {
					if e.ID != "" && !e.LastUpdated.IsZero() && len(e.Resource) > 0 {
						rows++
					}
					return nil
				})
				if err != nil || rows != 1000 {
					b.Fatalf("%d rows, %v", rows, err)
				}
			}
		})
	}
}
