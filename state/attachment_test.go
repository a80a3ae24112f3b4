package state_test

import (
	"strings"
	"testing"

	"sidecar/state"
)

// opened splits an address as the proxy's route does, and tells whether the job opens it.
func opened(t *testing.T, job *state.Job, address string) bool {
	t.Helper()
	rest, ok := strings.CutPrefix(address, "http://public/fhir/$export-attachment/job/")
	mac, path, found := strings.Cut(rest, "/")
	if !ok || !found {
		t.Fatalf("not an address of an attachment: %q", address)
	}
	return job.OpensAttachment(mac, path)
}

// Ensure a link opens its own Binary at its own job, and nothing else.
func TestAttachmentAddressOpensOneBinaryOfOneJob(t *testing.T) {
	job := &state.Job{ID: "job", Kickoff: state.Kickoff{Base: "http://public/fhir"}, AttachmentKey: state.NewAttachmentKey()}
	other := *job
	other.AttachmentKey = state.NewAttachmentKey()
	renamed := *job
	renamed.ID = "other"
	keyless := *job
	keyless.AttachmentKey = nil
	for _, path := range []string{"Binary/1", "Binary/a-B.c_d", "Binary/1/_history/2"} {
		address, ok := job.AttachmentAddress(path)
		again, _ := job.AttachmentAddress(path)
		if !ok || address != again || !strings.HasSuffix(address, "/"+path) || !opened(t, job, address) {
			t.Errorf("%s: got %q, then %q, %v", path, address, again, ok)
			continue
		}
		longer := strings.Replace(address, "/Binary/", "A/Binary/", 1)
		for name, opens := range map[string]bool{
			"a Binary beside":  opened(t, job, address+"0"),
			"another job":      opened(t, &other, address),
			"another id":       opened(t, &renamed, address),
			"a job without":    opened(t, &keyless, address),
			"a longer mac":     opened(t, job, longer),
			"no mac":           job.OpensAttachment("", path),
			"mac not a base64": job.OpensAttachment("%", path),
		} {
			if opens {
				t.Errorf("%s opens with %s", path, name)
			}
		}
		if address, ok := keyless.AttachmentAddress(path); ok {
			t.Errorf("a job without a key gives %q", address)
		}
	}
	for _, path := range []string{
		"", "Binary", "Binary/", "Binary/.", "Binary/..", "Binary/../Patient/1", "Binary/1/..", "Binary/_search", "Binary/_history", "Binary/$op", "Binary/1/$op",
		"Binary/1/_history", "Binary/1/_history/", "Binary/1/_history/..", "Binary/1/", "Binary/1?a", "Binary/1#a", "Binary/1\n", "Binary/%2e%2e", "/Binary/1",
		"Patient/1", "Patient/Binary/1", "binary/1", "http://h/Binary/1",
	} {
		if address, ok := job.AttachmentAddress(path); ok {
			t.Errorf("%q is signed: %q", path, address)
		}
	}
}
