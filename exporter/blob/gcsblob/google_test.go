package gcsblob_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/blob/gcsblob"
)

// google is the metadata server of a machine without a key, and Google's API of credentials. It keeps what it was asked.
type google struct {
	t *testing.T

	mu    sync.Mutex
	asked []string
}

func (g *google) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, r.Method+" "+r.Host+r.URL.Path)
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Content-Type", "application/json")
	answer := any(map[string]string{})
	switch {
	case strings.HasSuffix(r.URL.Path, "/service-accounts/default/token"):
		answer = map[string]any{"access_token": "of the machine", "token_type": "Bearer", "expires_in": 3600}
	case strings.HasSuffix(r.URL.Path, "/service-accounts/default/email"):
		_, _ = io.WriteString(w, email)
		return
	case r.Host == "iamcredentials.googleapis.com" && r.URL.Path == "/v1/projects/-/serviceAccounts/"+email+":signBlob":
		if got := r.Header.Get("Authorization"); got != "Bearer of the machine" {
			g.t.Errorf("signBlob: got the token %q", got)
		}
		var request struct {
			Payload []byte `json:"payload"`
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			g.t.Errorf("signBlob: %v", err)
		}
		sum := sha256.Sum256(request.Payload)
		signature, err := rsa.SignPKCS1v15(rand.Reader, testKey(), crypto.SHA256, sum[:])
		if err != nil {
			g.t.Error(err)
		}
		answer = map[string]string{"keyId": "k", "signedBlob": base64.StdEncoding.EncodeToString(signature)}
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		g.t.Error(err)
	}
}

// Ensure that without a private key a link is signed by one request of signBlob, in the name of the machine's own account and with
// its token, and lives 12 hours at most. The requests are those that Google's own client sends; none leaves the machine.
func TestSignURLWithoutAKeyAsksSignBlob(t *testing.T) {
	g := &google{t: t}
	plain, secure := httptest.NewServer(g), httptest.NewTLSServer(g)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	t.Setenv("HOME", t.TempDir()) // no credentials of whoever runs the test
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(plain.URL, "http://"))
	usual := http.DefaultTransport
	t.Cleanup(func() { http.DefaultTransport = usual })
	// Google's client begins with a copy of the default transport.
	transport := secure.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "example.com" // for which httptest has its certificate
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasSuffix(address, ":443") {
			address = secure.Listener.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	http.DefaultTransport = transport

	b := open(t, gcsblob.Config{Bucket: "exports"})
	link, expires, err := b.SignURL(t.Context(), name, 7*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(link)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, u, "/exports/"+name, u.Query().Get("X-Goog-Date")[:8]+"/auto/storage/goog4_request")
	if got := u.Query().Get("X-Goog-Credential"); !strings.HasPrefix(got, email+"/") {
		t.Errorf("signer: got %s, want %s", got, email)
	}
	if left := time.Until(expires); left > 12*time.Hour || left < 12*time.Hour-time.Minute {
		t.Errorf("lifetime: got %v, want 12 hours", left)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	signed := 0
	for _, asked := range g.asked {
		if strings.HasPrefix(asked, "POST iamcredentials.googleapis.com/") {
			signed++
		}
	}
	if signed != 1 {
		t.Errorf("requests of signBlob: got %d, want 1 of %q", signed, g.asked)
	}
}

// Ensure Cloud Storage is told which key to encrypt with, and nothing where none is configured.
func TestPutNamesTheKeyOfTheStore(t *testing.T) {
	for _, key := range []string{"", "projects/p/locations/europe/keyRings/r/cryptoKeys/k"} {
		var got url.Values
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got = r.URL.Query()
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"bucket":"exports","name":"x"}`)
		}))
		cfg := inline(t)
		cfg.Endpoint, cfg.KMSKey = server.URL, key
		err := open(t, cfg).Put(t.Context(), name, blob.Media{Type: "application/fhir+ndjson"}, strings.NewReader("line\n"))
		server.Close() // and waits for the request
		if err != nil {
			t.Fatal(err)
		}
		if got.Get("kmsKeyName") != key || got.Has("kmsKeyName") != (key != "") {
			t.Errorf("kmsKeyName: got %q, want %q", got["kmsKeyName"], key)
		}
	}
}
