package fhir_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir"
)

// Ensure that a token endpoint whose answers have no bounds is given up within the time and the bytes of one answer, and that
// neither what it sends nor the secret stands in the error.
func TestHostileTokenEndpoint(t *testing.T) {
	t.Parallel()
	const begin = `{"token_type":"Bearer","access_token":"a-marked-token`
	for name, answer := range map[string]http.HandlerFunc{
		"a text without end": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, begin)
			flood(w, "marked", 64<<20)
		},
		"an error without end": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"`)
			flood(w, clientSecret, 64<<20)
		},
		"headers without end": func(w http.ResponseWriter, _ *http.Request) {
			conn := hijack(t, w)
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			flood(conn, "X-Marked: marked\r\n", 64<<20)
		},
		"brackets": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":`+strings.Repeat("[", 1_000_000))
		},
		"a byte a second": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, " ")
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(time.Second):
				}
			}
		},
		"a token that would end the header": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, begin+`\r\nX-Other: y"}`)
		},
		"another kind of token": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, `{"access_token":"a-marked-token","token_type":"Basic\r\nX: y"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint := httptest.NewServer(answer)
			t.Cleanup(endpoint.Close)
			asked := make(chan struct{}, 1)
			upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked <- struct{}{} }))
			t.Cleanup(upstream.Close)
			credentials := fhir.NewOAuth(fhir.OAuthConfig{TokenURL: endpoint.URL + "/token", ClientID: clientID, ClientSecret: clientSecret})
			client, err := fhir.NewClient(fhir.Config{BaseURL: upstream.URL + "/fhir", Credentials: credentials})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err = ask(t.Context(), client)
			if !errors.Is(err, fhir.ErrCredentials) {
				t.Errorf("got %v", err)
			}
			if text := fmt.Sprintf("%+v", err); strings.Contains(text, "marked") || strings.Contains(text, clientSecret) {
				t.Errorf("the error tells too much: %.300s", text)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			select {
			case <-asked:
				t.Error("the server was asked without a token")
			default:
			}
		})
	}
}
