package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"sidecar/exporter"
	"sidecar/exporter/blob"
	"sidecar/exporter/blob/gcsblob"
	"sidecar/exporter/blob/s3blob"
	"sidecar/exporter/fhir"
	"sidecar/proxy"
	"sidecar/proxy/admin"
	"sidecar/state"
)

const (
	// headerTimeout and idleTimeout protect against slow clients. Bodies have no limit in time: downloads may be long.
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

// serve is `sidecar serve`: it runs until ctx is cancelled.
func serve(ctx context.Context, args []string, stderr io.Writer) error {
	c, err := loadConfig("serve", args, stderr)
	if err != nil {
		return err
	}
	log, err := newLog(c, stderr)
	if err != nil {
		return err
	}
	s, err := newServer(ctx, c, log)
	if err != nil {
		return err
	}
	return s.run(ctx)
}

// liveHeap adds go_gc_heap_live_bytes to Go's own metrics, what the last collection found in use: a leak shows there first, where the
// others rise and fall with the garbage.
var liveHeap = collectors.WithGoCollectorRuntimeMetrics(collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/gc/heap/live:bytes$`)})

// server is the wiring of one sidecar.
type server struct {
	config   *config
	log      *slog.Logger
	store    *state.Store
	exporter *exporter.Exporter
	admin    *admin.Admin
	handler  http.Handler
	// front and back are the listeners for clients and operators.
	front, back net.Listener
	certificate *fhir.TLS // of front, nil for none
	audit       *auditTrail
	traces      *traces // nil for none
}

// newServer wires a sidecar and opens its ports. Nothing of it asks the upstream or the bucket.
func newServer(ctx context.Context, c *config, log *slog.Logger) (_ *server, err error) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	tighten(ctx, log, filepath.Join(c.Data, "state.db"), filepath.Join(c.Data, "spool"), filepath.Join(c.Data, "ledger"))
	log = slog.New(requestHandler{log.Handler()})
	s := &server{config: c, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.store, err = state.Open(filepath.Join(c.Data, "state.db")); err != nil {
		return nil, err
	}
	if s.certificate, err = c.TLS.open(log); err != nil {
		return nil, err
	}
	if s.audit, err = c.Audit.open(log); err != nil {
		return nil, err
	}
	if s.traces, err = openTraces(ctx, os.LookupEnv, log); err != nil {
		return nil, err
	}
	bucket := &lateBucket{open: func(ctx context.Context) (blob.Bucket, error) { return openBucket(ctx, c) }}
	engineMetrics, frontMetrics := exporter.NewMetrics(), proxy.NewMetrics()
	client, err := newClient(c, log, engineMetrics.Observe, s.traces.tracer())
	if err != nil {
		return nil, err
	}
	hours, err := exporter.ParseHours(c.QuietHours)
	if err != nil {
		return nil, err
	}
	var writes *proxy.Writes
	var inFlight exporter.Writes
	if c.WritesPassHere {
		writes = proxy.NewWrites()
		inFlight = writes
	}
	live := proxy.NewLive()
	var traffic exporter.Traffic = live
	if c.LiveSlowdown == anySlowdown {
		traffic = nil
	}
	ledger := filepath.Join(c.Data, "ledger")
	if !c.Ledger { // it holds ids, and is of no use when exports have gone on without it
		if err := os.RemoveAll(ledger); err != nil {
			return nil, fmt.Errorf("remove ledger: %w", err)
		}
		ledger = ""
	}
	engine := exporter.Config{
		Client: client, Store: s.store, Bucket: bucket, Spool: filepath.Join(c.Data, "spool"), RemoveSpool: c.RemoveSpool,
		Workers: c.Workers, Traffic: traffic, LiveSlowdown: c.LiveSlowdown, QuietHours: hours, Strategy: c.Strategy, MaxRunning: c.MaxRunning, MaxJobsPerClient: c.Limits.JobsPerClient, MaxExportBytes: c.Limits.ExportBytes, PageSize: c.PageSize, Settle: c.Settle,
		MaxFileBytes: c.MaxFileBytes, PageRows: c.PageRows, Shape: c.Manifest, Gzip: c.Gzip, Attachments: c.attachments(), Retention: c.Retention, GiveUp: c.GiveUp, Log: log, Metrics: engineMetrics, Tracer: s.traces.tracer(),
		Writes: inFlight, WithoutReferenced: !c.Referenced, AllowPartial: c.AllowPartial, WithoutHistory: c.WithoutHistory, Ledger: ledger,
	}
	if c.Audit.FHIR {
		s.audit.events = newAuditSender(client, writes, s.audit.eventFailures, log)
	}
	if s.audit.kept() {
		engine.Audit = s.audit
	}
	if s.exporter, err = exporter.New(engine); err != nil {
		return nil, err
	}
	if s.handler, err = newProxy(ctx, c, client, s.exporter, s.store, bucket, writes, live, s.audit, s.traces.tracer(), log, frontMetrics); err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(liveHeap), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(append(live.Collectors(), s.audit.failures, s.audit.eventFailures)...)
	registry.MustRegister(append(engineMetrics.Collectors(), frontMetrics.Collectors()...)...)
	s.admin = admin.New(admin.Config{Metrics: registry, Server: s.exporter, Exports: s.store, Work: s.exporter, Token: string(c.AdminToken)})
	return s, s.listen(ctx)
}

// othersMay are the rights of all but the owner.
const othersMay = 0o077

// tighten takes from others what they may do with files and folders of ours that are there: they are made for their owner alone,
// but a copy that was brought back, or a volume that is mounted for a group, may have changed that.
func tighten(ctx context.Context, log *slog.Logger, paths ...string) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode()&othersMay == 0 {
			continue
		}
		if err == nil {
			err = os.Chmod(path, info.Mode()&^othersMay)
		}
		if err != nil { // it is another owner's, and may be used all the same
			log.WarnContext(ctx, "health data can be read by others than the sidecar", "error", err)
		}
	}
}

func newProxy(
	ctx context.Context, c *config, client *fhir.Client, engine *exporter.Exporter, store *state.Store, bucket blob.Bucket, writes *proxy.Writes, live *proxy.Live, audit *auditTrail, tracer trace.Tracer, log *slog.Logger, metrics *proxy.Metrics,
) (http.Handler, error) {
	upstream, err := fhir.ParseBase(c.Upstream)
	if err != nil {
		return nil, err
	}
	authorizer, err := newAuthorizer(ctx, c, log)
	if err != nil {
		return nil, err
	}
	linkKey := []byte(c.LinkKey)
	if len(linkKey) == 0 {
		if linkKey, err = store.LinkKey(ctx); err != nil {
			return nil, fmt.Errorf("key of the links: %w", err)
		}
	}
	cfg := proxy.Config{
		Upstream: upstream, UpstreamHost: c.UpstreamHost, UpstreamProtocol: c.Protocol, ForwardHeaders: c.ForwardHeaders, Intercept: c.Intercept,
		Client: client, Exports: engine, Stages: engine, Jobs: store, Bucket: bucket, Links: c.Links, LinkLifetime: c.LinkLifetime, Writes: writes, Live: live, Log: log, Metrics: metrics,
		LinkKey: linkKey, TypesOf: c.typesOf, MaxFileBytes: c.MaxFileBytes, AuthMode: c.Auth.Mode, Auth: authorizer, GroupRules: c.Auth.groupRules(),
		RequestsPerSecond: c.Limits.RequestsPerSecond, AccessLog: c.AccessLog, RequestIDHeader: c.RequestIDHeader, Tracer: tracer,
	}
	if audit.kept() {
		cfg.Audit = audit
	}
	if cfg.UpstreamTLS, err = c.UpstreamTLS.open(log); err != nil {
		return nil, fmt.Errorf("upstream_tls: %w", err)
	}
	if c.PublicURL != "" {
		if cfg.PublicBase, err = fhir.ParseBase(c.PublicURL); err != nil {
			return nil, err
		}
	}
	for _, hop := range c.TrustedProxies {
		prefix, err := netip.ParsePrefix(hop)
		if err != nil {
			return nil, err
		}
		cfg.TrustedProxies = append(cfg.TrustedProxies, prefix)
	}
	return proxy.New(cfg)
}

// typesOf returns the types that a kick-off may name, and those beside them.
func (c *config) typesOf(level state.Level, statement *fhir.CapabilityStatement) (types, beside []string, err error) {
	types, err = exporter.Types(level, statement, true)
	if c.Referenced {
		beside = exporter.Referenced(level, statement)
	}
	return types, beside, err
}

// openBucket makes the client of the bucket. Whether the bucket works is tested by the exporter, again and again.
func openBucket(ctx context.Context, c *config) (bucket blob.Bucket, err error) {
	switch c.Bucket.Kind {
	case "s3":
		b := c.Bucket.S3
		bucket, err = s3blob.New(ctx, s3blob.Config{
			Bucket: b.Bucket, Region: b.Region, Endpoint: b.Endpoint, PathStyle: b.PathStyle,
			AccessKeyID: b.AccessKeyID, SecretAccessKey: string(b.SecretAccessKey), SessionToken: string(b.SessionToken),
			SSE: b.SSE, KMSKey: b.KMSKey,
		})
	case "gcs":
		b := c.Bucket.GCS
		bucket, err = gcsblob.New(ctx, gcsblob.Config{
			Bucket: b.Bucket, CredentialsFile: b.CredentialsFile, ServiceAccountEmail: b.ServiceAccountEmail,
			PrivateKey: string(b.PrivateKey), KMSKey: b.KMSKey, Endpoint: b.Endpoint,
		})
	default:
		if bucket, err = blob.NewDir(c.filesFolder()); err != nil {
			err = fmt.Errorf("bucket.folder.path: %w", err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	return blob.WithPrefix(bucket, strings.Trim(c.Bucket.Prefix, "/")), nil
}

func (s *server) listen(ctx context.Context) (err error) {
	var config net.ListenConfig
	var errs []error
	if s.front, err = config.Listen(ctx, "tcp", s.config.Listen); err != nil {
		errs = append(errs, fmt.Errorf("listen for clients (setting listen): %w", err))
	}
	if s.back, err = config.Listen(ctx, "tcp", s.config.AdminListen); err != nil {
		errs = append(errs, fmt.Errorf("listen for operators (setting admin_listen): %w", err))
	}
	return errors.Join(errs...)
}

// close releases what newServer took.
func (s *server) close(ctx context.Context) error {
	var errs []error
	for _, listener := range []net.Listener{s.front, s.back} {
		if listener != nil {
			errs = append(errs, listener.Close())
		}
	}
	errs = append(errs, s.audit.close())
	s.traces.close(ctx)
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// run serves until ctx is cancelled, then stops gracefully: no new connections, open requests finish, jobs write their
// checkpoints.
func (s *server) run(ctx context.Context) error {
	front := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is the upstream's to answer
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	front.Protocols = new(http.Protocols)
	front.Protocols.SetHTTP1(true)
	front.Protocols.SetHTTP2(true)
	if s.certificate != nil {
		front.TLSConfig = s.certificate.Server()
	} else {
		front.Protocols.SetUnencryptedHTTP2(true) // a proxy in front may speak it
	}
	back := &http.Server{Handler: s.admin, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	s.log.InfoContext(ctx, "sidecar serves", "version", versionText(), "upstream", s.config.Upstream, "data", s.config.Data, "listen", s.front.Addr().String(),
		"admin_listen", s.back.Addr().String(), "bucket", s.config.Bucket.Kind, "intercept", s.config.Intercept)
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveOn(front, s.front) })
	group.Go(func() error { return serveOn(back, s.back) })
	group.Go(func() error { return s.exporter.Run(groupCtx) })
	group.Go(func() error {
		<-groupCtx.Done()
		s.admin.SetReady(false)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownGrace)
		defer cancel()
		if err := front.Shutdown(grace); err != nil {
			s.log.WarnContext(ctx, "open requests were cut off")
			return errors.Join(front.Close(), back.Close())
		}
		return back.Close()
	})
	s.admin.SetReady(true)
	endAudit := s.audit.send(ctx)
	err := group.Wait()
	endAudit()
	s.traces.close(ctx)
	s.log.InfoContext(ctx, "sidecar stopped")
	return errors.Join(err, s.store.Close())
}

func serveOn(server *http.Server, listener net.Listener) error {
	serve := server.Serve
	if server.TLSConfig != nil {
		serve = func(listener net.Listener) error { return server.ServeTLS(listener, "", "") }
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
