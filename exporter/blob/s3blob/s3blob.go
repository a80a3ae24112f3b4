// Package s3blob keeps the files of an export in an S3 bucket, Amazon's or that
// of any compatible store. It is the only home of the AWS SDK.
//
// A file goes up as one PutObject: exported files are capped far below its limit
// of 5 GiB, the SDK retries it from the seekable body by itself, and S3 shows an
// object only when all of it has arrived (style 13).
package s3blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"

	"sidecar/exporter/blob"
)

const (
	// defaultRegion signs the requests to compatible stores, most of which have no
	// regions and take this name.
	defaultRegion = "us-east-1"

	// maxLifetime is the longest that a signature of version 4 may live; S3 answers
	// a link with more with an error.
	maxLifetime = 7 * 24 * time.Hour

	// answerTimeout bounds the wait for an answer once a request has been sent
	// whole, so that a store that hangs is retried and does not hold a worker.
	answerTimeout = time.Minute

	amzDateLayout = "20060102T150405Z"
)

// Config says which bucket is used and how.
type Config struct {
	// Bucket is the bucket's name. Required.
	Bucket string
	// Region is the bucket's region. Empty: what the SDK finds in the environment
	// or its configuration file, and us-east-1 where Endpoint is set.
	Region string
	// Endpoint is the base URL of a compatible store, "https://minio:9000". Empty:
	// Amazon's own of the region.
	Endpoint string
	// PathStyle puts the bucket into the path instead of the host name, as MinIO
	// and its like want it.
	PathStyle bool
	// AccessKeyID and SecretAccessKey are the credentials. Both empty: the SDK's
	// default chain (environment, shared files, web identity, container, instance).
	AccessKeyID     string
	SecretAccessKey string
	// SessionToken belongs to temporary keys. When those end is not known from it,
	// so the default chain is the better way to use them.
	SessionToken string
	// SSE is how the store encrypts what it is given, "AES256" or "aws:kms". Empty: as the bucket is configured.
	SSE string
	// KMSKey is the id or ARN of the key that SSE "aws:kms" uses. Empty: the account's own key for S3.
	KMSKey string
}

func (c Config) validate() error {
	var errs []error
	if c.Bucket == "" {
		errs = append(errs, errors.New("bucket is missing"))
	}
	if (c.AccessKeyID == "") != (c.SecretAccessKey == "") {
		errs = append(errs, errors.New("access key id and secret access key belong together, one of them is missing"))
	}
	if c.SessionToken != "" && c.AccessKeyID == "" {
		errs = append(errs, errors.New("session token without access key"))
	}
	switch types.ServerSideEncryption(c.SSE) {
	case "", types.ServerSideEncryptionAes256, types.ServerSideEncryptionAwsKms:
	default:
		errs = append(errs, errors.New("sse is neither AES256 nor aws:kms"))
	}
	if c.KMSKey != "" && c.SSE != string(types.ServerSideEncryptionAwsKms) {
		errs = append(errs, errors.New("a KMS key needs sse aws:kms"))
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			errs = append(errs, errors.New("endpoint is not an http or https URL without user and query"))
		}
	}
	return errors.Join(errs...)
}

// Bucket is an S3 bucket as a [blob.Bucket].
type Bucket struct {
	name        string
	sse         types.ServerSideEncryption
	kmsKey      *string // nil leaves it to the store
	client      *s3.Client
	presign     *s3.PresignClient
	credentials aws.CredentialsProvider
}

var _ blob.Bucket = (*Bucket)(nil)

// New returns the bucket that cfg names. It fails when cfg is incomplete or
// contradicts itself, when no region is known, and when the SDK's own
// configuration files cannot be read. It asks neither the store nor a source of
// credentials; blob.Check does.
func New(ctx context.Context, cfg Config) (*Bucket, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("s3 bucket: %w", err)
	}
	options := []func(*config.LoadOptions) error{
		// The SDK logs requests and warnings to stderr by itself; our log is the
		// callers' and must hold no link.
		config.WithLogger(logging.Nop{}),
		config.WithClientLogMode(0),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
			tr.ResponseHeaderTimeout = answerTimeout
		})),
	}
	if cfg.Region != "" {
		options = append(options, config.WithRegion(cfg.Region))
	}
	if cfg.AccessKeyID != "" {
		options = append(options, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, cfg.SessionToken)))
	}
	awsConfig, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("s3 bucket: %w", blob.HideURL(err))
	}
	if awsConfig.Region == "" && cfg.Endpoint != "" {
		awsConfig.Region = defaultRegion
	}
	if awsConfig.Region == "" {
		return nil, errors.New("s3 bucket: region is missing, and the environment names none")
	}
	client := s3.NewFromConfig(awsConfig, func(o *s3.Options) { adapt(o, cfg) })
	b := &Bucket{
		name:        cfg.Bucket,
		sse:         types.ServerSideEncryption(cfg.SSE),
		client:      client,
		presign:     s3.NewPresignClient(client),
		credentials: client.Options().Credentials,
	}
	if cfg.KMSKey != "" {
		b.kmsKey = &cfg.KMSKey
	}
	return b, nil
}

