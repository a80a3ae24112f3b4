package main

import (
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/state"
)

// anySlowdown is the live_slowdown that takes no account of users.
const anySlowdown = 100

// validate finds all faults, a line each.
func (c *config) validate(found *faultList) {
	if c.Upstream == "" {
		found.add("upstream", " is missing: say -upstream http://my-fhir-server:8080/fhir")
	} else if _, err := fhir.ParseBase(c.Upstream); err != nil {
		found.add("upstream", ": %w", err)
	}
	if c.PublicURL != "" {
		if _, err := fhir.ParseBase(c.PublicURL); err != nil {
			found.add("public_url", ": %w", err)
		}
	}
	for _, hop := range c.TrustedProxies {
		if _, err := netip.ParsePrefix(hop); err != nil {
			found.add("trusted_proxies", ": %q is not a range of addresses such as 10.0.0.0/8; a single one is written 10.0.0.1/32", hop)
		}
	}
	for key, address := range map[string]string{"listen": c.Listen, "admin_listen": c.AdminListen} {
		if !isAddress(address) {
			found.add(key, " must be an address such as :8000 or 127.0.0.1:8000")
		}
	}
	if c.RequestIDHeader != "" && !requestIDName.MatchString(c.RequestIDHeader) {
		found.add("request_id_header", " must be a header's name that ends in ID, such as X-Request-ID")
	}
	if c.Data == "" {
		found.add("data", " is empty")
	}
	if token := string(c.AdminToken); token != "" && (len(token) < minAdminToken || strings.ContainsFunc(token, unicode.IsSpace)) {
		found.add("admin_token", " must have at least %d characters and no white space", minAdminToken)
	}
	if key := len(c.LinkKey); key > 0 && key < proxy.MinLinkKey {
		found.add("link_key", " must have at least %d characters", proxy.MinLinkKey)
	}
	c.Auth.validate(found)
	c.UpstreamAuth.validate(found)
	c.validateCrawlAs(found)
	c.UpstreamTLS.validate(found, c.Upstream)
	c.validateProtocol(found)
	c.TLS.validate(found)
	c.Audit.validate(found)
	c.validateNumbers(found)
	c.validateChoices(found)
	c.validateBucket(found)
}

// requestIDName are names of headers in which ids of requests are sent; a slip must not replace a header that means something.
var requestIDName = regexp.MustCompile(`^(?i)[a-z0-9-]*id$`)

// minAdminToken is the least length of a token that nobody guesses.
const minAdminToken = 16

// isAddress tells whether a port can be opened at the address, as far as its form goes.
func isAddress(address string) bool {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	number, err := strconv.Atoi(port)
	return err == nil && number >= 0 && number <= 65535
}

func (c *config) validateNumbers(found *faultList) {
	for _, number := range []struct {
		key         string
		value       int64
		least, most int64
	}{
		{"max_running", int64(c.MaxRunning), 1, 100},
		{"limits.requests_per_second", int64(c.Limits.RequestsPerSecond), 0, 100_000},
		{"limits.jobs_per_client", int64(c.Limits.JobsPerClient), 0, 1_000_000},
		{"limits.export_bytes", c.Limits.ExportBytes, 0, 1 << 60},
		{"workers", int64(c.Workers), 1, 64},
		{"page_size", int64(c.PageSize), 0, 10000},
		{"max_file_bytes", c.MaxFileBytes, 1 << 10, 2 << 30},
		{"manifest_page_rows", c.PageRows, 1, 1_000_000_000},
	} {
		if number.value < number.least || number.value > number.most {
			found.add(number.key, " must be from %d to %d", number.least, number.most)
		}
	}
	if !(c.LiveSlowdown >= 1.01 && c.LiveSlowdown <= anySlowdown) { // NaN is neither
		found.add("live_slowdown", " must be from 1.01 to 100")
	}
	for _, span := range []struct {
		key         string
		value       time.Duration
		least, most time.Duration
	}{
		{"settle", c.Settle, 0, time.Hour},
		{"auth.leeway", c.Auth.Leeway, 0, 5 * time.Minute},
		{"link_lifetime", c.LinkLifetime, time.Second, 7 * 24 * time.Hour},
		{"retention", c.Retention, time.Second, 365 * 24 * time.Hour},
		{"give_up", c.GiveUp, time.Second, 24 * time.Hour},
		{"shutdown_grace", c.ShutdownGrace, 0, time.Hour},
	} {
		if span.value < span.least || span.value > span.most {
			found.add(span.key, " must be from %s to %s", short(span.least), short(span.most))
		}
	}
}

