package gcsblob

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"cloud.google.com/go/storage"
	"google.golang.org/api/option"
)

const googleTokenURI = "https://oauth2.googleapis.com/token"

// Config says which bucket is used and how. Credentials come from a key file, or
// from an inline e-mail and private key, or, where neither is given, from the
// application default credentials of the environment.
type Config struct {
	// Bucket is the bucket's name. Required.
	Bucket string
	// CredentialsFile is the path of a JSON file: the key of a service account, or
	// an external or impersonated account (which signs links through Google).
	CredentialsFile string
	// ServiceAccountEmail and PrivateKey are the same inline; the key is PEM, with
	// real line ends or with the two characters \n of the JSON file.
	ServiceAccountEmail string
	PrivateKey          string
	// Endpoint is the base URL of an emulator, "http://localhost:4443". It is not
	// asked with credentials, but links are still signed, so a key is needed.
	Endpoint string
	// KMSKey is the resource name of the key with which Cloud Storage encrypts, "projects/P/locations/L/keyRings/R/cryptoKeys/K".
	// Empty: as the bucket is configured.
	KMSKey string
}

func (c Config) validate() error {
	var errs []error
	if c.Bucket == "" {
		errs = append(errs, errors.New("bucket is missing"))
	}
	if (c.ServiceAccountEmail == "") != (c.PrivateKey == "") {
		errs = append(errs, errors.New("service account e-mail and private key belong together, one of them is missing"))
	}
	if c.CredentialsFile != "" && c.ServiceAccountEmail != "" {
		errs = append(errs, errors.New("credentials file and service account e-mail exclude each other"))
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			errs = append(errs, errors.New("endpoint is not an http or https URL without user and query"))
		}
		if c.CredentialsFile == "" && c.PrivateKey == "" {
			errs = append(errs, errors.New("endpoint needs a credentials file or an e-mail and private key, to sign links with"))
		}
	}
	return errors.Join(errs...)
}

// account is what the credentials of a Config come to.
type account struct {
	options []option.ClientOption
	signer  signer
}

// keyFile holds the fields of a credentials file that are needed here.
type keyFile struct {
	Type        string `json:"type"`
	ClientEmail string `json:"client_email"`
	PrivateKey  string `json:"private_key"`
	TokenURI    string `json:"token_uri,omitempty"`
}

// account reads the credentials. It fails when a file or a key cannot be read; the
// error shows nothing of them.
func (c Config) account() (account, error) {
	if c.CredentialsFile != "" {
		return fileAccount(c.CredentialsFile)
	}
	if c.ServiceAccountEmail == "" {
		return account{}, nil
	}
	inline := keyFile{
		Type:        string(option.ServiceAccount),
		ClientEmail: c.ServiceAccountEmail,
		PrivateKey:  strings.ReplaceAll(c.PrivateKey, `\n`, "\n"),
		TokenURI:    googleTokenURI,
	}
	content, err := json.Marshal(inline)
	if err != nil {
		return account{}, fmt.Errorf("service account: %w", err)
	}
	return keyAccount(inline, content)
}

func fileAccount(path string) (account, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return account{}, fmt.Errorf("credentials file: %w", err)
	}
	var file keyFile
	if json.Unmarshal(content, &file) != nil {
		// The JSON error quotes what it met, and the file is all secret.
		return account{}, errors.New("credentials file: not a JSON object of Google's")
	}
	switch kind := option.CredentialsType(file.Type); kind {
	case option.ServiceAccount:
		return keyAccount(file, content)
	case option.ExternalAccount, option.ImpersonatedServiceAccount:
		return account{options: []option.ClientOption{option.WithAuthCredentialsJSON(kind, content)}}, nil
	default:
		return account{}, fmt.Errorf("credentials file: type %q can not sign links; use %s, %s or %s",
			file.Type, option.ServiceAccount, option.ExternalAccount, option.ImpersonatedServiceAccount)
	}
}

func keyAccount(file keyFile, content []byte) (account, error) {
	if file.ClientEmail == "" {
		return account{}, errors.New("service account: e-mail is missing")
	}
	key, err := parseKey(file.PrivateKey)
	if err != nil {
		return account{}, fmt.Errorf("service account: private key: %w", err)
	}
	return account{
		options: []option.ClientOption{
			option.WithAuthCredentialsJSON(option.ServiceAccount, content),
			// Objects are written, read and deleted; the client's default asks for
			// full control and the whole platform.
			option.WithScopes(storage.ScopeReadWrite),
		},
		signer: signer{email: file.ClientEmail, key: key},
	}, nil
}

// parseKey reads a PEM key, PKCS #8 as Google hands it out or PKCS #1. The errors
// of the parsers are left out: they say nothing to an operator.
func parseKey(text string) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(strings.TrimSpace(text)))
	if block == nil {
		return nil, errors.New("not in PEM form, which begins with -----BEGIN PRIVATE KEY-----")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("neither PKCS #8 nor PKCS #1")
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("not an RSA key")
	}
	return key, nil
}
