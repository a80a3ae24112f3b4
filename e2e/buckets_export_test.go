package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// removeTimeout is how long the objects of a deleted export may still be there; the job itself is gone at once.
const removeTimeout = 20 * time.Second

// Ensure an export is the same through an S3-compatible store: links are signed and work without credentials.
func TestExportThroughS3(t *testing.T) {
	exportThrough(t, s3Settings)
}

// s3Settings starts an S3-compatible store and says how the sidecar uses it.
func s3Settings(t *testing.T) (linksBelow string, _ settings) {
	t.Helper()
	bucket := startS3(t)
	return bucket.Endpoint, settings{
		"kind":   "s3",
		"prefix": "exports/fhir",
		"s3": settings{
			"bucket": bucket.Bucket, "region": bucket.Region, "endpoint": bucket.Endpoint, "path_style": bucket.PathStyle,
			"access_key_id": bucket.AccessKeyID, "secret_access_key": bucket.SecretAccessKey,
		},
	}
}

// Ensure an export is the same through Google Cloud Storage.
func TestExportThroughGCS(t *testing.T) {
	exportThrough(t, gcsSettings)
}

// gcsSettings starts a Google Cloud Storage server and says how the sidecar uses it.
func gcsSettings(t *testing.T) (linksBelow string, _ settings) {
	t.Helper()
	bucket := startGCS(t)
	return bucket.Endpoint, settings{
		"kind":   "gcs",
		"prefix": "exports",
		"gcs": settings{
			"bucket": bucket.Bucket, "credentials_file": bucket.CredentialsFile, "endpoint": bucket.Endpoint,
			"service_account_email": bucket.ServiceAccountEmail, "private_key": bucket.PrivateKey,
		},
	}
}

// exportThrough compares an export through a bucket with the loaded set and with one through the folder bucket.
func exportThrough(t *testing.T, start func(*testing.T) (string, settings)) {
	t.Helper()
	linksBelow, bucket := start(t)
	server := hapi(t)
	s := startSidecar(t, server.base, settings{"bucket": bucket})
	result := s.export(t, "$export")
	equalSets(t, result.rows, server.data.system())
	equalReads(t, server, result.rows)
	for _, file := range result.manifest.Output {
		if !strings.HasPrefix(file.URL, linksBelow) || strings.HasPrefix(file.URL, s.base) {
			t.Errorf("%s file: the link leads to the wrong server", file.Type)
		}
	}
	if *result.manifest.RequiresAccessToken {
		t.Error("requiresAccessToken is true, want false for signed links")
	}
	equalRows(t, startSidecar(t, server.base, nil).export(t, "$export").rows, result.rows)

	equalSets(t, s.export(t, "Group/e2e-ten/$export").rows, server.data.groupLevel(t, "e2e-ten", time.Now()))

	s.release(t, result.statusURL)
	deadline := time.Now().Add(removeTimeout)
	for fetch(t, http.MethodGet, result.manifest.Output[0].URL)/100 == 2 {
		if time.Now().After(deadline) {
			t.Fatalf("a file of a deleted export is still there after %v", removeTimeout)
		}
		pause(t, 50*time.Millisecond)
	}
}
