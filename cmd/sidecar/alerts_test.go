package main

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
)

// Ensure the alerts that docs/operations.md names work: the first failure is an increase, and a job that hangs has an age.
func TestMetricsForAlerts(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) { c.Settle = time.Hour })
	metrics := func() string {
		return ask(t, http.MethodGet, fmt.Sprintf("http://%s/metrics", s.server.back.Addr())).body
	}
	for _, want := range []string{
		`sidecar_export_jobs_total{status="failed"} 0`, `sidecar_kick_offs_total{level="group",result="refused"} 0`, "sidecar_export_running_seconds 0",
	} {
		if got := metrics(); !strings.Contains(got, "\n"+want+"\n") {
			t.Errorf("no %q before the first export in\n%s", want, got)
		}
	}
	until(t, "bucket", func() bool { return s.server.exporter.Ready(t.Context()) == nil })
	status := s.kickOff("/$export")
	running := regexp.MustCompile(`(?m)^sidecar_export_running_seconds 0*\.?0*[1-9]`)
	until(t, "the age of the export", func() bool { return running.MatchString(metrics()) })
	checkOutcome(t, ask(t, http.MethodDelete, status), http.StatusAccepted, "informational")
	until(t, "no export", func() bool { return strings.Contains(metrics(), "\nsidecar_export_running_seconds 0\n") })
}

// Ensure clients are not told why the bucket does not work: the reason may hold addresses of the house.
func TestKickOffTellsNothingOfTheBucketsInside(t *testing.T) {
	t.Parallel()
	_, upstream := newSample(t, fhirtest.Plain(), 1)
	s := startSidecar(t, upstream, func(c *config) {
		c.Bucket.Kind, c.Bucket.S3.Bucket, c.Bucket.S3.Region, c.Bucket.S3.Endpoint = "s3", "exports", "eu-central-1", "http://127.0.0.1:1"
		c.Bucket.S3.AccessKeyID, c.Bucket.S3.SecretAccessKey = "key", "secret"
	})
	got := ask(t, http.MethodGet, s.base+"/$export")
	checkOutcome(t, got, http.StatusServiceUnavailable, "transient")
	said := strings.ReplaceAll(got.body, got.header.Get(proxy.DefaultRequestIDHeader), "") // the id is by chance
	if strings.Contains(said, "127.0.0.1") || strings.Contains(said, "S3") || strings.Contains(said, "tested") {
		t.Errorf("the answer tells of the inside: %s", got.body)
	}
}
