package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"sidecar/exporter/fhir/fhirtest"
)

// Ensure clients with tokens of a real identity server get what the tokens allow, and nobody else anything: with JWTs that
// are checked by its keys, and with opaque tokens that it is asked about. The sidecar reads with a token of its own, for which it
// shows an assertion that it has signed.
func TestTokensOfAnIdentityServer(t *testing.T) {
	warehouse, other, reader := newOIDCClient(t, "warehouse"), newOIDCClient(t, "other"), newOIDCClient(t, "reader")
	const secret = "of the sidecar: +%"
	issuer := startIdentityServer(t, secret, warehouse, other, reader)
	for mode, auth := range map[string]settings{
		"jwt": {"issuer": issuer, "audience": "https://fhir.example.org/jwt"},
		"introspection": {
			"issuer": issuer, "audience": "https://fhir.example.org/opaque",
			"introspection_url": issuer + "/token/introspection", "client_id": "sidecar", "client_secret": secret,
		},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			auth["mode"] = mode
			auth["clients"] = []settings{{"id": other.ID, "groups": settings{"deny": []string{"demo-group"}}}}
			sample := startSample(t, 20)
			sample.Gate = func(r *http.Request) *fhirtest.Access {
				if r.URL.Query().Has("_sort") && !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") { // an export's
					return nil
				}
				return &fhirtest.Access{}
			}
			s := startSidecar(t, sample.base, settings{"auth": auth, "upstream_auth": settings{"oauth2": settings{
				"token_url": issuer + "/token", "client_id": reader.ID, "private_key": reader.pem, "key_id": reader.ID, "scope": "system/*.rs",
			}}})
			token := func(client *oidcClient, scope string) string {
				return client.token(t, issuer, auth["audience"].(string), scope)
			}
			full := token(warehouse, "system/*.rs")
			if isJWT := strings.Count(full, ".") == 2; isJWT != (mode == "jwt") {
				t.Fatalf("the token is a JWT: %t", isJWT)
			}
			checkRefusals(t, s, token(warehouse, "system/Patient.rs"), token(warehouse, "user/Patient.rs"))

			statusURL := s.kickOffAs(t, full, "$export?_type=Patient,Condition,Observation")
			for name, wrong := range map[string]string{"none": "", "cut off": full[:len(full)-4]} {
				s.expect(t, name, http.MethodGet, statusURL, wrong, http.StatusUnauthorized)
				s.expect(t, name, http.MethodDelete, statusURL, wrong, http.StatusUnauthorized)
			}
			s.expect(t, "the other client", http.MethodGet, statusURL, token(other, "system/*.rs"), http.StatusNotFound)
			s.expect(t, "the other client", http.MethodDelete, statusURL, token(other, "system/*.rs"), http.StatusNotFound)
			s.expect(t, "the other client", http.MethodGet, s.base+"/Group/demo-group/$export", token(other, "system/*.rs"), http.StatusForbidden)
			s.expect(t, "fewer types", http.MethodGet, statusURL, token(warehouse, "system/Patient.rs"), http.StatusForbidden)
			// A client comes back with another token, as these are short.
			types := typesOf(s.downloadAs(t, token(warehouse, "system/*.rs"), statusURL))
			if !types["Patient"] || !types["Condition"] || !types["Observation"] || len(types) != 3 {
				t.Errorf("the export holds %v", types)
			}

			narrow := token(warehouse, "system/Patient.rs system/Condition.read")
			statusURL = s.kickOffAs(t, narrow, "$export")
			types = typesOf(s.downloadAs(t, narrow, statusURL))
			if !types["Patient"] || !types["Condition"] || len(types) != 2 {
				t.Errorf("with scopes for Patient and Condition the export holds %v", types)
			}
			s.expect(t, "its client", http.MethodDelete, statusURL, narrow, http.StatusAccepted)
			s.expect(t, "its client, deleted", http.MethodGet, statusURL, narrow, http.StatusNotFound)
		})
	}
}

// checkRefusals asks for exports that the tokens are not enough for.
func checkRefusals(t *testing.T, s *sidecar, narrow, user string) {
	t.Helper()
	s.expect(t, "no token", http.MethodGet, s.base+"/$export", "", http.StatusUnauthorized)
	s.expect(t, "garbage", http.MethodGet, s.base+"/Patient/$export", "garbage", http.StatusUnauthorized)
	s.expect(t, "a user's token", http.MethodGet, s.base+"/$export", user, http.StatusForbidden)
	s.expect(t, "a type that the token is not for", http.MethodGet, s.base+"/$export?_type=Patient,Condition", narrow, http.StatusForbidden)
	s.expect(t, "a search without a token, which the server answers", http.MethodGet, s.base+"/Patient?_count=1", "", http.StatusOK)
}

