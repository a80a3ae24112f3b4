//go:build figures

package exporter

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
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
	r := figureRun(t, state.Kickoff{Level: state.System, Base: "http://public/fhir", OrganizeBy: "Patient"})
	all := []state.Slice{figureSlice(t, r.dir, 1, "Patient", figurePatients), figureSlice(t, r.dir, 2, "Observation", 2*figurePatients)}
	began := time.Now()
	if err := r.organize(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	files, err := r.Store.Files(t.Context(), r.job.ID)
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
	fmt.Printf("%d rows in %d files in %.0f s\n", rows, len(files), took.Seconds())
	fmt.Printf("figure: rss-organised %.1f <= 64\n", peakRSS(t))
}

// figureChanges is how many resources of the figure of repairs were deleted since _since, and how many changed since T.
const figureChanges = 1_000_000

// TestFigureRepair repairs an increment in which a million resources were deleted, and another million changed since they could
// be read, half of them before they were. The figure is the peak of the process, as that of an organised export.
func TestFigureRepair(t *testing.T) {
	r := figureRun(t, state.Kickoff{Level: state.System, Since: time.Now().Add(-1000 * time.Hour).Truncate(time.Second)})
	began := time.Now()
	log := r.newChangeLog("Observation", "changes")
	id := func(i int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", i*7_368_787%figureChanges, i) }
	text := fmt.Sprintf(`{"resourceType":"Observation","text":{"status":"generated","div":"%0200d"}}`, 0)
	see := func(row fhir.Entry) {
		row.Type = "Observation"
		if err := log.see(&row); err != nil {
			t.Fatal(err)
		}
	}
	until := r.job.TransactionTime
	for i := range figureChanges {
		see(fhir.Entry{ID: id(i), Version: "3", LastUpdated: until.Add(time.Minute), Resource: []byte(text)})
	}
	for i := range figureChanges {
		see(fhir.Entry{ID: id(i), Version: "2", LastUpdated: until.Add(-time.Second), Resource: []byte(text)})
	}
	for i := range figureChanges {
		see(fhir.Entry{ID: "gone-" + id(i), Version: "2", LastUpdated: until.Add(-time.Hour), Deleted: true})
	}
	crawled := state.Slice{Seq: 1, Type: "Observation", Counted: -1, Written: figureChanges / 2, Met: figureChanges / 2, Done: true}
	crawled.IndexSize = figureFile(t, indexPath(r.dir, 1), figureChanges/2, func(i int) string { return id(2*i) + "\t2\n" })
	crawled.MetSize = figureFile(t, metPath(r.dir, 1), figureChanges/2, func(i int) string {
		return string(binary.LittleEndian.AppendUint64(nil, metKey(id(2*i))))
	})
	repaired := &typeRepair{run: r, typ: "Observation", crawled: []*state.Slice{&crawled}, number: func() int { return 3 }, log: log}
	if _, err := r.moved(repaired.crawled, log); err != nil {
		t.Fatal(err)
	}
	slice := &state.Slice{Seq: 2, Type: "Observation", Strategy: state.History}
	files, err := openSpool(r.dir, slice)
	if err != nil {
		t.Fatal(err)
	}
	w, gone := &walk{run: r, slice: slice, filter: r.filter("Observation"), spool: files}, repaired.newDeletions()
	if err := repaired.reconcile(t.Context(), w, gone); err != nil {
		t.Fatal(err)
	}
	if slice.Written != figureChanges/2 || gone.slice.Met != figureChanges || len(crawled.Dropped) > 0 {
		t.Fatalf("%d rows added, %d deleted, %d taken out", slice.Written, gone.slice.Met, len(crawled.Dropped))
	}
	fmt.Printf("%d changes and %d deletions in %.0f s\n", figureChanges, figureChanges, time.Since(began).Seconds())
	fmt.Printf("figure: rss-repair %.1f <= 64\n", peakRSS(t))
	if err := errors.Join(files.close(), gone.close(), log.close()); err != nil {
		t.Error(err)
	}
}

// figureRun is the run of a job whose server is never asked, in a process that has as much memory as before any other.
func figureRun(t *testing.T, kickoff state.Kickoff) *run {
	t.Helper()
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(48 << 20)
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // the peak begins anew
		t.Fatal(err)
	}
	folder := t.TempDir()
	store, err := state.Open(filepath.Join(folder, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
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
		Kickoff: kickoff, TransactionTime: time.Now().Truncate(time.Second),
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
	return r
}

// peakRSS is the largest resident size of this process, in MiB.
func peakRSS(t *testing.T) float64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, err := strconv.ParseFloat(strings.Fields(peak)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes / 1024
}

// figureSlice writes the spool of a slice, its rows in an order that is not that of the patients.
func figureSlice(t *testing.T, dir string, seq int, typ string, rows int) state.Slice {
	t.Helper()
	slice := state.Slice{Seq: seq, Type: typ, Written: int64(rows), SpoolRows: int64(rows), Done: true}
	slice.IndexSize = figureFile(t, indexPath(dir, seq), rows, func(id int) string { return fmt.Sprintf("%s-%08d\t1\n", typ, id) })
	slice.SpoolSize = figureFile(t, spoolPath(dir, &slice), rows, func(id int) string {
		more := fmt.Sprintf(`"id":"%s-%08d","text":{"status":"generated","div":"%0100d"}`, typ, id, id)
		if typ != "Patient" {
			more += fmt.Sprintf(`,"subject":{"reference":"Patient/Patient-%08d"}`, id/2)
		}
		return fmt.Sprintf(`{"resourceType":%q,%s}`+"\n", typ, more)
	})
	return slice
}

// figureFile writes a line for each of the numbers below rows, in an order that is not theirs.
func figureFile(t *testing.T, path string, rows int, line func(id int) string) (size int64) {
	t.Helper()
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
	if err := errors.Join(out.Flush(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return size
}
