package gcsblob_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/blob/gcsblob"
)

const (
	email = "exporter@project.iam.gserviceaccount.com"
	name  = "20261124T104900Z_0b0f6a9e/Patient.1.ndjson"
)

// testKey is made once: making one takes longer than all that is done with it.
var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func open(t *testing.T, cfg gcsblob.Config) *gcsblob.Bucket {
	t.Helper()
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	b, err := gcsblob.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func inline(t *testing.T) gcsblob.Config {
	t.Helper()
	return gcsblob.Config{Bucket: "exports", ServiceAccountEmail: email, PrivateKey: pkcs8(t, testKey())}
}

// Ensure a link carries a signature that Google would accept: the emulator of the
// end-to-end tests checks none. The request is rebuilt from Google's description
// (cloud.google.com/storage/docs/authentication/canonical-requests and
// .../signatures), not with the client's code.
func TestSignURLSignsTheCanonicalRequest(t *testing.T) {
	b := open(t, inline(t))
	for _, tt := range []struct{ name, path string }{
		{name, "/exports/20261124T104900Z_0b0f6a9e/Patient.1.ndjson"},
		{"a b/ü+1~.ndjson", "/exports/a%20b/%C3%BC%2B1~.ndjson"},
	} {
		before := time.Now()
		link, expires, err := b.SignURL(t.Context(), tt.name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(link)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := u.Scheme+"://"+u.Host+u.EscapedPath(), "https://storage.googleapis.com"+tt.path; got != want {
			t.Errorf("address: got %s, want %s", got, want)
		}
		query := u.Query()
		scope := query.Get("X-Goog-Date")[:8] + "/auto/storage/goog4_request"
		for key, want := range map[string]string{
			"X-Goog-Algorithm":     "GOOG4-RSA-SHA256",
			"X-Goog-Credential":    email + "/" + scope,
			"X-Goog-SignedHeaders": "host",
		} {
			if got := query.Get(key); got != want {
				t.Errorf("%s: got %q, want %q", key, got, want)
			}
		}
		if earliest := before.Add(time.Hour - 2*time.Second); expires.Before(earliest) || expires.After(time.Now().Add(time.Hour)) {
			t.Errorf("expires: got %v, want an hour behind %v", expires, before)
		}
		verify(t, u, tt.path, scope)
	}
}

func verify(t *testing.T, u *url.URL, path, scope string) {
	t.Helper()
	var pairs []string
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		if !strings.HasPrefix(pair, "X-Goog-Signature=") {
			pairs = append(pairs, pair)
		}
	}
	slices.Sort(pairs)
	canonical := strings.Join([]string{
		"GET", path, strings.Join(pairs, "&"), "host:" + u.Host, "", "host", "UNSIGNED-PAYLOAD",
	}, "\n")
	sum := sha256.Sum256([]byte(canonical))
	toSign := strings.Join([]string{
		"GOOG4-RSA-SHA256", u.Query().Get("X-Goog-Date"), scope, hex.EncodeToString(sum[:]),
	}, "\n")
	signature, err := hex.DecodeString(u.Query().Get("X-Goog-Signature"))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(toSign))
	if err := rsa.VerifyPKCS1v15(&testKey().PublicKey, crypto.SHA256, digest[:], signature); err != nil {
		t.Errorf("signature of %s: %v", path, err)
	}
}

func TestSignURLTakesEveryFormOfKey(t *testing.T) {
	key := pkcs8(t, testKey())
	file := filepath.Join(t.TempDir(), "key.json")
	content, err := json.Marshal(map[string]string{"type": "service_account", "client_email": email, "private_key": key})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(testKey())}))
	for _, tt := range []struct {
		name string
		cfg  gcsblob.Config
	}{
		{"PKCS #8", gcsblob.Config{ServiceAccountEmail: email, PrivateKey: key}},
		{"PKCS #1", gcsblob.Config{ServiceAccountEmail: email, PrivateKey: pkcs1}},
		{"escaped line ends", gcsblob.Config{ServiceAccountEmail: email, PrivateKey: strings.ReplaceAll(key, "\n", `\n`)}},
		{"file", gcsblob.Config{CredentialsFile: file}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Bucket = "exports"
			link, _, err := open(t, tt.cfg).SignURL(t.Context(), name, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(link)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, u, "/exports/"+name, u.Query().Get("X-Goog-Date")[:8]+"/auto/storage/goog4_request")
		})
	}
}

