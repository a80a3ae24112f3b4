package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/blob/blobtest"
	"sidecar/exporter/blob/gcsblob"
	"sidecar/exporter/blob/s3blob"
)

func openS3(t *testing.T, cfg s3blob.Config) *s3blob.Bucket {
	t.Helper()
	b, err := s3blob.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openGCS(t *testing.T, cfg gcsblob.Config) *gcsblob.Bucket {
	t.Helper()
	b, err := gcsblob.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestS3Bucket(t *testing.T) {
	cfg := startS3(t)
	blobtest.Run(t, func(t *testing.T) blob.Bucket { return openS3(t, cfg) })
}

func TestGCSBucket(t *testing.T) {
	cfg := startGCS(t)
	blobtest.Run(t, func(t *testing.T) blob.Bucket { return openGCS(t, cfg) })
}

// Ensure the store itself checks our links: a good one reads, one that was changed
// or signed with a wrong secret does not.
func TestS3LinkIsCheckedByTheStore(t *testing.T) {
	cfg := startS3(t)
	b := openS3(t, cfg)
	const object, other = "job/Patient.1.ndjson", "job/Patient.2.ndjson"
	for _, name := range []string{object, other} {
		if err := b.Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("x\n")); err != nil {
			t.Fatal(err)
		}
	}
	link := signedLink(t, b, object)
	wrong := cfg
	wrong.SecretAccessKey = "not the secret of the gateway"
	signature := link[strings.Index(link, "X-Amz-Signature=")+len("X-Amz-Signature="):][:64]
	for _, tt := range []struct {
		name, method, link string
		want               int
	}{
		{"untouched", http.MethodGet, link, http.StatusOK},
		{"other signature", http.MethodGet, strings.Replace(link, signature, strings.Repeat("0", 64), 1), http.StatusForbidden},
		{"other object", http.MethodGet, strings.Replace(link, object, other, 1), http.StatusForbidden},
		{"longer life", http.MethodGet, strings.Replace(link, "X-Amz-Expires=3600", "X-Amz-Expires=7200", 1), http.StatusForbidden},
		{"other method", http.MethodHead, link, http.StatusForbidden},
		{"wrong secret", http.MethodGet, signedLink(t, openS3(t, wrong), object), http.StatusForbidden},
		{"no signature", http.MethodGet, link[:strings.Index(link, "?")], http.StatusForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fetch(t, tt.method, tt.link); got != tt.want {
				t.Errorf("status: got %d, want %d", got, tt.want)
			}
		})
	}
}

// Ensure the check of a bucket says what is wrong without saying too much.
func TestBucketCheckSaysWhatIsWrong(t *testing.T) {
	s3cfg := startS3(t)
	noBucket, noAccess := s3cfg, s3cfg
	noBucket.Bucket = "nobody-made-it"
	noAccess.SecretAccessKey = "not the secret of the gateway"
	gcsCfg, server := startGCSServer(t)
	gcsNoBucket := gcsCfg
	gcsNoBucket.Bucket = "nobody-made-it"
	stoppedS3, stop := startS3Gateway(t)
	stop()
	for _, tt := range []struct {
		name   string
		bucket blob.Bucket
		want   string
	}{
		{"S3 without bucket", openS3(t, noBucket), "NoSuchBucket"},
		{"S3 with a wrong secret", openS3(t, noAccess), "SignatureDoesNotMatch"},
		{"S3 gone", openS3(t, stoppedS3), "connection refused"},
		{"GCS without bucket", openGCS(t, gcsNoBucket), "404"},
	} {
		t.Run(tt.name, func(t *testing.T) { wantCheckError(t, tt.bucket, tt.want) })
	}
	server.Stop()
	t.Run("GCS gone", func(t *testing.T) { wantCheckError(t, openGCS(t, gcsCfg), "connection refused") })
}

func wantCheckError(t *testing.T, b blob.Bucket, want string) {
	t.Helper()
	err := blob.Check(t.Context(), b, http.DefaultClient)
	if err == nil {
		t.Fatal("got nil, want an error")
	}
	text := err.Error()
	if !strings.HasPrefix(text, "check bucket: write: ") || !strings.Contains(text, want) {
		t.Errorf("got %q, want the step and %q", text, want)
	}
	for _, secret := range []string{"://", s3Secret, "Signature=", "not the secret"} {
		if strings.Contains(text, secret) {
			t.Errorf("error shows %q: %s", secret, text)
		}
	}
}

func signedLink(t *testing.T, b blob.Bucket, name string) string {
	t.Helper()
	link, _, err := b.SignURL(t.Context(), name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func fetch(t *testing.T, method, link string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, link, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}
