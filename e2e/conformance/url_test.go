package conformance_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"sidecar/e2e/conformance"
)

// TestConformance tests the server at CONFORMANCE_URL. CONFORMANCE_TOKEN is a bearer token for it, and CONFORMANCE_WRITE=yes
// lets the suite write and delete resources of type Basic there. The sidecar itself is tested one folder above.
func TestConformance(t *testing.T) {
	server := conformance.Server{
		Base:     strings.TrimRight(os.Getenv("CONFORMANCE_URL"), "/"),
		Writable: os.Getenv("CONFORMANCE_WRITE") == "yes",
	}
	if server.Base == "" {
		t.Log("CONFORMANCE_URL names no server")
		return
	}
	if token := os.Getenv("CONFORMANCE_TOKEN"); token != "" {
		server.Token = func(grant conformance.Grant) string {
			if grant == (conformance.Grant{}) {
				return token
			}
			return ""
		}
	}
	conformance.Run(t, server, nil, func(results []conformance.Result) { fmt.Print(conformance.Table(results)) })
}
