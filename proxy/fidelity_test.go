package proxy_test

import (
	"net/http/httptest"
	"testing"

	"sidecar/proxy/fidelity"
)

// Ensure that nobody notices the proxy.
func TestForwardIsNotNoticed(t *testing.T) {
	fidelity.Run(t, fidelity.Subject{Open: func(t *testing.T, server string) string {
		h := newHouse(t, "http://"+server+"/fhir", nil)
		front := httptest.NewUnstartedServer(h.handler)
		front.Config.DisableGeneralOptionsHandler = true // as the sidecar has it
		front.Start()
		t.Cleanup(front.Close)
		return front.Listener.Addr().String()
	}})
}
