//go:build figures

package exporter

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/state"
)

// figurePatients is how many patients the organised figure has, with two Observations each.
const figurePatients = 1_000_000

// TestFigureOrganised organises an export of a million patients by them. The figure is the peak of the process, which runs
// as the image does (GOGC=50 GOMEMLIMIT=48MiB) and does nothing else.
func TestFigureOrganised(t *testing.T) {
	folder := t.TempDir()
	store, err := state.Open(filepath.Join(folder, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := blob.NewDir(filepath.Join(folder, "files"))
	if err != nil {
		t.Fatal(err)
	}
	client, err := fhir.NewClient(fhir.Config{BaseURL: "http://fhir.example/fhir"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{
		Client: client, Store: store, Bucket: bucket, Spool: filepath.Join(folder, "spool"), Log: slog.New(slog.DiscardHandler),
		Metrics: NewMetrics(),
	})
	if err != nil {
		t.Fatal(err)
	}
	job := &state.Job{
		ID: "figure", Folder: "figure", Status: state.InProgress,
		Kickoff: state.Kickoff{Level: state.System, Base: "http://public/fhir", OrganizeBy: "Patient"},
	}
	if err := store.Create(t.Context(), job, 1); err != nil {
		t.Fatal(err)
	}
	r := &run{
		Exporter: e, job: job, dir: filepath.Join(e.Spool, job.ID), profile: &fhir.Profile{FHIRVersion: "4.0.1"},
		bucketPace: &pace{giveUp: e.GiveUp},
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	all := []state.Slice{figureSlice(t, r.dir, 1, "Patient", figurePatients), figureSlice(t, r.dir, 2, "Observation", 2*figurePatients)}
	began := time.Now()
	if err := r.organize(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	files, err := store.Files(t.Context(), job.ID)
	if err != nil {
		t.Fatal(err)
	}
	rows := int64(0)
	for _, file := range files {
		rows += file.Count
	}
	if rows != 3*figurePatients {
		t.Fatalf("%d rows in blocks", rows)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, err := strconv.ParseFloat(strings.Fields(peak)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%d rows in %d files in %.0f s\n", rows, len(files), took.Seconds())
	fmt.Printf("figure: rss-organised %.1f <= 64\n", kilobytes/1024)
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

// figureSlice writes the spool of a slice, its rows in an order that is not that of the patients.
func figureSlice(t *testing.T, dir string, seq int, typ string, rows int) state.Slice {
	t.Helper()
	slice := state.Slice{Seq: seq, Type: typ, Written: int64(rows), SpoolRows: int64(rows), Done: true}
	write := func(path string, line func(id int) string) (size int64) {
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		out := bufio.NewWriter(file)
		for i := range rows {
			text := line(i * 7_368_787 % rows) // a prime
			size += int64(len(text))
			if _, err := out.WriteString(text); err != nil {
				t.Fatal(err)
			}
		}
		if err := out.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		return size
	}
	slice.IndexSize = write(indexPath(dir, seq), func(id int) string { return fmt.Sprintf("%s-%08d\t1\n", typ, id) })
	slice.SpoolSize = write(spoolPath(dir, &slice), func(id int) string {
		more := fmt.Sprintf(`"id":"%s-%08d","text":{"status":"generated","div":"%0100d"}`, typ, id, id)
		if typ != "Patient" {
			more += fmt.Sprintf(`,"subject":{"reference":"Patient/Patient-%08d"}`, id/2)
		}
		return fmt.Sprintf(`{"resourceType":%q,%s}`+"\n", typ, more)
	})
	return slice
}
