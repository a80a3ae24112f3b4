package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

// thrower is a transport, or the body of its answer, that panics with what nobody may read.
type thrower struct{ body bool }

func (p thrower) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.body {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, ContentLength: -1, Body: io.NopCloser(p), Request: r}, nil
	}
	panic("k4n4ri")
}

func (thrower) Read([]byte) (int, error) { panic("k4n4ri") }

// throwsOfGroups is a transport that panics only when it is to read a Group.
type throwsOfGroups struct{ thrower }

func (p throwsOfGroups) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/Group/") {
		return p.thrower.RoundTrip(r)
	}
	return http.DefaultTransport.RoundTrip(r)
}

// Ensure a panic is answered where that is possible, cuts the client off where it is not, is counted, and that its line in the log
// says where it was and not what it was about.
func TestPanicIsTold(t *testing.T) {
	for name, test := range map[string]struct {
		path, route, at string
		transport       http.RoundTripper
		status          int // 0 for none
	}{
		"transport": {"/Patient?name=k4n4ri", "search", "thrower.RoundTrip", thrower{}, http.StatusInternalServerError},
		"metadata":  {"/metadata?k4n4ri", "metadata", "thrower.RoundTrip", thrower{}, http.StatusInternalServerError},
		"body":      {"/Patient/k4n4ri", "read", "thrower.Read", thrower{body: true}, 0},
		"question":  {"/Group/k4n4ri/$export", "kick-off", "thrower.RoundTrip", nil, http.StatusInternalServerError},
		"our route": {"/$export?_since=2020-01-01T00:00:00Z", "kick-off", "TestPanicIsTold", nil, http.StatusInternalServerError},
	} {
		t.Run(name, func(t *testing.T) {
			metrics, lines := proxy.NewMetrics(), &logLines{}
			h, _ := newFHIRHouse(t, func(c *proxy.Config) {
				c.Metrics, c.Log, c.AccessLog, c.Transport = metrics, lines.logger(), true, test.transport
				if c.TypesOf = allTypes; name == "our route" {
					c.TypesOf = func(state.Level, *fhir.CapabilityStatement) ([]string, []string, error) { panic("k4n4ri") }
				}
				client, err := fhir.NewClient(fhir.Config{BaseURL: c.Upstream.String(), Transport: throwsOfGroups{}})
				if err != nil {
					t.Fatal(err)
				}
				c.Client = client
			})
			response, err := http.DefaultTransport.RoundTrip(h.request(http.MethodGet, h.base+test.path, ""))
			var got answer
			if err == nil {
				var body []byte
				body, err = io.ReadAll(response.Body)
				response.Body.Close()
				got = answer{response.StatusCode, response.Header, string(body)}
			}
			if test.status == 0 && err == nil {
				t.Errorf("the client takes a part for the whole: %v", got)
			} else if test.status != 0 {
				checkOutcome(t, got, test.status, "exception")
			}
			lines.mu.Lock()
			said := lines.text.String()
			lines.mu.Unlock()
			if strings.Contains(said+got.body, "k4n4ri") || strings.Count(said, test.at) == 0 || !strings.Contains(said, `"level":"ERROR"`) {
				t.Errorf("want %s in the log, and nothing of what was asked:\n%s", test.at, said)
			}
			logged := lines.take(t, "request ended by a panic")
			if len(logged) != 1 || logged[0].Route != test.route || logged[0].Request == "" || test.status != 0 && logged[0].Request != got.header.Get(proxy.DefaultRequestIDHeader) {
				t.Errorf("log: %+v", logged)
			}
			if counted := counters(t, metrics)["sidecar_proxy_panics_total"]; counted != 1 {
				t.Errorf("counted %g", counted)
			}
		})
	}
}
