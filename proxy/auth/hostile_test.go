package auth_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/proxy/auth"
)

// repeated writes a text until nobody takes it, and at most 64 MB of it. It takes little memory itself, however much of it is written.
func repeated(w io.Writer, text string) {
	chunk := bytes.Repeat([]byte(text), 1+(64<<10)/len(text))
	for sent := 0; sent < 64<<20; sent += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// hostileAnswers are what an identity server may answer to any question that asks for JSON, with what the log has to say.
var hostileAnswers = map[string]struct {
	answer http.HandlerFunc
	want   string
}{
	"a text without end": {func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"active":true,"scope":"`)
		repeated(w, "marked ")
	}, "too long"},
	"two megabytes": {func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"active":true,"x":"`+strings.Repeat("marked", 400_000)+`"}`)
	}, "too long"},
	"a bomb": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		packer := gzip.NewWriter(w)
		repeated(packer, "          ")
		_ = packer.Close()
	}, "too long"},
	"brackets": {func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"marked":`+strings.Repeat("[", 1_000_000))
	}, "not the JSON"},
	"brackets that are closed": {func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"active":true,"keys":`+strings.Repeat("[", 500_000)+strings.Repeat("]", 500_000)+`}`)
	}, "not the JSON"},
	"a list where an object should be": {func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `[{"active":true,"marked":true}]`)
	}, "not the JSON"},
	"a header of a megabyte": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Marked", strings.Repeat("marked", 200_000))
		_, _ = io.WriteString(w, "{}")
	}, "header"},
	"a page to log in": {func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>marked")
	}, "not the JSON"},
	"a byte a second": {func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(time.Second):
			}
		}
	}, "exceeded"},
}

// Ensure that answers of an identity server without bounds let nobody in, are given up early, and are told to the log without
// what they held.
func TestHostileAnswersOfTheIdentityServer(t *testing.T) {
	t.Parallel()
	for name, test := range hostileAnswers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(test.answer)
			t.Cleanup(server.Close)
			for mode, cfg := range map[string]auth.Config{
				"discovery":     {Mode: auth.JWT, Issuer: server.URL, Audience: audience},
				"keys":          {Mode: auth.JWT, Issuer: server.URL, Audience: audience, JWKSURL: server.URL + "/jwks"},
				"introspection": {Mode: auth.Introspection, IntrospectionURL: server.URL + "/i", ClientID: "a", ClientSecret: "a-secret"},
			} {
				t.Run(mode, func(t *testing.T) {
					t.Parallel()
					var log bytes.Buffer
					cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
					authorizer, err := auth.New(cfg)
					if err != nil {
						t.Fatal(err)
					}
					token, began := newIssuer(t).token(t, nil), time.Now()
					if _, got := authorize(t, authorizer, "Bearer "+token); got != http.StatusServiceUnavailable {
						t.Errorf("got %d, want 503", got)
					}
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("it took %s", took)
					}
					if text := log.String(); !strings.Contains(text, test.want) || strings.Contains(text, "marked") || strings.Contains(text, "a-secret") || strings.Contains(text, token) {
						t.Errorf("the log says %.500q, want %q", text, test.want)
					}
				})
			}
		})
	}
}

// Ensure that such answers take no more memory than a few of the longest that are read.
func TestHostileAnswersTakeLittleMemory(t *testing.T) {
	for _, name := range []string{"a text without end", "a bomb", "brackets", "brackets that are closed"} {
		server := httptest.NewServer(hostileAnswers[name].answer)
		t.Cleanup(server.Close)
		authorizer, err := auth.New(auth.Config{Mode: auth.Introspection, IntrospectionURL: server.URL + "/i", ClientID: "a", ClientSecret: "b"})
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		authorize(t, authorizer, "Bearer opaque")
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%s: %d MiB were allocated", name, grown>>20)
		}
	}
}

// Ensure that an answer which says something twice, or in other letters, is not read in the way that lets a client in, and that
// the secret goes nowhere else.
func TestAmbiguousAnswersLetNobodyIn(t *testing.T) {
	var led atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { led.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for name, test := range map[string]struct {
		answer string
		want   int
	}{
		"right":              {`{"active":true,"client_id":"a","scope":"system/*.rs"}`, 200},
		"active twice":       {`{"active":false,"client_id":"a","scope":"system/*.rs","active":true}`, 503},
		"client twice":       {`{"active":true,"client_id":"a","client_id":"b","scope":"system/*.rs"}`, 503},
		"scope twice":        {`{"active":true,"client_id":"a","scope":"system/Patient.rs","scope":"system/*.rs"}`, 503},
		"unknown key twice":  {`{"active":true,"client_id":"a","scope":"system/*.rs","x":1,"x":2}`, 503},
		"active in capitals": {`{"ACTIVE":true,"client_id":"a","scope":"system/*.rs"}`, 401},
		"both letters":       {`{"active":false,"Active":true,"client_id":"a","scope":"system/*.rs"}`, 401},
		"scope in capitals":  {`{"active":true,"client_id":"a","SCOPE":"system/*.rs"}`, 403},
		"client in letters":  {`{"active":true,"Client_Id":"a","scope":"system/*.rs"}`, 401},
		"two answers":        {`{"active":true,"client_id":"a","scope":"system/*.rs"}{"active":false}`, 503},
		"elsewhere":          {"", 503},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if test.answer == "" {
				http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
				return
			}
			_, _ = io.WriteString(w, test.answer)
		}))
		authorizer, err := auth.New(auth.Config{Mode: auth.Introspection, IntrospectionURL: server.URL, ClientID: "a", ClientSecret: "b"})
		if err != nil {
			t.Fatal(err)
		}
		if _, got := authorize(t, authorizer, "Bearer opaque"); got != test.want {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
		server.Close()
	}
	if n := led.Load(); n != 0 {
		t.Errorf("%d questions went to another server", n)
	}
}
