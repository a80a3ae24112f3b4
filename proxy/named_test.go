package proxy_test

import (
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/exporter/fhir/fhirtest"
	"sidecar/proxy"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// Ensure that a kick-off for a Group or a Patient that is not there is refused at once also where the server does not judge
// clients, that it is asked with the sidecar's own credentials, and that a Group which a client may not export is not told
// to exist or not.
func TestKickoffLooksForWhatItNames(t *testing.T) {
	for _, mode := range []auth.Mode{auth.JWT, auth.None} {
		h, sample := newFHIRHouse(t, func(c *proxy.Config) {
			asSidecar(t)(c)
			judged(c)
			c.GroupRules = map[string]proxy.GroupRule{"client-1": {Deny: []string{"forbidden-group"}}, proxy.AnyClient: {Deny: []string{"forbidden-group"}}}
			if c.AuthMode = mode; mode == auth.None {
				c.Auth = nil
			}
		})
		sample.Gate = func(r *http.Request) *fhirtest.Access {
			if r.URL.Path != "/fhir/metadata" && r.Header.Get("Authorization") != "Basic sidecar" {
				t.Errorf("%s: %s is asked as %q", mode, r.URL.Path, r.Header.Get("Authorization"))
			}
			if strings.HasSuffix(r.URL.Path, "/secret-group") {
				return nil
			}
			return &fhirtest.Access{}
		}
		h.accepting()
		for target, status := range map[string]int{
			"/Group/demo-group/$export":                         202,
			"/Group/no-group/$export":                           404,
			"/Group/forbidden-group/$export":                    403,
			"/Group/secret-group/$export":                       403, // the sidecar itself may not
			"/Patient/$export?patient=Patient/pat-00001":        202,
			"/Patient/$export?patient=Patient/nobody":           404,
			"/Group/demo-group/$export?patient=Patient/nobody":  404,
			"/Group/demo-group/$export?_type=Patient,Condition": 202,
		} {
			target, list, _ := strings.Cut(target, "?patient=")
			got := h.ask(http.MethodGet, h.base+target, "Authorization", "Bearer right")
			if list != "" {
				got = h.send(http.MethodPost, h.base+target, posted(`{"name":"patient","valueReference":{"reference":"`+list+`"}}`),
					"Authorization", "Bearer right", "Content-Type", "application/fhir+json")
			}
			if got.status != status || got.header.Get("WWW-Authenticate") != "" {
				t.Errorf("%s: %s %s: got %d, want %d: %s", mode, target, list, got.status, status, got.body)
			}
		}
	}
}

// Ensure that a Group is looked for as the client where exports are read as clients.
func TestKickoffLooksAsWhoReads(t *testing.T) {
	h, sample := newFHIRHouse(t, func(c *proxy.Config) {
		judged(c)
		client, err := fhir.NewClient(fhir.Config{BaseURL: c.Upstream.String(), Credentials: fhir.NewLoans(nil)})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	})
	sample.Gate = func(r *http.Request) *fhirtest.Access {
		if r.URL.Path != "/fhir/metadata" && r.Header.Get("Authorization") != "Bearer right" {
			return nil
		}
		return &fhirtest.Access{}
	}
	h.accepting().checkKickoff("/Group/demo-group/$export", "Bearer right", want{202, ""})
	h.checkKickoff("/Group/no-group/$export", "Bearer right", want{404, ""})
	h.checkKickoff("/Group/demo-group/$export", "Bearer other", want{401, ""}) // the server does not know this one
}

// Ensure that an export which was begun without credentials is read without any, whoever asks for it with some: those of another
// would show its client more.
func TestNobodyLendsToAnExportWithoutCredentials(t *testing.T) {
	loans := fhir.NewLoans(nil)
	h, _ := newFHIRHouse(t, func(c *proxy.Config) {
		client, err := fhir.NewClient(fhir.Config{BaseURL: c.Upstream.String(), Credentials: loans})
		if err != nil {
			t.Fatal(err)
		}
		c.Client = client
	})
	for id, want := range map[string]string{"open": "", "guarded": "Bearer x"} {
		job := completed()
		job.ID, job.Folder, job.Status, job.Kickoff.Guarded = id, id, state.InProgress, want != ""
		h.addJob(job, nil)
		if got := h.ask(http.MethodGet, h.base+"/$export-status/"+id, "Authorization", "Bearer x"); got.status != http.StatusAccepted {
			t.Fatalf("%s: got %d %s", id, got.status, got.body)
		}
		header, err := loans.Header(fhir.OfJob(t.Context(), id))
		if got := header.Get("Authorization"); err != nil || got != want {
			t.Errorf("%s is read with %q, want %q: %v", id, got, want, err)
		}
	}
}
