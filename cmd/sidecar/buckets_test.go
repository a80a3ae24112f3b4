package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
)

const boxAccounts = `
upstream: http://localhost/fhir
accounts:
  - {resourceType: GcpServiceAccount, id: google, service-account-email: bulk@p.iam.gserviceaccount.com, private-key: "-----BEGIN-----"}
  - {resourceType: AwsAccount, id: amazon, region: eu-central-1, access-key-id: AKIA1, secret-access-key: hunter2}
`

// boxed reads the accounts and applies the variables of the product whose settings are taken over.
func boxed(t *testing.T, environment map[string]string) (*config, error) {
	t.Helper()
	lookup := func(name string) (string, bool) {
		value, ok := environment[name]
		return value, ok
	}
	c := defaultConfig()
	if err := decoded(c, []byte(boxAccounts), lookup); err != nil {
		t.Fatal(err)
	}
	if err := c.applyBox(lookup); err != nil {
		return nil, err
	}
	return c, validated(c)
}

func TestBoxVariablesChooseS3(t *testing.T) {
	c, err := boxed(t, map[string]string{
		"box_bulk__storage_backend": "aws", "box_bulk__storage_aws_account": "amazon", "box_bulk__storage_aws_bucket": "exports",
	})
	if err != nil {
		t.Fatal(err)
	}
	b := c.Bucket.S3
	got := fmt.Sprint(c.Bucket.Kind, b.Bucket, b.Region, b.AccessKeyID, string(b.SecretAccessKey))
	if want := fmt.Sprint("s3", "exports", "eu-central-1", "AKIA1", "hunter2"); got != want {
		t.Errorf("bucket: got %s, want %s", got, want)
	}
}

func TestBoxVariablesChooseGCS(t *testing.T) {
	c, err := boxed(t, map[string]string{
		"box_bulk__storage_backend": "gcp", "box_bulk__storage_gcp_service__account": "google", "box_bulk__storage_gcp_bucket": "exports",
	})
	if err != nil {
		t.Fatal(err)
	}
	b := c.Bucket.GCS
	got := fmt.Sprint(c.Bucket.Kind, b.Bucket, b.ServiceAccountEmail, string(b.PrivateKey))
	if want := fmt.Sprint("gcs", "exports", "bulk@p.iam.gserviceaccount.com", "-----BEGIN-----"); got != want {
		t.Errorf("bucket: got %s, want %s", got, want)
	}
}

func TestBoxVariablesAreCheckedAndOptional(t *testing.T) {
	if c, err := boxed(t, map[string]string{"box_bulk__storage_aws_bucket": "exports"}); err != nil || c.Bucket.Kind != "folder" {
		t.Errorf("without a backend: got %v", err)
	}
	for name, test := range map[string]struct {
		environment map[string]string
		want        string
	}{
		"unknown backend":      {map[string]string{"box_bulk__storage_backend": "azure"}, "must be gcp or aws"},
		"no account":           {map[string]string{"box_bulk__storage_backend": "aws", "box_bulk__storage_aws_bucket": "b"}, "box_bulk__storage_aws_account is missing"},
		"account not there":    {map[string]string{"box_bulk__storage_backend": "gcp", "box_bulk__storage_gcp_service__account": "x"}, "names no GcpServiceAccount"},
		"account of the other": {map[string]string{"box_bulk__storage_backend": "gcp", "box_bulk__storage_gcp_service__account": "amazon"}, "names no GcpServiceAccount"},
		"no bucket":            {map[string]string{"box_bulk__storage_backend": "aws", "box_bulk__storage_aws_account": "amazon"}, "s3.bucket is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := boxed(t, test.environment)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: got %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the error holds a secret")
			}
		})
	}
}

func TestSecretsOfAccountsPrintAsStars(t *testing.T) {
	c, err := boxed(t, map[string]string{
		"box_bulk__storage_backend": "aws", "box_bulk__storage_aws_account": "amazon", "box_bulk__storage_aws_bucket": "exports",
	})
	if err != nil {
		t.Fatal(err)
	}
	var out log
	slog.New(slog.NewTextHandler(&out, nil)).InfoContext(t.Context(), "configuration", "bucket", c.Bucket.S3.SecretAccessKey, "all", *c)
	for _, text := range []string{fmt.Sprintf("%v", *c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", *c), fmt.Sprint(c.Bucket, c.Accounts), out.String()} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "BEGIN") {
			t.Errorf("a secret is printed: %s", text)
		}
		if !strings.Contains(text, "***") {
			t.Errorf("no stars: %s", text)
		}
	}
}

