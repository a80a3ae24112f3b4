package main

import (
	"context"
	"io"
	"sync"
	"time"

	"sidecar/exporter/blob"
)

// lateBucket opens its bucket with the first use, and again after a failure: a store, or a cloud's metadata server, that
// is away when the process starts must not keep it from forwarding.
type lateBucket struct {
	open func(ctx context.Context) (blob.Bucket, error)

	mu     sync.Mutex
	bucket blob.Bucket
}

func (l *lateBucket) get(ctx context.Context) (blob.Bucket, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bucket == nil {
		bucket, err := l.open(ctx)
		if err != nil {
			return nil, err
		}
		l.bucket = bucket
	}
	return l.bucket, nil
}

// Put is blob.Bucket's.
func (l *lateBucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	bucket, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bucket.Put(ctx, name, media, body)
}

// Open is blob.Bucket's.
func (l *lateBucket) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	bucket, err := l.get(ctx)
	if err != nil {
		return nil, err
	}
	return bucket.Open(ctx, name, offset)
}

// SignURL is blob.Bucket's.
func (l *lateBucket) SignURL(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	bucket, err := l.get(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	return bucket.SignURL(ctx, name, ttl)
}

// Delete is blob.Bucket's.
func (l *lateBucket) Delete(ctx context.Context, name string) error {
	bucket, err := l.get(ctx)
	if err != nil {
		return err
	}
	return bucket.Delete(ctx, name)
}
