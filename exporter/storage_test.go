package exporter_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// closedBucket refuses every put.
type closedBucket struct{ blob.Bucket }

func (b *closedBucket) Put(context.Context, string, blob.Media, io.ReadSeeker) error {
	return errors.New("bucket is closed")
}

// Ensure a bucket that cannot be written is known before an export is asked for, and fails one that is asked for all the
// same, with nothing left in the spool.
func TestBucketThatCannotBeWrittenFromTheStart(t *testing.T) {
	edit := func(c *exporter.Config) {
		smallPages(c)
		c.GiveUp = 40 * time.Second
		c.Bucket = &closedBucket{c.Bucket}
	}
	inBubble(t, fhirtest.Plain(), edit, thirtyRows(t), func(t *testing.T, b *bubble) {
		<-time.After(time.Minute)
		if b.Ready(t.Context()) == nil {
			t.Error("the bucket is taken to work")
		}
		job := b.finish(b.kickOff(system()))
		storageFailed(t, job)
		if _, err := os.Stat(filepath.Join(b.folder, "spool", job.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the spool of the failed job: %v, want that it is not there", err)
		}
	})
}

// hesitantBucket takes its time with each put.
type hesitantBucket struct{ blob.Bucket }

func (b *hesitantBucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	<-time.After(5 * time.Second)
	return b.Bucket.Put(ctx, name, media, body)
}

// Ensure the first test of the bucket is waited for, as long as who asks has time.
func TestBucketThatIsBeingTested(t *testing.T) {
	edit := func(c *exporter.Config) { c.Bucket = &hesitantBucket{c.Bucket} }
	inBubble(t, fhirtest.Plain(), edit, func(*fhirtest.Server) {}, func(t *testing.T, b *bubble) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if b.Ready(ctx) == nil {
			t.Error("the bucket is taken to work before it was tested")
		}
		if err := b.Ready(t.Context()); err != nil {
			t.Errorf("behind the first test: %v", err)
		}
	})
}

// Ensure a disk that takes no more fails the job in words that are for clients, and that the next one works when there is
// room again. A folder in the place of a spool file stands for the full disk: both fail the writing of the file.
func TestSpoolThatCannotBeWritten(t *testing.T) {
	inBubble(t, fhirtest.Plain(), smallPages, thirtyRows(t), func(t *testing.T, b *bubble) {
		b.finish(b.kickOff(system())) // the probes are over
		id := b.kickOff(system())
		blocked := filepath.Join(b.folder, "spool", id, "1.ndjson", "full")
		if err := os.MkdirAll(blocked, 0o700); err != nil {
			t.Fatal(err)
		}
		storageFailed(t, b.finish(id))
		same(t, b.rows(b.finish(b.kickOff(system()))), b.snapshot())
	})
}

// storageFailed checks that a job failed and that its words name neither paths nor causes of ours.
func storageFailed(t *testing.T, job *state.Job) {
	t.Helper()
	if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "could not be stored") || strings.Contains(job.Failure.Text, "spool") {
		t.Errorf("%s: %+v, want a failure to store, without paths", job.Status, job.Failure)
	}
}
