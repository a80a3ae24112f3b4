package proxy_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// Ensure that a script may read our answers where it may read the upstream's, and nowhere else.
func TestScriptsMayReadOurAnswersWhereTheUpstreamLetsThem(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions && r.Header.Get("Origin") == "https://app.example" && r.Header.Get("Access-Control-Request-Method") != "" {
			w.Header().Set("Access-Control-Allow-Origin", "https://app.example")
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
	}))
	t.Cleanup(upstream.Close)
	h := newHouse(t, upstream.URL+"/fhir", nil)
	h.addJob(completed(), twoFiles)
	for name, test := range map[string]struct {
		path, origin string
		allowed      bool
	}{
		"manifest":     {"/$export-status/0b6a", "https://app.example", true},
		"refusal":      {"/$export-status/x", "https://app.example", true},
		"file":         {"/$export-file/0b6a/Patient.1.ndjson", "https://app.example", true},
		"attachment":   {"/$export-attachment/0b6a/x/Binary/1", "https://app.example", true},
		"kick-off":     {"/$export?x=1", "https://app.example", true},
		"other origin": {"/$export-status/0b6a", "https://evil.example", false},
		"no script":    {"/$export-status/0b6a", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var header []string
			if test.origin != "" {
				header = []string{"Origin", test.origin}
			}
			got := h.ask(http.MethodGet, h.base+test.path, header...).header
			for name, want := range map[string]string{
				"Access-Control-Allow-Origin":      "https://app.example",
				"Access-Control-Allow-Credentials": "true",
				"Access-Control-Expose-Headers":    "Content-Location, Expires, Preference-Applied, Retry-After, X-Export-Status, X-Progress",
				"Vary":                             "Origin",
			} {
				if !test.allowed {
					want = ""
				}
				if got.Get(name) != want {
					t.Errorf("%s: got %q, want %q", name, got.Get(name), want)
				}
			}
		})
	}
}

func TestScriptsDoNotMatterWhileTheUpstreamIsAway(t *testing.T) {
	h := newHouse(t, nobody+"/fhir", nil)
	h.addJob(completed(), twoFiles)
	got := h.ask(http.MethodGet, h.base+"/$export-status/0b6a", "Origin", "https://app.example")
	if got.status != http.StatusOK || got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("answer: got %d %q", got.status, got.header)
	}
}