func TestSignURLBoundsTheLifetime(t *testing.T) {
	b := open(t, inline(t))
	_, expires, err := b.SignURL(t.Context(), name, 30*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if latest := time.Now().Add(7 * 24 * time.Hour); expires.After(latest) {
		t.Errorf("expires: got %v, want at most %v", expires, latest)
	}
	for _, ttl := range []time.Duration{0, -time.Hour, 999 * time.Millisecond} {
		if _, _, err := b.SignURL(t.Context(), name, ttl); err == nil {
			t.Errorf("%v: got nil, want an error", ttl)
		}
	}
}

func TestNewRefusesIncompleteConfig(t *testing.T) {
	key := pkcs8(t, testKey())
	elliptical, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(folder, fmt.Sprintf("%x.json", sha256.Sum256([]byte(content))))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct {
		name string
		cfg  gcsblob.Config
		want string
	}{
		{"no bucket", gcsblob.Config{ServiceAccountEmail: email, PrivateKey: key}, "bucket is missing"},
		{"e-mail without key", gcsblob.Config{Bucket: "b", ServiceAccountEmail: email}, "belong together"},
		{"key without e-mail", gcsblob.Config{Bucket: "b", PrivateKey: key}, "belong together"},
		{"file and e-mail", gcsblob.Config{Bucket: "b", CredentialsFile: "x", ServiceAccountEmail: email, PrivateKey: key}, "exclude each other"},
		{"endpoint without key", gcsblob.Config{Bucket: "b", Endpoint: "http://localhost:4443"}, "to sign links with"},
		{"endpoint without scheme", gcsblob.Config{Bucket: "b", Endpoint: "localhost:4443", CredentialsFile: "x"}, "endpoint is not"},
		{"key that is no PEM", gcsblob.Config{Bucket: "b", ServiceAccountEmail: email, PrivateKey: "hidden"}, "private key: not in PEM form"},
		{"key that is no RSA key", gcsblob.Config{Bucket: "b", ServiceAccountEmail: email, PrivateKey: pkcs8(t, elliptical)}, "not an RSA key"},
		{"missing file", gcsblob.Config{Bucket: "b", CredentialsFile: filepath.Join(folder, "none.json")}, "credentials file: open"},
		{"file that is no JSON", gcsblob.Config{Bucket: "b", CredentialsFile: file("hidden")}, "not a JSON object"},
		{"file of a user", gcsblob.Config{Bucket: "b", CredentialsFile: file(`{"type":"authorized_user"}`)}, `type "authorized_user" can not sign`},
		{"file without key", gcsblob.Config{Bucket: "b", CredentialsFile: file(`{"type":"service_account","client_email":"e"}`)}, "not in PEM form"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := gcsblob.New(t.Context(), tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "hidden") {
				t.Errorf("error shows a secret: %v", err)
			}
		})
	}
}

// store counts uploads and refuses the first ones with 503.
type store struct {
	mu      sync.Mutex
	refuse  int
	uploads []string
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uploads = append(s.uploads, string(body))
	if len(s.uploads) <= s.refuse {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"bucket":"exports","name":"x"}`)
}

func openStore(t *testing.T, s *store) *gcsblob.Bucket {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	cfg := inline(t)
	cfg.Endpoint = server.URL
	return open(t, cfg)
}

func TestPutIsRetried(t *testing.T) {
	s := &store{refuse: 2}
	if err := openStore(t, s).Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("line\n")); err != nil {
		t.Fatal(err)
	}
	if got, want := len(s.uploads), 3; got != want {
		t.Errorf("uploads: got %d, want %d", got, want)
	}
	last := s.uploads[len(s.uploads)-1]
	for _, want := range []string{"line\n", "application/fhir+ndjson"} {
		if !strings.Contains(last, want) {
			t.Errorf("upload does not hold %q", want)
		}
	}
}

// Ensure a store that refuses for good ends a Put although its context does not.
func TestPutGivesUp(t *testing.T) {
	s := &store{refuse: 1000}
	err := openStore(t, s).Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("line\n"))
	if err == nil {
		t.Fatal("got nil, want an error")
	}
	if got := len(s.uploads); got < 2 || got > 10 {
		t.Errorf("uploads: got %d, want a few", got)
	}
}

func TestFailedPutSendsNothing(t *testing.T) {
	s := &store{}
	cause := errors.New("disk error")
	body := struct {
		io.Reader
		io.Seeker
	}{io.MultiReader(strings.NewReader("half a li"), errReader{cause}), strings.NewReader("")}
	err := openStore(t, s).Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, body)
	if !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := len(s.uploads); got != 0 {
		t.Errorf("uploads: got %d, want 0", got)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestErrorsHoldNoLink(t *testing.T) {
	cfg := inline(t)
	cfg.Endpoint = "http://127.0.0.1:1" // a port that was just given back might have a new owner
	err := open(t, cfg).Put(t.Context(), name, blob.Media{Type: "text/plain"}, strings.NewReader("x"))
	if err == nil {
		t.Fatal("got nil, want an error")
	}
	if strings.Contains(err.Error(), "://") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v, want the cause without an address", err)
	}
	if got := blob.Advice(err); !strings.Contains(got, "cannot be reached") {
		t.Errorf("advice: got %q", got)
	}
}

// Ensure an error says whether the store has refused the credentials, has no such bucket, or was not reached.
func TestErrorsSayWhatKindTheyAreOf(t *testing.T) {
	for status, want := range map[int]string{403: "credentials, and that they may", 404: "check its name, region and account", 400: "name, region, credentials and rights"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		cfg := inline(t)
		cfg.Endpoint = server.URL
		err := open(t, cfg).Put(t.Context(), name, blob.Media{Type: "text/plain"}, strings.NewReader("x"))
		if got := blob.Advice(err); err == nil || !strings.Contains(got, want) {
			t.Errorf("%d: got %q for %v", status, got, err)
		}
		server.Close()
	}
}
