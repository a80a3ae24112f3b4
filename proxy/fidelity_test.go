package proxy_test

import (
	"strings"
	"testing"

	"sidecar/proxy/fidelity"
)

// Ensure that nobody notices the proxy.
func TestForwardIsNotNoticed(t *testing.T) {
	fidelity.Run(t, fidelity.Subject{Open: func(t *testing.T, server string) string {
		h := newHouse(t, "http://"+server+"/fhir", nil)
		return strings.TrimPrefix(h.url, "http://")
	}})
}
