package proxy_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidecar/proxy"
	"sidecar/state"
)

// Ensure a link opens its own file of its own job until its second, and that nothing in it can be changed.
func TestLinkIsBoundToFileJobAndExpiry(t *testing.T) {
	h, _ := newFHIRHouse(t, nil)
	h.addJob(completed(), twoFiles)
	other := completed()
	other.ID, other.Folder = "other", "other"
	h.addJob(other, twoFiles)
	path := h.base + "/$export-file/0b6a/Patient.1.ndjson"
	signed := func(key []byte, job, name string, lives time.Duration) string {
		return proxy.SignLink(key, job, name, time.Now().Add(lives))
	}
	living := signed(linkKey, "0b6a", "Patient.1.ndjson", time.Minute)
	expires, mac, _ := strings.Cut(living, "&mac=")
	later := "expires=" + strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	for name, test := range map[string]struct {
		address string
		status  int
	}{
		"as it is":                {path + "?" + living, http.StatusOK},
		"parameters in turn":      {path + "?mac=" + mac + "&" + expires, http.StatusOK},
		"a parameter more":        {path + "?" + living + "&x=1", http.StatusOK},
		"dead":                    {path + "?" + signed(linkKey, "0b6a", "Patient.1.ndjson", -time.Second), http.StatusForbidden},
		"at its second":           {path + "?" + signed(linkKey, "0b6a", "Patient.1.ndjson", 0), http.StatusForbidden},
		"no signature":            {path, http.StatusForbidden},
		"no MAC":                  {path + "?" + expires, http.StatusForbidden},
		"an empty MAC":            {path + "?" + expires + "&mac=", http.StatusForbidden},
		"half a MAC":              {path + "?" + expires + "&mac=" + mac[:20], http.StatusForbidden},
		"no expiry":               {path + "?mac=" + mac, http.StatusForbidden},
		"a later expiry":          {path + "?" + later + "&mac=" + mac, http.StatusForbidden},
		"a later expiry in front": {path + "?" + later + "&" + living, http.StatusForbidden},
		"a plus in the expiry":    {path + "?expires=%2B" + strings.TrimPrefix(living, "expires="), http.StatusForbidden},
		"another file":            {h.base + "/$export-file/0b6a/Observation.1.ndjson?" + living, http.StatusForbidden},
		"another job":             {h.base + "/$export-file/other/Patient.1.ndjson?" + living, http.StatusForbidden},
		"another key":             {path + "?" + signed(make([]byte, 32), "0b6a", "Patient.1.ndjson", time.Minute), http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				got := h.ask(method, test.address)
				if got.status != test.status {
					t.Errorf("%s: got %d, want %d", method, got.status, test.status)
				}
				if test.status == http.StatusForbidden && method == http.MethodGet {
					checkOutcome(t, got, http.StatusForbidden, "forbidden")
					if !strings.Contains(got.body, "read the manifest again") {
						t.Errorf("answer: got %s", got.body)
					}
				}
			}
		})
	}
}

// checkExpires fails the test unless an answer expires a lifetime behind the moment at which it was asked for, or at the latest moment
// if that is earlier, in whole seconds.
func checkExpires(t *testing.T, got answer, asked time.Time, lifetime time.Duration, latest time.Time) time.Time {
	t.Helper()
	expires, err := http.ParseTime(got.header.Get("Expires"))
	if err != nil {
		t.Fatal(err)
	}
	from, to := asked.Add(lifetime), time.Now().Add(lifetime)
	if latest.Before(from) {
		from = latest
	}
	if latest.Before(to) {
		to = latest
	}
	if expires.Before(from.Truncate(time.Second)) || expires.After(to) {
		t.Errorf("Expires: got %s, want it from %s to %s", expires, from, to)
	}
	return expires
}

// Ensure links of the sidecar live as long as is configured, or as the export is kept, that Expires and requiresAccessToken say
// so in both shapes, and that a manifest differs from the one before it in nothing but its links.
func TestOwnLinksLiveAsLongAsExpiresSays(t *testing.T) {
	for _, test := range []struct {
		links    proxy.Links
		lifetime time.Duration
		shape    state.Shape
	}{
		{proxy.Signed, 5 * time.Minute, state.Shape3},
		{proxy.Signed, 10 * time.Hour, state.Shape4}, // the export is kept for an hour
		{proxy.Redirect, 5 * time.Minute, state.Shape3},
		{proxy.Stream, 5 * time.Minute, state.Shape4},
	} {
		t.Run(fmt.Sprint(test.links, test.lifetime), func(t *testing.T) {
			h, _ := newFHIRHouse(t, func(c *proxy.Config) { c.Links, c.LinkLifetime = test.links, test.lifetime })
			job := completed()
			job.Kickoff.Base, job.Kickoff.Shape = h.base, test.shape
			h.addJob(job, twoFiles)
			asked := time.Now()
			got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a")
			expires := checkExpires(t, got, asked, test.lifetime, job.Finished.Add(time.Hour))
			var manifest state.Manifest
			if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
				t.Fatal(err)
			}
			for _, file := range manifest.Output {
				link, err := url.Parse(file.URL)
				if err != nil || link.Query().Get("expires") != strconv.FormatInt(expires.Unix(), 10) {
					t.Errorf("link: got %s, Expires %d", file.URL, expires.Unix())
				}
				if got := h.ask(http.MethodGet, file.URL); got.status != http.StatusOK {
					t.Errorf("%s: got %d", file.URL, got.status)
				}
			}
			if len(manifest.Output) != 2 || !strings.Contains(got.body, `"requiresAccessToken":false`) {
				t.Errorf("manifest: got %s", got.body)
			}
		})
	}
}
