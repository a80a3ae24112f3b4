package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"

	"sidecar/exporter/blob/gcsblob"
)

const (
	gcsBucket = "exports"
	gcsEmail  = "exporter@e2e.iam.gserviceaccount.com"
)

// gcsKey signs links; the server of these tests does not check them, the test of
// package gcsblob does.
var gcsKey = sync.OnceValues(func() (string, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
})

// startGCS starts a Google Cloud Storage server with an empty bucket, in memory,
// for the length of the test.
func startGCS(t *testing.T) gcsblob.Config {
	t.Helper()
	cfg, _ := startGCSServer(t)
	return cfg
}

// startGCSServer is startGCS for a test that looks into the server or stops it.
func startGCSServer(t *testing.T) (gcsblob.Config, *fakestorage.Server) {
	t.Helper()
	key, err := gcsKey()
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{
		Scheme: "http", Host: host, Port: uint16(port),
		PublicHost: address, ExternalURL: "http://" + address,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: gcsBucket})
	return gcsblob.Config{
		Bucket: gcsBucket, Endpoint: "http://" + address, ServiceAccountEmail: gcsEmail, PrivateKey: key,
	}, server
}
