package main

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// otlpVariable begins the names of the variables for the way to the collector; those for traces alone have otlpTraces behind it.
const (
	otlpVariable = "OTEL_EXPORTER_OTLP_"
	otlpTraces   = "TRACES_"
)

// unreadable names the variables whose values OpenTelemetry cannot read. It goes on without them, and what it says of them holds
// the values.
func unreadable(lookup func(string) (string, bool)) (names []string) {
	value := func(name string) string {
		set, _ := lookup(name)
		return strings.TrimSpace(set)
	}
	look := func(name string, readable func(string) bool) {
		if set := value(name); set != "" && !readable(set) {
			names = append(names, name)
		}
	}
	for _, of := range []string{otlpVariable, otlpVariable + otlpTraces} {
		look(of+"ENDPOINT", isCollector)
		look(of+"HEADERS", areHeaders)
		look(of+"CERTIFICATE", isCertificate)
		look(of+"TIMEOUT", func(set string) bool { _, err := strconv.Atoi(set); return err == nil })
		pair := func(string) bool {
			_, err := tls.LoadX509KeyPair(value(of+"CLIENT_CERTIFICATE"), value(of+"CLIENT_KEY"))
			return err == nil
		}
		look(of+"CLIENT_CERTIFICATE", pair)
		look(of+"CLIENT_KEY", pair)
	}
	look("OTEL_TRACES_SAMPLER", func(set string) bool {
		switch strings.ToLower(set) {
		case "always_on", "always_off", "parentbased_always_on", "parentbased_always_off":
			return true
		case "traceidratio", "parentbased_traceidratio":
			look("OTEL_TRACES_SAMPLER_ARG", func(set string) bool {
				ratio, err := strconv.ParseFloat(set, 64)
				return err == nil && ratio >= 0 && ratio <= 1
			})
			return true
		}
		return false
	})
	return names
}

// isCollector tells whether a value is the address of a collector.
func isCollector(set string) bool {
	u, err := url.Parse(set)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}

// areHeaders tells whether a value has the form name=value,name=value.
func areHeaders(set string) bool {
	for pair := range strings.SplitSeq(set, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, found := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(value); !found || err != nil || !httpguts.ValidHeaderFieldName(strings.TrimSpace(name)) {
			return false
		}
	}
	return true
}

// isCertificate tells whether a file has certificates.
func isCertificate(path string) bool {
	content, err := os.ReadFile(path)
	return err == nil && x509.NewCertPool().AppendCertsFromPEM(content)
}
