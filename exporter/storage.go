package exporter

import (
	"context"
	"errors"
	"time"

	"sidecar/exporter/blob"
)

// errUntested is the bucket's state before its first test.
var errUntested = errors.New("bucket has not been tested yet")

// Ready tells whether an export could store its files now; the error says what the last test of the bucket found, and a
// new test begins, so that a bucket that works again is not noticed a minute late. The first test, which begins with Run, is
// waited for until ctx ends: nobody shall be refused only because the sidecar has just started.
func (e *Exporter) Ready(ctx context.Context) error {
	select {
	case <-e.tested:
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bucket != nil {
		signal(e.retest)
	}
	return e.bucket
}

// watchBucket tests the bucket at once and then once a minute.
func (e *Exporter) watchBucket(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		e.testBucket(ctx)
		e.testState(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-e.retest:
		}
	}
}

// testState shows whether the state file can still be written.
func (e *Exporter) testState(ctx context.Context) {
	switch err := e.Store.Ping(ctx); {
	case ctx.Err() != nil:
	case err != nil:
		e.Metrics.stateUp.Set(0)
		e.Log.ErrorContext(ctx, "state file cannot be written: exports cannot go on; check the disk", "error", err)
	default:
		e.Metrics.stateUp.Set(1)
	}
}

func (e *Exporter) testBucket(ctx context.Context) {
	testCtx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := blob.Check(testCtx, e.Bucket, e.LinkClient)
	if ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	before := e.bucket
	e.bucket = err
	e.mu.Unlock()
	if errors.Is(before, errUntested) {
		close(e.tested)
	}
	if err != nil {
		e.Metrics.bucketUp.Set(0)
		e.Log.ErrorContext(ctx, "bucket does not work: exports are refused until it does; `sidecar check` tests it too", "check", blob.Advice(err), "error", err)
		return
	}
	e.Metrics.bucketUp.Set(1)
	select {
	case <-e.retest: // who asked for another test while this one ran has his answer
	default:
	}
	if before != nil {
		e.Log.InfoContext(ctx, "bucket works")
	}
}
