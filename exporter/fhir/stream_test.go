package fhir_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/jarcoal/httpmock"

	"sidecar/exporter/fhir"
)

// Ensure a page is read while it arrives, one row at a time, and takes the memory of its largest row and not of all: the
// server sends each row only after the one before it has been read.
func TestPageIsReadWhileItArrives(t *testing.T) {
	const rows, rowBytes = 48, 1 << 20
	synctest.Test(t, func(t *testing.T) {
		row := fmt.Sprintf(`{"resource":{"resourceType":"Binary","id":"b","data":%q}}`, strings.Repeat("A", rowBytes))
		read := make(chan struct{})
		mock := httpmock.NewMockTransport()
		mock.RegisterNoResponder(func(r *http.Request) (*http.Response, error) {
			reader, writer := io.Pipe()
			go func() {
				_, err := io.WriteString(writer, `{"resourceType":"Bundle","type":"searchset","entry":[`)
				for n := range rows {
					if n > 0 && err == nil {
						<-read
						_, err = io.WriteString(writer, ",")
					}
					if err == nil {
						_, err = io.WriteString(writer, row)
					}
				}
				<-read
				if err == nil {
					_, err = io.WriteString(writer, `]}`)
				}
				_ = writer.CloseWithError(err) // a pipe's Close does not fail
			}()
			return &http.Response{StatusCode: http.StatusOK, Body: reader, Request: r}, nil
		})
		page, err := mockClient(t, mock).Search(t.Context(), fhir.Query{Type: "Binary"})
		if err != nil {
			t.Fatal(err)
		}
		before, most, n := heap(), uint64(0), 0
		err = page.Each(func(entry *fhir.Entry) error {
			n++
			if entry.Size() < rowBytes {
				t.Errorf("row %d has %d bytes", n, entry.Size())
			}
			if n%8 == 0 {
				most = max(most, heap())
			}
			read <- struct{}{}
			return nil
		})
		if err != nil || n != rows {
			t.Fatalf("%d rows, %v, want %d", n, err, rows)
		}
		if most > before+12*rowBytes {
			t.Errorf("%d MiB for rows of 1 MiB", (most-before)>>20)
		}
	})
}

// heap is the size in bytes of what is in use.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