func adapt(o *s3.Options, cfg Config) {
	o.UsePathStyle = cfg.PathStyle
	// A link is read by anybody's HTTP client, and Open's callers compare what they
	// read: neither needs the store to add a checksum, which some do not know.
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	if cfg.Endpoint == "" {
		return
	}
	o.BaseEndpoint = aws.String(strings.TrimSuffix(cfg.Endpoint, "/"))
	// Many compatible stores refuse the CRC32 trailers of newer SDKs. Without them
	// the SHA-256 of the body is signed, which protects it as well and costs about
	// the same (perf C).
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

// Put stores body in one request. See [blob.Bucket] for when it fails.
func (b *Bucket) Put(ctx context.Context, name string, media blob.Media, body io.ReadSeeker) error {
	err := blob.ValidateName(name)
	if err == nil {
		_, err = body.Seek(0, io.SeekStart)
	}
	if err == nil {
		input := &s3.PutObjectInput{
			Bucket: &b.name, Key: &name, ContentType: &media.Type, Body: body, ServerSideEncryption: b.sse, SSEKMSKeyId: b.kmsKey,
		}
		if media.Encoding != "" {
			input.ContentEncoding = &media.Encoding
		}
		_, err = b.client.PutObject(ctx, input)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, explained(err))
	}
	return nil
}

// Open reads an object. Where the credential may not list the bucket, S3 answers
// 403 for a missing object, which is then no blob.ErrNotExist. See [blob.Bucket]
// for when it fails.
func (b *Bucket) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	if err := blob.ValidateName(name); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	input := &s3.GetObjectInput{Bucket: &b.name, Key: &name}
	if offset > 0 {
		input.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := b.client.GetObject(ctx, input)
	if isMissing(err) {
		return nil, fmt.Errorf("open %s: %w", name, blob.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, explained(err))
	}
	return out.Body, nil
}

// SignURL signs a GET, without asking the store. S3 signs the method too: HEAD on
// the link is refused with 403, a client that wants the size asks for one byte
// with Range. The lifetime is cut to seven days, and expires to the end of the
// credential that signed. See [blob.Bucket] for when it fails.
func (b *Bucket) SignURL(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	link, expires, err := b.sign(ctx, name, ttl)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("sign %s: %w", name, explained(err))
	}
	return link, expires, nil
}

func (b *Bucket) sign(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	if err := blob.ValidateName(name); err != nil {
		return "", time.Time{}, err
	}
	ttl = min(ttl, maxLifetime).Truncate(time.Second)
	if ttl <= 0 {
		return "", time.Time{}, errors.New("the lifetime is shorter than a second")
	}
	// Read before signing: should the credential be renewed in between, the link
	// lives longer than said, never shorter.
	credential, err := b.credentials.Retrieve(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	signed, err := b.presign.PresignGetObject(ctx,
		&s3.GetObjectInput{Bucket: &b.name, Key: &name}, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", time.Time{}, err
	}
	expires, err := linkExpiry(signed.URL)
	if err != nil {
		return "", time.Time{}, err
	}
	if credential.CanExpire && credential.Expires.Before(expires) {
		expires = credential.Expires
	}
	return signed.URL, expires, nil
}

// linkExpiry reads the end of a link off the link itself: the signer's clock is
// corrected by what the store said of its own, and only the link shows it.
func linkExpiry(link string) (time.Time, error) {
	u, err := url.Parse(link)
	if err != nil {
		return time.Time{}, err
	}
	query := u.Query()
	signed, err := time.Parse(amzDateLayout, query.Get("X-Amz-Date"))
	if err != nil {
		return time.Time{}, errors.New("the signed link has no date")
	}
	seconds, err := strconv.Atoi(query.Get("X-Amz-Expires"))
	if err != nil {
		return time.Time{}, errors.New("the signed link has no lifetime")
	}
	return signed.Add(time.Duration(seconds) * time.Second), nil
}

// Delete removes an object. See [blob.Bucket] for when it fails.
func (b *Bucket) Delete(ctx context.Context, name string) error {
	err := blob.ValidateName(name)
	if err == nil {
		_, err = b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &name})
	}
	if err != nil && !isMissing(err) {
		return fmt.Errorf("delete %s: %w", name, explained(err))
	}
	return nil
}

// isMissing says whether err means that the object, not the bucket, is missing.
func isMissing(err error) bool {
	_, ok := errors.AsType[*types.NoSuchKey](err)
	return ok
}

// explained is HideURL of an error that says what kind it is of.
func explained(err error) error {
	hidden := blob.HideURL(err)
	var said interface{ ErrorCode() string }
	answer, answered := errors.AsType[*awshttp.ResponseError](err)
	switch {
	case errors.As(err, &said) && said.ErrorCode() == "NoSuchBucket":
		return fmt.Errorf("%w: %w", blob.ErrNoBucket, hidden)
	case answered && (answer.HTTPStatusCode() == http.StatusForbidden || answer.HTTPStatusCode() == http.StatusUnauthorized):
		return fmt.Errorf("%w: %w", blob.ErrRefused, hidden)
	case !answered && strings.Contains(err.Error(), "get credentials"): // the SDK has no type for it
		return fmt.Errorf("%w: %w", blob.ErrNoCredentials, hidden)
	}
	return hidden
}