// short writes a time without its zeros: 24h, not 24h0m0s.
func short(span time.Duration) string {
	if span > 0 && span%time.Hour == 0 {
		return strconv.Itoa(int(span/time.Hour)) + "h"
	}
	return span.String()
}

func (c *config) validateChoices(found *faultList) {
	if _, err := exporter.ParseHours(c.QuietHours); err != nil {
		found.add("quiet_hours", ": %w", err)
	}
	if !slices.Contains(exporter.Strategies(), c.Strategy) {
		found.add("strategy", " must be one of %s", strings.Join(exporter.Strategies(), ", "))
	}
	if _, err := parseLevel(c.LogLevel); err != nil {
		found.add("log_level", " must be debug, info, warn or error")
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		found.add("log_format", " must be text or json")
	}
	if c.Manifest != state.Shape3 && c.Manifest != state.Shape4 {
		found.add("manifest", ` must be "3.0" or "4.0"`)
	}
	switch c.Links {
	case proxy.Signed, proxy.Redirect, proxy.Stream:
	default:
		found.add("links", " must be signed, redirect or stream")
	}
	if c.Attachments != exporter.SignedAttachments && c.Attachments != exporter.ServerAttachments {
		found.add("attachments", " must be signed or server")
	}
	switch c.WithoutHistory {
	case exporter.IncludeCurrent, exporter.OmitChanged, exporter.Strict:
	default:
		found.add("without_history", " must be include, omit or strict")
	}
}

func (c *config) validateBucket(found *faultList) {
	b := &c.Bucket
	if prefix := strings.Trim(b.Prefix, "/"); prefix != "" {
		if err := blob.ValidateName(prefix); err != nil {
			found.add("bucket.prefix", ": %w", err)
		}
	}
	switch b.Kind {
	case "folder":
	case "s3":
		if b.S3.Bucket == "" {
			found.add("bucket.s3.bucket", " is missing")
		}
		if (b.S3.AccessKeyID == "") != (b.S3.SecretAccessKey == "") {
			found.add("bucket.s3", " needs both access_key_id and secret_access_key, or neither for the SDK's own chain")
		}
		if b.S3.SSE != "" && b.S3.SSE != "AES256" && b.S3.SSE != "aws:kms" {
			found.add("bucket.s3.sse", " must be AES256 or aws:kms, or empty")
		}
		if b.S3.KMSKey != "" && b.S3.SSE != "aws:kms" {
			found.add("bucket.s3.kms_key", " needs sse: aws:kms")
		}
		if b.S3.Endpoint != "" {
			if u, err := url.Parse(b.S3.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
				found.add("bucket.s3.endpoint", " must be an address such as http://minio:9000")
			}
		}
	case "gcs":
		if b.GCS.Bucket == "" {
			found.add("bucket.gcs.bucket", " is missing")
		}
		if (b.GCS.ServiceAccountEmail == "") != (b.GCS.PrivateKey == "") {
			found.add("bucket.gcs", " needs both service_account_email and private_key, or neither")
		}
		if b.GCS.CredentialsFile != "" && b.GCS.PrivateKey != "" {
			found.add("bucket.gcs", " takes credentials_file or private_key, not both")
		}
	default:
		found.add("bucket.kind", " must be folder, s3 or gcs")
	}
}
