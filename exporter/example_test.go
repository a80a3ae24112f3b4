package exporter_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// An export of everything that a server holds, into a folder.
func ExampleExporter() {
	if err := exportPatient(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// completed
	// Patient.1.ndjson: 1 resource
}

func exportPatient() (err error) {
	sample := fhirtest.New(fhirtest.Plain(), "/fhir")
	if err := sample.Put([]byte(`{"resourceType":"Patient","id":"example"}`)); err != nil {
		return err
	}
	server := httptest.NewServer(sample)
	defer server.Close()
	folder, err := os.MkdirTemp("", "example")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()

	client, err := fhir.NewClient(fhir.Config{BaseURL: server.URL + "/fhir"})
	if err != nil {
		return err
	}
	store, err := state.Open(filepath.Join(folder, "state.db"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	bucket, err := blob.NewDir(filepath.Join(folder, "files"))
	if err != nil {
		return err
	}
	exports, err := exporter.New(exporter.Config{
		Client: client, Store: store, Bucket: bucket, Spool: filepath.Join(folder, "spool"),
		Settle: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- exports.Run(ctx) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	job, err := exports.KickOff(ctx, state.Kickoff{Level: state.System})
	for tick := time.Tick(20 * time.Millisecond); err == nil && job.Running(); <-tick {
		job, err = store.Get(ctx, job.ID)
	}
	if err != nil {
		return err
	}
	fmt.Println(job.Status)
	files, err := store.Files(ctx, job.ID)
	for _, file := range files {
		fmt.Printf("%s: %d resource\n", file.Name, file.Count)
	}
	return err
}
