package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy/auth"
	"sidecar/state"
)

// checkTimeout bounds the whole of `sidecar check`.
const checkTimeout = 2 * time.Minute

// errCheck ends `sidecar check` with status 1; the lines say why.
var errCheck = errors.New("the check found faults")

// report prints one line a finding.
type report struct {
	out    io.Writer
	failed bool
}

func (r *report) ok(format string, args ...any) { fmt.Fprintf(r.out, "ok    "+format+"\n", args...) }

func (r *report) note(format string, args ...any) { fmt.Fprintf(r.out, "note  "+format+"\n", args...) }

func (r *report) fault(format string, args ...any) {
	r.failed = true
	fmt.Fprintf(r.out, "FAULT "+format+"\n", args...)
}

// check is `sidecar check`: it says what the server, the bucket and the data folder can do, and what to do where not.
func check(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, err := loadConfig("check", args, stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	fmt.Fprintln(stderr, "asking the server, about seventy small requests ...")
	r := &report{out: stdout}
	if err := checkUpstream(ctx, c, r); err != nil {
		return err
	}
	checkIdentityServer(ctx, c, r)
	checkBucket(ctx, c, r)
	checkData(c, r)
	if r.failed {
		return errCheck
	}
	return nil
}

func checkUpstream(ctx context.Context, c *config, r *report) error {
	client, err := newClient(c, nil, nil, nil)
	if err != nil {
		return err
	}
	statement, err := client.Capabilities(ctx)
	if errors.Is(err, fhir.ErrCredentials) {
		r.fault("upstream_auth.oauth2: %v: check token_url, client_id, the secret or key, and that the identity server knows them", err)
		return nil
	}
	if err != nil {
		r.fault("upstream: no CapabilityStatement (%v): check the setting upstream, it must be the FHIR base, and upstream_auth", err)
		return nil
	}
	r.ok("upstream: %s %s, FHIR %s, %d types can be searched", orUnknown(statement.Software), statement.Version, statement.FHIRVersion, len(statement.Types))
	if _, err := fhir.PatientCompartment(statement.FHIRVersion); err != nil {
		r.fault("FHIR version: exports of Patients and Groups need R4, R4B or R5; only system exports work")
	}
	if statement.Export {
		r.note("upstream declares an $export of its own: set intercept: false to leave it alone, or let the sidecar answer instead")
	}
	profile, err := client.Probe(ctx, c.PageSize)
	if err != nil {
		r.fault("upstream cannot be searched (%v): check upstream_auth", err)
		return nil
	}
	reportProfile(profile, c, r)
	return nil
}

func orUnknown(name string) string {
	if name == "" {
		return "unnamed server"
	}
	return name
}

// reportProfile prints a line for each thing that was asked, and what follows from it.
func reportProfile(p *fhir.Profile, c *config, r *report) {
	lines := p.Lines()
	for i, finding := range p.Findings() {
		if finding.OK {
			r.ok("%s", lines[i])
		} else {
			r.note("%s", lines[i])
		}
	}
	for _, remark := range p.Remarks {
		r.note("%s", remark)
	}
	if p.Empty() {
		return
	}
	settle := p.Settle
	if c.Settle > 0 {
		settle = c.Settle
	}
	r.ok("asked %s; %s pause before reading (settle)", strings.Join(p.Types, ", "), settle)
}

// checkIdentityServer asks the one that judges clients, where there is one.
func checkIdentityServer(ctx context.Context, c *config, r *report) {
	authorizer, err := newAuthorizer(ctx, c, slog.New(slog.DiscardHandler))
	if err == nil && authorizer == nil {
		return
	}
	said := ""
	if err == nil {
		said, err = auth.Check(ctx, authorizer)
	}
	if err != nil {
		r.fault("identity server: %v: check the settings under auth", err)
		return
	}
	r.ok("identity server: %s", said)
}

func checkBucket(ctx context.Context, c *config, r *report) {
	bucket, err := openBucket(ctx, c)
	if err != nil {
		r.fault("bucket: %v: check the settings under bucket", err)
		return
	}
	if err := blob.Check(ctx, bucket, http.DefaultClient); err != nil {
		r.fault("bucket (%s): %v: %s", c.Bucket.Kind, err, blob.Advice(err))
		return
	}
	r.ok("bucket (%s): can be written, read and deleted", c.Bucket.Kind)
}

func checkData(c *config, r *report) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		r.fault("data folder: %v: give the process the right to write there, or set data", err)
		return
	}
	probe, err := os.CreateTemp(c.Data, ".check-*")
	if err == nil { // on a full disk a file can be made and not be written
		_, err = probe.Write(make([]byte, 64<<10))
		err = errors.Join(err, probe.Close(), os.Remove(probe.Name()))
	}
	if err != nil {
		r.fault("data folder: %v: give the process the right and the room to write there, or set data", err)
		return
	}
	path := filepath.Join(c.Data, "state.db")
	if _, err := os.Stat(path); err != nil {
		r.ok("data folder: can be written, no state yet")
		return
	}
	store, err := state.Open(path)
	switch {
	case errors.Is(err, state.ErrLocked):
		r.note("data folder: can be written; its state is in use, so a sidecar is running")
	case err != nil:
		r.fault("state: %v", err)
	default:
		if err := store.Close(); err != nil {
			r.fault("state: %v", err)
			return
		}
		r.ok("data folder: can be written, state can be read")
	}
}