// startIdentityServer runs oidc-provider and returns its issuer.
func startIdentityServer(t *testing.T, secret string, clients ...*oidcClient) string {
	t.Helper()
	folder := filepath.Join("clients", "oidc")
	if err := installNPM(folder); err != nil {
		t.Fatal(err)
	}
	arguments, err := json.Marshal(map[string]any{"clients": clients, "secret": secret})
	if err != nil {
		t.Fatal(err)
	}
	server := exec.CommandContext(t.Context(), "node", "provider.mjs", string(arguments))
	server.Dir = folder
	logs := &logBuffer{}
	server.Stderr = logs
	output, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Logf("log of the identity server:\n%s", logs.tail(4000))
		}
	})
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "http://") {
			return lines.Text()
		}
	}
	t.Fatalf("the identity server has ended: %v\n%s", lines.Err(), logs.tail(4000))
	return ""
}

// oidcClient is a client of SMART Backend Services: it has a key, and no secret.
type oidcClient struct {
	ID     string          `json:"id"`
	Public jose.JSONWebKey `json:"key"`
	signer jose.Signer
	pem    string // its private key
}

func newOIDCClient(t *testing.T, id string) *oidcClient {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES384, Key: jose.JSONWebKey{Key: key, KeyID: id}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &oidcClient{
		ID: id, Public: jose.JSONWebKey{Key: key.Public(), KeyID: id, Algorithm: string(jose.ES384), Use: "sig"}, signer: signer,
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})),
	}
}

// token fetches an access token for the audience.
func (c *oidcClient) token(t *testing.T, issuer, audience, scope string) string {
	t.Helper()
	now := time.Now()
	assertion, err := jwt.Signed(c.signer).Claims(jwt.Claims{
		Issuer: c.ID, Subject: c.ID, Audience: jwt.Audience{issuer + "/token"}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(4 * time.Minute)),
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "scope": {scope}, "resource": {audience},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion},
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, _, body := send(t, request)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("token of %s: status %d, %v: %s", c.ID, status, err, body)
	}
	return answer.AccessToken
}

// as sends a request with a token, without one where it is empty.
func (s *sidecar) as(t *testing.T, token, method, address string) (status int, header http.Header, body []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Prefer", "respond-async")
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return send(t, request)
}

// expect sends a request, and checks that a refusal says what was wrong in the way of FHIR and of OAuth.
func (s *sidecar) expect(t *testing.T, name, method, address, token string, want int) {
	t.Helper()
	status, header, body := s.as(t, token, method, address)
	if status != want {
		t.Errorf("%s, %s %s: got %d, want %d: %.400s", name, method, pathOf(address), status, want, body)
	}
	if status >= 400 && !strings.Contains(string(body), `"OperationOutcome"`) {
		t.Errorf("%s, %s %s: no OperationOutcome: %.400s", name, method, pathOf(address), body)
	}
	if challenge := header.Get("WWW-Authenticate"); (status == http.StatusUnauthorized) != strings.HasPrefix(challenge, "Bearer") {
		t.Errorf("%s, %s %s: status %d with WWW-Authenticate %q", name, method, pathOf(address), status, challenge)
	}
}

func (s *sidecar) kickOffAs(t *testing.T, token, path string) string {
	t.Helper()
	status, header, body := s.as(t, token, http.MethodGet, s.base+"/"+path)
	if status != http.StatusAccepted {
		t.Fatalf("kick-off of %s: status %d, want 202: %.800s", path, status, body)
	}
	return header.Get("Content-Location")
}

// downloadAs waits for the manifest and reads its files, with the token where the manifest asks for one.
func (s *sidecar) downloadAs(t *testing.T, token, statusURL string) map[string]json.RawMessage {
	t.Helper()
	rows := map[string]json.RawMessage{}
	for deadline := time.Now().Add(exportTimeout); time.Now().Before(deadline); pause(t, 200*time.Millisecond) {
		status, _, body := s.as(t, token, http.MethodGet, statusURL)
		if status == http.StatusAccepted {
			continue
		}
		var found manifest
		if err := json.Unmarshal(body, &found); err != nil || status != http.StatusOK || found.RequiresAccessToken == nil {
			t.Fatalf("status of the export: %d, %v: %.800s", status, err, body)
		}
		for _, file := range found.Output {
			if *found.RequiresAccessToken {
				s.expect(t, "file without a token", http.MethodGet, file.URL, "", http.StatusUnauthorized)
			} else {
				token = ""
			}
			_, _, body := s.as(t, token, http.MethodGet, file.URL)
			for line := range strings.Lines(string(body)) {
				key, err := keyOf([]byte(line))
				if err != nil {
					t.Fatalf("%s file: %v: %.400s", file.Type, err, line)
				}
				rows[key] = json.RawMessage(line)
			}
		}
		return rows
	}
	t.Fatal("the export was not complete in time")
	return nil
}

// typesOf are the types of which there are rows.
func typesOf(rows map[string]json.RawMessage) map[string]bool {
	types := map[string]bool{}
	for key := range rows {
		typ, _, _ := strings.Cut(key, "/")
		types[typ] = true
	}
	return types
}
