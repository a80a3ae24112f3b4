// Package gcsblob keeps the files of an export in a Google Cloud Storage bucket.
// It is the only home of Google's storage client.
//
// A file goes up as a resumable upload that the client retries chunk by chunk;
// Cloud Storage shows an object only once it is whole. The one trap is the
// client's own writer: closing it after a failed copy publishes what has arrived
// so far, so Put ends its context first (design 5).
package gcsblob

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"sidecar/exporter/blob"
)

const (
	// chunkSize is what a running Put holds in memory. The client's default of
	// 16 MiB sends four files at once no faster than the exporter fills them, but
	// takes 64 MiB, the whole budget of the process (perf C). With 2 MiB four files
	// of 128 MiB at once were seen to take 11 MiB, and some 64 MB/s per file reach
	// a store 30 ms away. Zero would hold nothing, but then a failed upload is not
	// retried.
	chunkSize = 2 << 20

	// chunkTimeout ends a chunk that stalls, chunkDeadline the retries of one.
	chunkTimeout  = time.Minute
	chunkDeadline = 2 * time.Minute

	// maxAttempts bounds the retries of one read or deletion, uploadAttempts those
	// of one Put, whose pauses begin shorter. The client would otherwise go on
	// until ctx ends.
	maxAttempts    = 5
	uploadAttempts = 7

	// maxLifetime is the longest that a signature of version 4 may live.
	// maxRemoteLifetime holds for one made by Google's signBlob: it may be made by
	// a key that is withdrawn after 12 hours.
	maxLifetime       = 7 * 24 * time.Hour
	maxRemoteLifetime = 12 * time.Hour

	googDateLayout = "20060102T150405Z"
)

// Bucket is a Google Cloud Storage bucket as a [blob.Bucket].
type Bucket struct {
	handle *storage.BucketHandle
	kmsKey string // empty leaves it to the store
	signer signer
	host   string // of an emulator, else empty
	plain  bool   // links of an emulator that speaks plain HTTP
}

var _ blob.Bucket = (*Bucket)(nil)

// New returns the bucket that cfg names. It fails when cfg is incomplete or
// contradicts itself, when a key cannot be read, and when application default
// credentials are wanted and there are none. It does not ask the store; blob.Check
// does.
func New(ctx context.Context, cfg Config) (*Bucket, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("gcs bucket: %w", err)
	}
	account, err := cfg.account()
	if err != nil {
		return nil, fmt.Errorf("gcs bucket: %w", err)
	}
	options := account.options
	b := &Bucket{signer: account.signer, kmsKey: cfg.KMSKey}
	if cfg.Endpoint != "" {
		endpoint, err := url.Parse(cfg.Endpoint)
		if err != nil {
			return nil, fmt.Errorf("gcs bucket: endpoint: %w", blob.HideURL(err))
		}
		b.host, b.plain = endpoint.Host, endpoint.Scheme == "http"
		// An emulator has no accounts; the key only signs links.
		options = []option.ClientOption{
			option.WithEndpoint(endpoint.JoinPath("storage/v1/").String()),
			option.WithoutAuthentication(),
		}
	}
	client, err := storage.NewClient(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("gcs bucket: %w", blob.HideURL(err))
	}
	// Writing a whole object and deleting one give the same result twice, so a
	// retry is always safe here.
	client.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(maxAttempts))
	b.handle = client.Bucket(cfg.Bucket)
	return b, nil
}

// Put uploads body in chunks. See [blob.Bucket] for when it fails.
func (b *Bucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	err := blob.ValidateName(name)
	if err == nil {
		_, err = body.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = b.put(ctx, name, media, body)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, explained(err))
	}
	return nil
}

func (b *Bucket) put(ctx context.Context, name string, media blob.Media, body io.Reader) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	uploadCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The client's limit of attempts does not reach uploads: a small object would
	// be tried until ctx ends.
	var retries atomic.Int32
	object := b.handle.Object(name).Retryer(storage.WithErrorFunc(func(err error) bool {
		return storage.ShouldRetry(err) && retries.Add(1) < uploadAttempts
	}))
	w := object.NewWriter(uploadCtx)
	w.ContentType, w.KMSKeyName = media.Type, b.kmsKey
	if w.ContentEncoding = media.Encoding; media.Encoding != "" {
		// Without it the store sends the content decompressed, and without its length,
		// to those who do not say that they take gzip.
		w.CacheControl = "private, no-transform"
	}
	w.ChunkSize = chunkSize
	w.ChunkTransferTimeout = chunkTimeout
	w.ChunkRetryDeadline = chunkDeadline
	if _, err := io.Copy(w, body); err != nil {
		// Close after a failed copy would publish the half; with its context ended
		// it only frees the writer, and fails, which is no news.
		cancel()
		_ = w.Close()
		return cancelled(ctx, err)
	}
	return cancelled(ctx, w.Close())
}

