package exporter_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// BenchmarkExport exports a clinic of 1,000 patients over loopback. What it reports counts from the transaction time and
// the settle pause, which are the same for every size.
func BenchmarkExport(b *testing.B) {
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	begin := time.Now().Add(-24 * time.Hour)
	for i, resource := range fhirtest.Generate(1, 1000) {
		if err := sample.PutAt(resource, begin.Add(time.Duration(i)*50*time.Millisecond)); err != nil {
			b.Fatal(err)
		}
	}
	server := httptest.NewServer(sample)
	b.Cleanup(server.Close)
	client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir"})
	if err != nil {
		b.Fatal(err)
	}
	folder := b.TempDir()
	store, err := state.Open(filepath.Join(folder, "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	bucket, err := blob.NewDir(filepath.Join(folder, "files"))
	if err != nil {
		b.Fatal(err)
	}
	exports, err := exporter.New(exporter.Config{
		Client: client, Store: store, Bucket: bucket, Spool: filepath.Join(folder, "spool"),
		Settle: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- exports.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})

	var resources, bytes int64
	var reading time.Duration
	for b.Loop() {
		job, err := exports.KickOff(ctx, state.Kickoff{Level: state.System})
		for tick := time.Tick(5 * time.Millisecond); err == nil && job.Running(); <-tick {
			job, err = store.Get(ctx, job.ID)
		}
		if err != nil || job.Status != state.Completed {
			b.Fatalf("%v %+v", err, job)
		}
		reading += job.Finished.Sub(job.ReadAt)
		files, err := store.Files(ctx, job.ID)
		if err != nil {
			b.Fatal(err)
		}
		for _, file := range files {
			resources, bytes = resources+file.Count, bytes+file.Bytes
		}
	}
	b.ReportMetric(float64(resources)/reading.Seconds(), "resources/s")
	b.ReportMetric(float64(bytes)/1e6/reading.Seconds(), "MB/s")
}
