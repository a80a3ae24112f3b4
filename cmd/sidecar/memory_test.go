package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Ensure what docs/performance.md tells of was measured with what the image and the manifests run with.
func TestMemoryIsMeasuredAsItIsDeployed(t *testing.T) {
	setting := func(path, pattern string) string {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(top, path))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(pattern).FindSubmatch(raw)
		if found == nil {
			t.Fatalf("%s sets no %s", path, pattern)
		}
		return string(found[1])
	}
	percent := "GOGC=" + setting("Dockerfile", `(?m)^ENV GOGC=(\d+)$`)
	limit := "GOMEMLIMIT=" + setting("deploy/kubernetes/deployment.yaml", `- name: GOMEMLIMIT\n *value: (\S+)`)
	for path, want := range map[string]string{
		"bench/sidecar_test.go":  `"` + percent + `", "` + limit + `"`,
		"bench/proxy/servers.go": `"` + percent + `", "` + limit + `"`,
		"docs/performance.md":    percent + " " + limit,
		"docs/operations.md":     limit,
	} {
		raw, err := os.ReadFile(filepath.Join(top, path))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(raw), want) {
			t.Errorf("%s does not name %s", path, want)
		}
	}
}
