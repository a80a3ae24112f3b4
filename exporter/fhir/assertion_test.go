package fhir_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"sidecar/exporter/fhir"
)

// checkAssertion holds a request against SMART Backend Services, "Authentication request".
func checkAssertion(r *http.Request, algorithm jose.SignatureAlgorithm, key any, audience string, seen map[string]bool) error {
	if _, _, basic := r.BasicAuth(); basic || r.PostFormValue("client_secret") != "" {
		return errors.New("there is a secret beside the assertion")
	}
	if got := r.PostFormValue("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return fmt.Errorf("client_assertion_type %q", got)
	}
	token, err := jwt.ParseSigned(r.PostFormValue("client_assertion"), []jose.SignatureAlgorithm{algorithm})
	if err != nil {
		return err
	}
	var claims jwt.Claims
	if err := token.Claims(key, &claims); err != nil {
		return err
	}
	header := token.Headers[0]
	left := time.Until(claims.Expiry.Time())
	switch {
	case header.KeyID != "key-1" || header.ExtraHeaders["typ"] != "JWT":
		return fmt.Errorf("header %+v", header)
	case claims.Issuer != clientID || claims.Subject != clientID || len(claims.Audience) != 1 || claims.Audience[0] != audience:
		return fmt.Errorf("claims %+v", claims)
	case left <= time.Minute || left > 5*time.Minute:
		return fmt.Errorf("it holds for %s", left)
	case claims.ID == "" || seen[claims.ID]:
		return errors.New("its jti is not new")
	}
	seen[claims.ID] = true
	return nil
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestSignerRefusesKeysThatDoNotFit(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that it is refused is the test
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fits, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		key             []byte
		algorithm, want string
	}{
		{[]byte("secret text"), "", "no private key"},
		{pkcs8(t, short), "", "2048"},
		{pkcs8(t, curve), "", "P-384"},
		{pkcs8(t, fits), "RS384", "ES384"},
	} {
		_, err := fhir.NewSigner(test.key, "k", test.algorithm)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret text") {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
	if _, err := fhir.NewSigner(pkcs8(t, fits), "k", "ES384"); err != nil {
		t.Error(err)
	}
}
