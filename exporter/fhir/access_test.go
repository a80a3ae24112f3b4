package fhir_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
)

// counted is a server without a network, which calls before ahead of each count; sidecar tells whose it is.
type counted struct {
	http.Handler
	before func(sidecar bool)
	counts int
}

const (
	sidecarAuth = "Basic sidecar"
	clientAuth  = "Bearer client"
)

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.RawQuery, "_summary=count") {
		c.counts++
		if c.before != nil {
			c.before(r.Header.Get("Authorization") == sidecarAuth)
		}
	}
	recorder := httptest.NewRecorder()
	c.ServeHTTP(recorder, r)
	return recorder.Result(), nil
}

// Ensure that rows which a server hides from a client are found, be they old or new and the server busy or not, and that
// writes between two counts are not taken for such rows.
func TestSeesAllTellsHiddenRowsFromWrites(t *testing.T) {
	for name, row := range map[string]struct {
		busy   bool
		hidden string
		other  string // what is hidden from the sidecar
		leaves bool   // a row is changed or gone at each count of the sidecar's
		status int    // of every count
		window int    // the status of counts with a window alone
		want   bool
		fails  bool
		own    int // the status of the sidecar's counts
	}{
		"the sidecar may not count":   {hidden: "old", own: 403, want: true},
		"the sidecar cannot now":      {hidden: "old", own: 503, fails: true},
		"quiet":                       {want: true},
		"busy":                        {busy: true, want: true},
		"hidden":                      {hidden: "old"},
		"hidden, busy":                {busy: true, hidden: "old"},
		"hidden from the sidecar":     {other: "old"},
		"rows leave":                  {leaves: true, want: true},
		"rows leave, one from it":     {leaves: true, other: "old"},
		"hidden, of this second":      {hidden: "new"},
		"hidden, no windows":          {hidden: "old", window: 400},
		"does not count":              {hidden: "old", status: 400, want: true},
		"cannot count now":            {status: 503, fails: true},
		"too many counts":             {status: 429, fails: true},
		"cannot count a window now":   {hidden: "old", window: 503, fails: true},
		"the client may not count":    {status: 403, fails: true},
		"does not count, not offered": {status: 501, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sample := fhirtest.New(fhirtest.Plain(), "/fhir")
				time.Sleep(300 * time.Millisecond) // into a second
				put := func(id string, at time.Time) {
					if err := sample.PutAt(fmt.Appendf(nil, `{"resourceType":"Patient","id":%q}`, id), at); err != nil {
						t.Error(err)
					}
				}
				put("old", time.Now().Add(-time.Hour))
				put("new", time.Now())
				for n := range 9 {
					put(fmt.Sprintf("l%d", n), time.Now().Add(-time.Minute))
				}
				sample.Gate = func(r *http.Request) *fhirtest.Access {
					if r.Header.Get("Authorization") == clientAuth {
						return &fhirtest.Access{Sees: func(_, id string) bool { return id != row.hidden }}
					}
					return &fhirtest.Access{Sees: func(_, id string) bool { return id != row.other }}
				}
				fault := func(status int, windows bool) {
					if status > 0 {
						sample.Fail(fhirtest.Fault{Times: -1, Status: status, Match: func(r *http.Request) bool {
							return strings.Contains(r.URL.RawQuery, "_summary=count") && (!windows || strings.Contains(r.URL.RawQuery, "_lastUpdated"))
						}})
					}
				}
				fault(row.status, false)
				fault(row.window, true)
				if row.own > 0 {
					sample.Fail(fhirtest.Fault{Times: -1, Status: row.own, Match: func(r *http.Request) bool {
						return r.Header.Get("Authorization") == sidecarAuth
					}})
				}
				server := &counted{Handler: sample}
				server.before = func(sidecar bool) {
					if row.busy && sidecar {
						put(fmt.Sprintf("w%d", server.counts), time.Now())
					}
					if row.leaves && sidecar {
						put(fmt.Sprintf("l%d", server.counts), time.Now())
					}
				}
				client, err := fhir.NewClient(fhir.Config{
					BaseURL: "http://upstream.invalid/fhir", Transport: server, Credentials: fhir.Static{"Authorization": {sidecarAuth}},
				})
				if err != nil {
					t.Fatal(err)
				}
				got, err := client.SeesAll(t.Context(), "Patient", http.Header{"Authorization": {clientAuth}})
				if (err != nil) != row.fails || err == nil && got != row.want {
					t.Errorf("got %t, %v, want %t", got, err, row.want)
				}
			})
		})
	}
}

// Ensure that nothing is counted where that would tell nothing.
func TestSeesAllCountsNothingInVain(t *testing.T) {
	for name, row := range map[string]struct {
		own, client http.Header
		profile     *fhir.Profile
	}{
		"nobody has credentials": {},
		"both have the same":     {own: http.Header{"X-Key": {"a"}}, client: http.Header{"X-Key": {"a"}}},
		"the server counts not":  {client: http.Header{"X-Key": {"a"}}, profile: &fhir.Profile{CountMethod: fhir.CountNone}},
	} {
		server := &counted{Handler: fhirtest.New(fhirtest.Plain(), "/fhir")}
		client, err := fhir.NewClient(fhir.Config{BaseURL: "http://upstream.invalid/fhir", Transport: server, Credentials: fhir.Static(row.own)})
		if err != nil {
			t.Fatal(err)
		}
		if row.profile != nil {
			client.Adopt(row.profile)
		}
		if got, err := client.SeesAll(t.Context(), "Patient", row.client); !got || err != nil || server.counts > 0 {
			t.Errorf("%s: got %t, %v with %d counts", name, got, err, server.counts)
		}
	}
}
