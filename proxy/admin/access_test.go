package admin_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"sidecar/proxy/admin"
)

const token = "a-token-of-operators"

// Ensure that only callers on the same machine and those with the token see more than health and metrics.
func TestAccess(t *testing.T) {
	for _, test := range []struct {
		name, peer, host string
		header           map[string]string
		token            string
		admitted         bool
	}{
		{name: "loopback", peer: "127.0.0.1:5000", host: "127.0.0.1:8001", token: token, admitted: true},
		{name: "loopback without a token in the configuration", peer: "127.0.0.1:5000", host: "localhost:8001", admitted: true},
		{name: "loopback of IPv6", peer: "[::1]:5000", host: "[::1]:8001", admitted: true},
		{name: "loopback of IPv4 within IPv6", peer: "[::ffff:127.0.0.1]:5000", host: "localhost", admitted: true},
		{name: "another machine", peer: "10.0.0.7:5000", host: "sidecar:8001", token: token},
		{name: "another machine, no token in the configuration", peer: "10.0.0.7:5000", host: "sidecar:8001", header: map[string]string{"Authorization": "Bearer "}},
		{name: "another machine that claims to be none", peer: "10.0.0.7:5000", host: "localhost:8001", header: map[string]string{"X-Forwarded-For": "127.0.0.1"}},
		{name: "the token", peer: "10.0.0.7:5000", host: "sidecar:8001", header: map[string]string{"Authorization": "Bearer " + token}, token: token, admitted: true},
		{name: "the token, in small letters", peer: "10.0.0.7:5000", host: "sidecar:8001", header: map[string]string{"Authorization": "bearer  " + token}, token: token, admitted: true},
		{name: "a wrong token", peer: "10.0.0.7:5000", host: "sidecar:8001", header: map[string]string{"Authorization": "Bearer " + token + "x"}, token: token},
		{name: "the token as a password", peer: "10.0.0.7:5000", host: "sidecar:8001", header: map[string]string{"Authorization": "Basic " + token}, token: token},
		{name: "a proxy on this machine", peer: "127.0.0.1:5000", host: "localhost:8001", header: map[string]string{"X-Forwarded-For": "10.0.0.7"}},
		{name: "another proxy on this machine", peer: "127.0.0.1:5000", host: "localhost:8001", header: map[string]string{"Forwarded": "for=10.0.0.7"}},
		{name: "a page in a browser on this machine", peer: "127.0.0.1:5000", host: "evil.example:8001"},
		{name: "no address", peer: "@", host: "localhost"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := admin.New(admin.Config{Metrics: prometheus.NewRegistry(), Server: asked{}, Exports: stored{}, Work: idle{}, Token: test.token})
			for path, open := range map[string]bool{"/livez": true, "/metrics": true, "/profile": false, "/jobs": false, "/jobs/" + jobID: false} {
				request := httptest.NewRequest(http.MethodGet, "http://"+test.host+path, nil)
				request.RemoteAddr = test.peer
				for name, value := range test.header {
					request.Header.Set(name, value)
				}
				got := httptest.NewRecorder()
				a.ServeHTTP(got, request)
				want := http.StatusOK
				if !open && !test.admitted {
					want = http.StatusUnauthorized
				}
				if got.Code != want {
					t.Errorf("%s: got %d, want %d", path, got.Code, want)
				}
				if refused := got.Code == http.StatusUnauthorized; refused && (got.Header().Get("WWW-Authenticate") == "" || strings.Contains(got.Body.String(), jobID)) {
					t.Errorf("%s: the refusal is %v %s", path, got.Header(), got.Body)
				}
			}
		})
	}
}
