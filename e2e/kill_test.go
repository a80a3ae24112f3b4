package e2e

import (
	"net/http"
	"testing"
	"time"
)

// killTimeout bounds the way to one moment.
const killTimeout = 3 * time.Minute

// Ensure that a sidecar that is killed at any moment of an export, as often as one likes, goes on with the next start,
// and that the result is the undisturbed one.
func TestKilledExportEqualsTheUndisturbedOne(t *testing.T) {
	server := hapi(t)
	upstream := startGate(t, server.base)
	bucket := startS3(t)
	store := startGate(t, bucket.Endpoint)
	// Small pages and files, so that there is much to interrupt.
	config := settings{
		"page_size": 100, "max_file_bytes": 256 << 10,
		"bucket": settings{"kind": "s3", "s3": settings{
			"bucket": bucket.Bucket, "region": bucket.Region, "endpoint": store.base, "path_style": true,
			"access_key_id": bucket.AccessKeyID, "secret_access_key": bucket.SecretAccessKey,
		}},
	}
	want := startSidecar(t, upstream.base, config).export(t, "$export")

	s := newSidecar(t, upstream.base, config)
	s.start(t)
	s.awaitReady(t)
	moments := []struct {
		name  string
		gate  *gate
		match func(*http.Request) bool
		n     int
		when  moment
	}{
		{"a page", upstream, isPage, 3, before},
		{"a page", upstream, isPage, 4, halfBody},
		{"a page", upstream, isPage, 9, after},
		{"a Put", store, isPut, 2, halfBody},
		{"a page", upstream, isPage, 7, halfBody},
		{"a page", upstream, isPage, 1, before},
		{"a page", upstream, isPage, 12, after},
		{"a Put", store, isPut, 1, after},
		{"a page", upstream, isPage, 5, halfBody},
		{"the sealing", store, isManifestPut, 1, before},
		{"the sealing", store, isManifestPut, 1, after},
	}
	statusURL := ""
	for i, m := range moments {
		killed := make(chan struct{})
		m.gate.arm(m.match, m.n, m.when, func() {
			s.kill(t)
			close(killed)
		})
		if i == 0 {
			statusURL = s.kickOff(t, "$export")
		} else {
			s.start(t)
		}
		select {
		case <-killed:
			t.Logf("kill %d: %s request %d of %s", i+1, m.when, m.n, m.name)
		case <-time.After(killTimeout):
			t.Fatalf("kill %d: %s request %d of %s never came", i+1, m.when, m.n, m.name)
		}
	}
	s.start(t)
	s.awaitReady(t)
	got := &exported{statusURL: statusURL, manifest: s.await(t, statusURL)}
	got.rows = download(t, got.manifest)
	equalRows(t, got.rows, want.rows)
	equalSets(t, got.rows, server.data.system())
}