// cancelled makes an error that came up because ctx ended be the error of ctx,
// whatever the client made of it.
func cancelled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// Open reads an object. See [blob.Bucket] for when it fails.
func (b *Bucket) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	if err := blob.ValidateName(name); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	r, err := b.handle.Object(name).ReadCompressed(true).NewRangeReader(ctx, offset, -1)
	if isMissing(err) {
		return nil, fmt.Errorf("open %s: %w", name, blob.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, explained(err))
	}
	return r, nil
}

// SignURL signs a GET. With a private key that happens here and asks nobody;
// without one Google's signBlob is asked for each link, for which the service
// account needs the role of a token creator on itself. The lifetime is cut to
// seven days, to 12 hours where signBlob signs. See [blob.Bucket] for when it
// fails.
func (b *Bucket) SignURL(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	link, expires, err := b.sign(ctx, name, ttl)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign %s: %w", name, blob.HideURL(err))
	}
	return link, expires, nil
}

func (b *Bucket) sign(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	if err := errors.Join(blob.ValidateName(name), ctx.Err()); err != nil {
		return "", time.Time{}, err
	}
	limit := maxLifetime
	if b.signer.key == nil {
		limit = maxRemoteLifetime
	}
	ttl = min(ttl, limit).Truncate(time.Second)
	if ttl <= 0 {
		return "", time.Time{}, errors.New("the lifetime is shorter than a second")
	}
	options := &storage.SignedURLOptions{
		Scheme:         storage.SigningSchemeV4,
		Method:         http.MethodGet,
		Expires:        time.Now().Add(ttl),
		GoogleAccessID: b.signer.email,
		Hostname:       b.host,
		Insecure:       b.plain,
	}
	if b.signer.key != nil {
		options.SignBytes = b.signer.signBytes
	}
	link, err := b.handle.SignedURL(name, options)
	if err != nil {
		return "", time.Time{}, err
	}
	expires, err := linkExpiry(link)
	if err != nil {
		return "", time.Time{}, err
	}
	return link, expires, nil
}

// linkExpiry reads the end of a link off the link itself, since the client cuts
// the lifetime to whole seconds by its own clock reading.
func linkExpiry(link string) (time.Time, error) {
	u, err := url.Parse(link)
	if err != nil {
		return time.Time{}, err
	}
	query := u.Query()
	signed, err := time.Parse(googDateLayout, query.Get("X-Goog-Date"))
	if err != nil {
		return time.Time{}, errors.New("the signed link has no date")
	}
	seconds, err := strconv.Atoi(query.Get("X-Goog-Expires"))
	if err != nil {
		return time.Time{}, errors.New("the signed link has no lifetime")
	}
	return signed.Add(time.Duration(seconds) * time.Second), nil
}

// Delete removes an object. See [blob.Bucket] for when it fails.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	err := blob.ValidateName(name)
	if err == nil {
		err = b.handle.Object(name).Delete(ctx)
	}
	if err != nil && !isMissing(err) {
		return fmt.Errorf("delete %s: %w", name, explained(err))
	}
	return nil
}

// isMissing says whether err means that the object is missing. The client says so
// of a missing bucket too where the answer does not tell them apart.
func isMissing(err error) bool { return errors.Is(err, storage.ErrObjectNotExist) }

// explained is HideURL of an error of the store that says what kind it is of.
func explained(err error) error {
	hidden := blob.HideURL(err)
	answer, answered := errors.AsType[*googleapi.Error](err)
	switch {
	case errors.Is(err, storage.ErrBucketNotExist), answered && answer.Code == http.StatusNotFound:
		return fmt.Errorf("%w: %w", blob.ErrNoBucket, hidden)
	case answered && (answer.Code == http.StatusForbidden || answer.Code == http.StatusUnauthorized):
		return fmt.Errorf("%w: %w", blob.ErrRefused, hidden)
	}
	return hidden
}

// signer makes the signatures of links. Without a key the client's library finds
// out the account and has Google sign.
type signer struct {
	email string
	key   *rsa.PrivateKey
}

func (s signer) signBytes(b []byte) ([]byte, error) {
	sum := sha256.Sum256(b)
	return rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
}
