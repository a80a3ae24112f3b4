package proxy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"sidecar/proxy"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// Ensure files that do not lie in a store need their client's token where the export does and the operator wants files to pass
// through the sidecar, that the manifest says so, and that who has none is asked for one.
func TestFilesNeedTheTokenOfTheirClient(t *testing.T) {
	tokens := map[string]map[string]int{
		"jwt":      {"": 401, "Bearer": 401, "Bearer nobody": 401, "Bearer other": 404, "Bearer narrow": 403, "Bearer right": 200},
		"upstream": {"": 401, "Bearer": 401, bearer("client-1", "forged"): 401, bearer("client-2", "right"): 404, bearer("client-1", "narrow"): 403, bearer("client-1", "right"): 200},
		"none":     {"": 200},
	}
	modes := map[string]func(*proxy.Config){"jwt": judged, "upstream": nil, "none": func(c *proxy.Config) { c.AuthMode = auth.None }}
	right := map[string]string{"jwt": "Bearer right", "upstream": bearer("client-1", "right")}
	for mode, edit := range modes {
		for _, links := range []proxy.Links{proxy.Signed, proxy.Redirect, proxy.Stream} {
			t.Run(mode+" "+string(links), func(t *testing.T) {
				h := owned(t, func(c *proxy.Config) {
					if c.Links = links; edit != nil {
						edit(c)
					}
				})
				got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a", "Authorization", right[mode])
				var manifest state.Manifest
				if err := json.Unmarshal([]byte(got.body), &manifest); err != nil || len(manifest.Output) != 2 {
					t.Fatalf("manifest: got %d %s, %v", got.status, got.body, err)
				}
				address := strings.Replace(manifest.Output[1].URL, "https://fhir.example.org/api/fhir", h.base, 1)
				needed := mode != "none" && links != proxy.Signed
				if manifest.RequiresAccessToken != needed || strings.Contains(address, "mac=") == needed {
					t.Errorf("requiresAccessToken: got %t for %s", manifest.RequiresAccessToken, address)
				}
				if !needed {
					if got := h.ask(http.MethodGet, address); got.status != http.StatusOK || got.body != twoFiles["Patient"] {
						t.Errorf("without a token: got %d %s", got.status, got.body)
					}
					return
				}
				if at, err := http.ParseTime(got.header.Get("Expires")); err != nil || time.Until(at) < 58*time.Minute {
					t.Errorf("Expires: got %s, want the end of the export", got.header.Get("Expires"))
				}
				for token, status := range tokens[mode] {
					for _, method := range []string{http.MethodGet, http.MethodHead} {
						got := h.ask(method, address, "Authorization", token)
						if got.status != status || (status == http.StatusUnauthorized) != (got.header.Get("WWW-Authenticate") != "") {
							t.Errorf("%s with %.20q: got %d %q, want %d", method, token, got.status, got.header, status)
						}
					}
				}
			})
		}
	}
}

// Ensure attachments have links of the export only where its client may read every Binary and its files need no token.
func TestAttachmentsFollowTheRightToBinary(t *testing.T) {
	scopes := identities{
		"all": {ID: "c", Scopes: auth.ParseScopes("system/*.rs")}, "patients": {ID: "c", Scopes: auth.ParseScopes("system/Patient.rs")},
		"both": {ID: "c", Scopes: auth.ParseScopes("system/Patient.rs system/Binary.rs")},
	}
	jwt := func(links proxy.Links) func(*proxy.Config) {
		return func(c *proxy.Config) { c.AuthMode, c.Auth, c.Links = auth.JWT, scopes, links }
	}
	streamed := func(c *proxy.Config) { asSidecar(t)(c); c.Links = proxy.Stream }
	withheld := func(c *proxy.Config) { asSidecar(t)(c); c.TypesOf = allTypes }
	for name, test := range map[string]struct {
		edit   func(*proxy.Config)
		token  string
		server bool
	}{
		"all scopes":              {jwt(proxy.Signed), "Bearer all", false},
		"scopes without Binary":   {jwt(proxy.Signed), "Bearer patients", true},
		"scopes with Binary":      {jwt(proxy.Signed), "Bearer both", false},
		"files that need a token": {jwt(proxy.Stream), "Bearer all", true},
		"server that allows":      {asSidecar(t), bearer("c", "right"), false},
		"server that forbids":     {asSidecar(t), bearer("c", "narrow"), true},
		"server that withholds":   {withheld, bearer("c", "narrow"), true},
		"no token":                {asSidecar(t), "", false},
		"streamed with a token":   {streamed, bearer("c", "right"), true},
		"streamed without":        {streamed, "", false},
		"nobody judges":           {func(c *proxy.Config) { c.AuthMode, c.Links = auth.None, proxy.Stream }, "Bearer x", false},
	} {
		t.Run(name, func(t *testing.T) {
			h, sample := newFHIRHouse(t, test.edit)
			sample.Gate = gate
			h.accepting()
			target := "/Patient/$export?_type=Patient"
			if name == "server that withholds" { // only what is not named is left out
				target = "/Patient/$export"
			}
			got := h.ask(http.MethodGet, h.base+target, "Authorization", test.token)
			if got.status != http.StatusAccepted {
				t.Fatalf("kick-off: got %d %s", got.status, got.body)
			}
			if kickoff := h.exports.asked[0]; kickoff.ServerAttachments != test.server {
				t.Errorf("attachments at the server: got %t, want %t", kickoff.ServerAttachments, test.server)
			}
		})
	}
}
