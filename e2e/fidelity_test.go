package e2e

import (
	"strings"
	"testing"

	"sidecar/proxy/fidelity"
)

// Ensure that nobody notices the sidecar as it is installed.
func TestSidecarPassesTheTableOfForwarding(t *testing.T) {
	fidelity.Run(t, fidelity.Subject{Open: func(t *testing.T, server string) string {
		base := startSidecar(t, "http://"+server+"/fhir", nil).base
		return strings.TrimSuffix(strings.TrimPrefix(base, "http://"), "/fhir")
	}})
}
