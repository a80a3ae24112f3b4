package exporter_test

import (
	"bytes"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sidecar/exporter"
	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// borrowing makes the engine of a bubble read with what clients lend, at each start anew.
func (b *bubble) borrowing(t *testing.T) {
	b.stop()
	before := b.edit
	b.edit = func(c *exporter.Config) {
		before(c)
		client, err := fhir.NewClient(fhir.Config{BaseURL: b.upstream, Transport: b.link, Credentials: fhir.NewLoans(nil)})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	}
	b.start()
}

// begin starts an export with the credentials of its client.
func (b *bubble) begin(token string) string {
	id := b.kickOff(system())
	b.Client.Lend(id, http.Header{"Authorization": {token}})
	return id
}

// waitsForToken waits until a job says that it waits for its client.
func (b *bubble) waitsForToken(t *testing.T, id string) {
	t.Helper()
	for range 3600 {
		if strings.Contains(b.Stage(id), "waiting for a token of its client") {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("the job does not wait for a token: %q", b.Stage(id))
}

// Ensure an export that reads as its client waits when the token has ended, and after a restart, goes on with the next one, and
// keeps none.
func TestExportAsItsClientWaitsForTokens(t *testing.T) {
	var good atomic.Value
	good.Store("Bearer first-token")
	fill := func(sample *fhirtest.Server) {
		thirtyRows(t)(sample)
		sample.Gate = func(r *http.Request) *fhirtest.Access {
			if r.Header.Get("Authorization") != good.Load() {
				return nil
			}
			return &fhirtest.Access{}
		}
	}
	inBubble(t, fhirtest.Plain(), smallPages, fill, func(t *testing.T, b *bubble) {
		b.borrowing(t)
		var pages atomic.Int64
		b.link.hook = func(r *http.Request) {
			if isRowPage(r) && pages.Add(1) == 2 {
				good.Store("Bearer second-token")
			}
		}
		id := b.begin("Bearer first-token")
		b.waitsForToken(t, id)
		time.Sleep(20 * time.Minute) // it has time
		b.Client.Lend(id, http.Header{"Authorization": {"Bearer first-token"}})
		b.Client.Lend(id, http.Header{"Authorization": {"Bearer wrong-token"}})
		time.Sleep(time.Minute)
		b.waitsForToken(t, id)
		b.resume(true)
		b.waitsForToken(t, id)
		b.noTokenIn(t)
		b.Client.Lend(id, http.Header{"Authorization": {"Bearer second-token"}})
		same(t, b.rows(b.finish(id)), b.snapshot())
		b.noTokenIn(t)
	})
}

// Ensure a client that does not come back ends its export with a failure that says so, and frees the slot.
func TestExportAsItsClientGivesUp(t *testing.T) {
	fill := func(sample *fhirtest.Server) {
		thirtyRows(t)(sample)
		sample.Gate = func(r *http.Request) *fhirtest.Access {
			if r.Header.Get("Authorization") != "Bearer good-token" {
				return nil
			}
			return &fhirtest.Access{}
		}
	}
	edit := func(c *exporter.Config) { smallPages(c); c.GiveUp = 10 * time.Minute }
	inBubble(t, fhirtest.Plain(), edit, fill, func(t *testing.T, b *bubble) {
		b.borrowing(t)
		job := b.finish(b.begin("Bearer old-token"))
		if job.Status != state.Failed || !strings.Contains(job.Failure.Text, "none of its client") || strings.Contains(job.Failure.Text, "token") {
			t.Errorf("%s: %+v", job.Status, job.Failure)
		}
		same(t, b.rows(b.finish(b.begin("Bearer good-token"))), b.snapshot())
	})
}

// noTokenIn looks for tokens in all files of the engine.
func (b *bubble) noTokenIn(t *testing.T) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(b.folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files++
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte("-token")) {
			t.Errorf("%s holds a token", filepath.Base(path))
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%v in %d files", err, files)
	}
}
