package main

import (
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Ensure each variable that OpenTelemetry cannot read is named, and none that it can.
func TestUnreadableVariablesAreNamed(t *testing.T) {
	t.Parallel()
	const absent = "/nowhere/at/all.pem"
	for _, test := range []struct {
		name, value string
		readable    bool
	}{
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318", true},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", " ", true}, // as if it were not set
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", false},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:%zz", false},
		{"OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20x, X-Key=a=b,", true},
		{"OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer x", false},
		{"OTEL_EXPORTER_OTLP_HEADERS", "Authorization=%zz", false},
		{"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b,X Key=c", false},
		{"OTEL_EXPORTER_OTLP_CERTIFICATE", absent, false},
		{"OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", absent, false},
		{"OTEL_EXPORTER_OTLP_CLIENT_KEY", absent, false},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", false},
		{"OTEL_TRACES_SAMPLER", "parentbased_traceidratio", true},
		{"OTEL_TRACES_SAMPLER", "sometimes", false},
	} {
		lookup := func(name string) (string, bool) {
			if name == test.name {
				return test.value, true
			}
			return "", false
		}
		var want []string
		if !test.readable {
			want = []string{test.name}
		}
		if got := unreadable(lookup); !slices.Equal(got, want) {
			t.Errorf("%s=%s: got %q, want %q", test.name, test.value, got, want)
		}
	}
	ratio := func(name string) (string, bool) {
		return map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1.5"}[name], true
	}
	if got := unreadable(ratio); !slices.Equal(got, []string{"OTEL_TRACES_SAMPLER_ARG"}) {
		t.Errorf("ratio: got %q", got)
	}
}

// Ensure no value of the environment gets to standard error, whatever OpenTelemetry makes of it: another process shows what comes.
func TestEnvironmentIsNotToldOf(t *testing.T) {
	const child = "SIDECAR_TEST_TRACES_CHILD"
	if os.Getenv(child) != "" {
		sent, err := openTraces(t.Context(), os.LookupEnv, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			t.Fatal(err)
		}
		sent.close(t.Context())
		return
	}
	t.Parallel()
	unfit := []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://k4n4ri:%zz", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=k4n4ri:4317", "OTEL_EXPORTER_OTLP_HEADERS=Authorization: Bearer k4n4ri", "OTEL_EXPORTER_OTLP_CERTIFICATE=/k4n4ri.pem",
		"OTEL_EXPORTER_OTLP_TIMEOUT=k4n4ri", "OTEL_EXPORTER_OTLP_TRACES_HEADERS=x=%zzk4n4ri", "OTEL_TRACES_SAMPLER=k4n4ri",
	}
	for _, protocol := range []string{overHTTP, overGRPC} {
		command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEnvironmentIsNotToldOf$")
		command.Env = append(append(os.Environ(), child+"=1", "OTEL_EXPORTER_OTLP_PROTOCOL="+protocol, "OTEL_TRACES_EXPORTER=otlp", "OTEL_RESOURCE_ATTRIBUTES=k4n4ri,a=%zzk4n4ri"), unfit...)
		var said strings.Builder
		command.Stderr = &said
		if err := command.Run(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		if strings.Contains(said.String(), "k4n4ri") {
			t.Errorf("a value was told of:\n%s", said.String())
		}
		if strings.Count(said.String(), "traces are sent without") != 1 {
			t.Errorf("want one warning:\n%s", said.String())
		}
		for _, variable := range unfit {
			if name, _, _ := strings.Cut(variable, "="); !strings.Contains(said.String(), name) {
				t.Errorf("%s is not named:\n%s", name, said.String())
			}
		}
	}
}
