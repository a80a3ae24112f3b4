package s3blob_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/blob/s3blob"
)

const (
	name = "20261124T104900Z_0b0f6a9e/Patient.1.ndjson"
	// nobody is where no server listens; a port that was just given back might have a new owner.
	nobody = "http://127.0.0.1:1"
)

// isolate keeps the machine's own AWS settings out of a test.
func isolate(t *testing.T) {
	t.Helper()
	for _, key := range []string{
		"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE",
	} {
		t.Setenv(key, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func open(t *testing.T, cfg s3blob.Config) *s3blob.Bucket {
	t.Helper()
	isolate(t)
	b, err := s3blob.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewRefusesIncompleteConfig(t *testing.T) {
	isolate(t)
	for _, tt := range []struct {
		name string
		cfg  s3blob.Config
		want string
	}{
		{"no bucket", s3blob.Config{Region: "eu-west-1"}, "bucket is missing"},
		{"no region", s3blob.Config{Bucket: "b"}, "region is missing"},
		{"id without secret", s3blob.Config{Bucket: "b", AccessKeyID: "id"}, "belong together"},
		{"secret without id", s3blob.Config{Bucket: "b", SecretAccessKey: "hidden"}, "belong together"},
		{"token without key", s3blob.Config{Bucket: "b", SessionToken: "hidden"}, "session token without access key"},
		{"unknown encryption", s3blob.Config{Bucket: "b", SSE: "rot13"}, "sse is neither"},
		{"KMS key without KMS", s3blob.Config{Bucket: "b", SSE: "AES256", KMSKey: "k"}, "needs sse aws:kms"},
		{"endpoint without scheme", s3blob.Config{Bucket: "b", Endpoint: "minio:9000"}, "endpoint is not"},
		{"endpoint with user", s3blob.Config{Bucket: "b", Endpoint: "http://user:hidden@minio:9000"}, "endpoint is not"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s3blob.New(t.Context(), tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hidden") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
}

func TestSignURLAddressesTheBucket(t *testing.T) {
	keys := s3blob.Config{Bucket: "exports", Region: "eu-central-1", AccessKeyID: "id", SecretAccessKey: "secret"}
	minio := keys
	minio.Endpoint, minio.PathStyle, minio.Region = "http://minio:9000/", true, ""
	for _, tt := range []struct {
		name       string
		cfg        s3blob.Config
		want       string
		wantRegion string
	}{
		{"amazon", keys, "https://exports.s3.eu-central-1.amazonaws.com/" + name, "/eu-central-1/s3/"},
		{"compatible store", minio, "http://minio:9000/exports/" + name, "/us-east-1/s3/"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			link, _, err := open(t, tt.cfg).SignURL(t.Context(), name, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			if got, _, _ := strings.Cut(link, "?"); got != tt.want {
				t.Errorf("address: got %s, want %s", got, tt.want)
			}
			u, err := url.Parse(link)
			if err != nil {
				t.Fatal(err)
			}
			query := u.Query()
			if got := query.Get("X-Amz-Credential"); !strings.Contains(got, tt.wantRegion) {
				t.Errorf("credential scope: got %s, want one with %s", got, tt.wantRegion)
			}
			if got, want := query.Get("X-Amz-SignedHeaders"), "host"; got != want {
				t.Errorf("signed headers: got %s, want %s", got, want)
			}
			if got, want := query.Get("X-Amz-Expires"), "3600"; got != want {
				t.Errorf("lifetime: got %s, want %s", got, want)
			}
		})
	}
}

func TestSignURLCutsTheLifetimeToSevenDays(t *testing.T) {
	b := open(t, s3blob.Config{Bucket: "b", Region: "eu-west-1", AccessKeyID: "id", SecretAccessKey: "secret"})
	before := time.Now()
	_, expires, err := b.SignURL(t.Context(), name, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if latest := before.Add(7*24*time.Hour + time.Minute); expires.After(latest) {
		t.Errorf("expires: got %v, want at most %v", expires, latest)
	}
}

func TestSignURLRefusesALifetimeBelowASecond(t *testing.T) {
	b := open(t, s3blob.Config{Bucket: "b", Region: "eu-west-1", AccessKeyID: "id", SecretAccessKey: "secret"})
	for _, ttl := range []time.Duration{0, -time.Hour, 999 * time.Millisecond} {
		if _, _, err := b.SignURL(t.Context(), name, ttl); err == nil {
			t.Errorf("%v: got nil, want an error", ttl)
		}
	}
}

// Ensure a link is not said to outlive the temporary credential that signed it.
func TestSignURLExpiresWithTheCredential(t *testing.T) {
	end := time.Now().Add(20 * time.Minute).UTC().Truncate(time.Second)
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		answer := map[string]string{
			"AccessKeyId": "id", "SecretAccessKey": "secret", "Token": "token", "Expiration": end.Format(time.RFC3339),
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(source.Close)
	isolate(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", source.URL)
	b, err := s3blob.New(t.Context(), s3blob.Config{Bucket: "b", Region: "eu-west-1"})
	if err != nil {
		t.Fatal(err)
	}
	_, expires, err := b.SignURL(t.Context(), name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// The SDK renews a credential some minutes early and may count these off.
	if earliest := end.Add(-10 * time.Minute); expires.After(end) || expires.Before(earliest) {
		t.Errorf("expires: got %v, want between %v and %v", expires, earliest, end)
	}
}

func TestNoCredentialIsAnErrorWithoutAnAddress(t *testing.T) {
	b := open(t, s3blob.Config{Bucket: "b", Region: "eu-west-1"})
	_, _, err := b.SignURL(t.Context(), name, time.Hour)
	if err == nil || strings.Contains(err.Error(), "://") {
		t.Errorf("got %v, want an error without an address", err)
	}
}

// store is the least that a PutObject needs: it refuses the first requests with
// 503 and keeps what the next one brings.
type store struct {
	mu      sync.Mutex
	refuse  int
	bodies  []string
	headers []http.Header
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bodies = append(s.bodies, string(body))
	s.headers = append(s.headers, r.Header.Clone())
	if len(s.bodies) <= s.refuse {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func TestPutIsRetriedFromTheStart(t *testing.T) {
	s := &store{refuse: 1}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	b := open(t, s3blob.Config{Bucket: "b", Endpoint: server.URL, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err := b.Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("line\n")); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(s.bodies, "|"), "line\n|line\n"; got != want {
		t.Errorf("bodies: got %q, want %q", got, want)
	}
	if got, want := s.headers[1].Get("Content-Type"), "application/fhir+ndjson"; got != want {
		t.Errorf("Content-Type: got %q, want %q", got, want)
	}
	// What compatible stores refuse: a body in chunks with a trailer.
	if got := s.headers[1].Get("Content-Encoding"); got != "" {
		t.Errorf("Content-Encoding: got %q, want none", got)
	}
}

func TestErrorsHoldNoLink(t *testing.T) {
	b := open(t, s3blob.Config{Bucket: "b", Endpoint: nobody, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	err := b.Delete(t.Context(), name)
	if err == nil {
		t.Fatal("got nil, want an error")
	}
	if strings.Contains(err.Error(), "://") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want the cause without an address", err)
	}
	if _, ok := errors.AsType[*url.Error](err); !ok {
		t.Error("the cause is lost")
	}
}

// Ensure a missing bucket is not taken for a missing object: a deletion that
// "worked" there would leave the files where they are.
func TestMissingBucketIsAnError(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `<Error><Code>NoSuchBucket</Code><Message>no bucket</Message></Error>`)
	}))
	t.Cleanup(server.Close)
	b := open(t, s3blob.Config{Bucket: "b", Endpoint: server.URL, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if _, err := b.Open(t.Context(), name, 0); err == nil || errors.Is(err, blob.ErrNotExist) {
		t.Errorf("open: got %v, want an error other than ErrNotExist", err)
	}
	if err := b.Delete(t.Context(), name); err == nil {
		t.Error("delete: got nil, want an error")
	}
}

// Ensure the store is told how to encrypt, that this is signed, and that nothing is said where nothing is configured.
func TestPutNamesTheKeyOfTheStore(t *testing.T) {
	for _, tt := range []struct{ sse, key string }{{"", ""}, {"AES256", ""}, {"aws:kms", ""}, {"aws:kms", "arn:aws:kms:eu-central-1:1:key/k"}} {
		s := &store{}
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		b := open(t, s3blob.Config{
			Bucket: "b", Endpoint: server.URL, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret", SSE: tt.sse, KMSKey: tt.key,
		})
		if err := b.Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("line\n")); err != nil {
			t.Fatal(err)
		}
		for header, want := range map[string]string{"x-amz-server-side-encryption": tt.sse, "x-amz-server-side-encryption-aws-kms-key-id": tt.key} {
			got := s.headers[0].Values(header)
			if strings.Join(got, ",") != want || len(got) > 0 && want == "" {
				t.Errorf("%+v: %s: got %q, want %q", tt, header, got, want)
			}
			_, signed, _ := strings.Cut(s.headers[0].Get("Authorization"), "SignedHeaders=")
			signed, _, _ = strings.Cut(signed, ",")
			if want != "" && !slices.Contains(strings.Split(signed, ";"), header) {
				t.Errorf("%+v: %s is not among the signed headers %s", tt, header, signed)
			}
		}
	}
}

// Ensure an error says whether the store has refused the credentials, has no such bucket, or was not reached.
func TestErrorsSayWhatKindTheyAreOf(t *testing.T) {
	isolate(t)
	for _, tt := range []struct {
		status     int
		code, want string
	}{
		{403, "AccessDenied", "credentials, and that they may"},
		{403, "InvalidAccessKeyId", "credentials, and that they may"},
		{404, "NoSuchBucket", "check its name, region and account"},
		{400, "Odd", "name, region, credentials and rights"},
		{0, "", "cannot be reached"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			_, _ = io.WriteString(w, `<Error><Code>`+tt.code+`</Code><Message>no</Message></Error>`)
		}))
		endpoint := server.URL
		if tt.status == 0 {
			endpoint = nobody
		}
		b := open(t, s3blob.Config{Bucket: "b", Endpoint: endpoint, PathStyle: true, AccessKeyID: "id", SecretAccessKey: "secret"})
		err := b.Put(t.Context(), name, blob.Media{Type: "text/plain"}, strings.NewReader("x"))
		if got := blob.Advice(err); err == nil || !strings.Contains(got, tt.want) {
			t.Errorf("%d %s: got %q for %v", tt.status, tt.code, got, err)
		}
		server.Close()
	}
	b := open(t, s3blob.Config{Bucket: "b", Region: "eu-west-1"})
	if err := b.Put(t.Context(), name, blob.Media{Type: "text/plain"}, strings.NewReader("x")); !errors.Is(err, blob.ErrNoCredentials) {
		t.Errorf("without credentials: got %v", err)
	}
}
