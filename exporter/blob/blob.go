package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// ErrNotExist is returned when the object is not there.
var ErrNotExist = errors.New("object does not exist")

// Media is what an object is to those who read it by HTTP.
type Media struct {
	// Type is the media type of the content, as in Content-Type.
	Type string
	// Encoding is Gzip for bytes that are compressed, as in Content-Encoding, else
	// empty.
	Encoding string
}

// Gzip is the one content coding that a Media may have.
const Gzip = "gzip"

// Whole is a body that is one local file from its first byte to its last, of which
// no byte will ever change, whatever becomes of its name: it is removed, never cut
// or written to. A bucket on the same file system may keep it instead of a copy.
type Whole interface {
	io.ReadSeeker
	// File returns the file, nil where the body is none after all.
	File() *os.File
}

// Bucket stores the finished files of an export. All methods may be called from
// several goroutines at once; each fails when ctx ends, when the store refuses
// or cannot be reached, and when the name is not one that [ValidateName] accepts.
type Bucket interface {
	// Put stores the whole of body, from its start, under name as what media says.
	// Retries rewind body, so it must not be used elsewhere meanwhile.
	// After an error or a cancelled ctx nothing partial is visible under name:
	// either the object that was there before, or, where the store had already
	// taken everything, the whole new one. The same name again replaces the object.
	Put(ctx context.Context, name string, media Media, body io.ReadSeeker) error

	// Open reads an object from offset on, byte for byte as it was put, also where
	// it is compressed; the caller closes it. It fails with ErrNotExist when the
	// object is not there. An offset behind the last byte may fail.
	Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error)

	// SignURL gives a link that reads the object by GET, without credentials, for
	// ttl. Expires is the moment at which it really dies: a store caps the
	// lifetime, and the signer's own temporary credential may end before. The
	// object is not looked up. It fails with errors.ErrUnsupported where the
	// sidecar has to serve the bytes itself.
	SignURL(ctx context.Context, name string, ttl time.Duration) (link string, expires time.Time, err error)

	// Delete removes an object. A missing object is not an error, so that a
	// deletion that was cut short can be done again.
	Delete(ctx context.Context, name string) error
}

// ValidateName says whether name can be the name of an object, or the prefix of
// names. It fails for an empty name, an absolute one, one with an empty, "." or
// ".." segment, and for backslashes and control characters, which object stores
// and shells take differently.
func ValidateName(name string) error {
	if name == "." || !fs.ValidPath(name) {
		return fmt.Errorf("object name %q is not a plain relative path", name)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return fmt.Errorf("object name %q holds a backslash or a control character", name)
	}
	return nil
}

// WithPrefix returns a bucket whose objects lie below prefix in b, so that no
// back end has to know of prefixes. Slashes around prefix do not matter, and an
// empty one returns b itself. Streams come through unchanged: what [Dir] opens
// stays an *os.File. An invalid prefix fails at the first use; ValidateName tells
// it earlier.
func WithPrefix(b Bucket, prefix string) Bucket {
	prefix = strings.Trim(prefix, "/")
	if prefix == "" {
		return b
	}
	return &prefixed{bucket: b, prefix: prefix + "/"}
}

type prefixed struct {
	bucket Bucket
	prefix string
}

func (p *prefixed) Put(ctx context.Context, name string, media Media, body io.ReadSeeker) error {
	return p.bucket.Put(ctx, p.prefix+name, media, body)
}

func (p *prefixed) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	return p.bucket.Open(ctx, p.prefix+name, offset)
}

func (p *prefixed) SignURL(ctx context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	return p.bucket.SignURL(ctx, p.prefix+name, ttl)
}

func (p *prefixed) Delete(ctx context.Context, name string) error {
	return p.bucket.Delete(ctx, p.prefix+name)
}