func TestBucketPrefixIsAFolderOfTheBucket(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Bucket.Prefix = "/bulk/exports/" })
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))
	files := filesBelow(t, s.config.filesFolder())
	for _, path := range files {
		if !strings.HasPrefix(path, filepath.Join(s.config.filesFolder(), "bulk", "exports")+string(filepath.Separator)) {
			t.Errorf("a file lies outside the prefix: %s", filepath.Base(path))
		}
	}
	if len(files) != len(manifest.Output)+1 { // and manifest.json
		t.Errorf("files: got %d, want %d", len(files), len(manifest.Output)+1)
	}
}

// Ensure that a bucket that does not work when the process starts refuses exports, says why, and harms nothing else.
func TestBucketGoneAtTheStart(t *testing.T) {
	t.Parallel()
	sample, upstream := newSample(t, fhirtest.Plain(), 1)
	notAFolder := filepath.Join(t.TempDir(), "files")
	if err := os.WriteFile(notAFolder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := startSidecar(t, upstream, func(c *config) { c.Bucket.Folder.Path = notAFolder })
	until(t, "first test of the bucket", func() bool {
		err := s.server.exporter.Ready(t.Context())
		return err != nil && !strings.Contains(err.Error(), "not been tested")
	})
	for _, path := range []string{"/$export", "/Patient/$export", "/Group/demo-group/$export"} {
		checkOutcome(t, ask(t, http.MethodGet, s.base+path), http.StatusServiceUnavailable, "transient")
	}
	checkOutcome(t, ask(t, http.MethodGet, s.base+"/$export-status/x"), http.StatusNotFound, "not-found")
	s.checkForwards(upstream)
	for _, path := range []string{"/livez", "/readyz"} {
		if got := ask(t, http.MethodGet, "http://"+s.server.back.Addr().String()+path); got.status != http.StatusOK {
			t.Errorf("%s: got %d", path, got.status)
		}
	}
	s.stop()
	if err := os.Remove(notAFolder); err != nil {
		t.Fatal(err)
	}
	s.start()
	_, manifest := s.export("/$export")
	checkFiles(t, manifest, expected(t, sample, nil))
}

// checkForwards compares some forwarded requests with direct ones.
func (s *sidecar) checkForwards(upstream string) {
	s.t.Helper()
	for _, path := range []string{"/Patient/pat-00001", "/Patient/nobody", "/Patient/pat-00001/x/y/z"} {
		direct, got := ask(s.t, http.MethodGet, upstream+path), ask(s.t, http.MethodGet, s.base+path)
		if got.status != direct.status || strings.ReplaceAll(got.body, s.base, upstream) != direct.body {
			s.t.Errorf("%s: got %d, want %d, or another body", path, got.status, direct.status)
		}
	}
}

// Ensure that an export waits for a bucket that has gone away, fails with a reason when it stays away for too long, and
// that forwarding never notices.
func TestBucketGoneLater(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]bool{"comes back": true, "stays away": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sample, upstream := newSample(t, fhirtest.Plain(), 1)
			s := startSidecar(t, upstream, func(c *config) {
				if !back {
					c.GiveUp = time.Second
				}
			})
			until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
			folder := s.config.filesFolder()
			if err := os.Rename(folder, folder+".away"); err != nil {
				t.Fatal(err)
			}
			status := s.kickOff("/$export") // the last test was good
			s.checkForwards(upstream)
			if !back {
				got := s.finish(status)
				checkOutcome(t, got, http.StatusInternalServerError, "exception")
				if strings.Contains(got.body, s.config.Data) {
					t.Errorf("the outcome holds a path of the machine: %s", got.body)
				}
			}
			if err := os.Rename(folder+".away", folder); err != nil {
				t.Fatal(err)
			}
			if !back {
				checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
				status = s.kickOff("/$export")
			}
			checkFiles(t, s.manifest(status), expected(t, sample, nil))
		})
	}
}

// filesBelow lists the plain files in a folder and those below it.
func filesBelow(t *testing.T, folder string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it went while we looked
			return nil
		}
		if err == nil && !entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
