package exporter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"sidecar/exporter/blob"
	"sidecar/exporter/fhir"
	"sidecar/state"
	"sidecar/state/failpoint"
)

// Defaults of Config.
const (
	DefaultWorkers      = 4
	DefaultMaxRunning   = 1
	DefaultRetention    = 24 * time.Hour
	DefaultMaxFileBytes = 128 << 20
	DefaultGiveUp       = 30 * time.Minute
)

// sweepInterval is how often the bucket is tested and expired exports are looked for.
const sweepInterval = time.Minute

// Config is what an Exporter needs. Zero values of the numbers mean the defaults.
type Config struct {
	Client *fhir.Client
	Store  *state.Store
	Bucket blob.Bucket
	// Spool is the folder of the spool files; it is created with mode 0700.
	Spool string
	// RemoveSpool removes the spool when Run begins: jobs that were under way begin anew, or fail where pages of them were shown.
	RemoveSpool bool
	// Workers is the largest number of requests under way at once, over all jobs of the process. It is reached only while
	// the upstream stays quick.
	Workers int
	// Strategy forces one of the Strategies upon the planner; empty is StrategyAuto.
	Strategy string
	// QuietHours are the hours of the day in which the upstream is asked; nil means all of them.
	QuietHours *Hours
	// Traffic tells what users do at the same time; nil means that nobody knows.
	Traffic Traffic
	// LiveSlowdown is how many times as long the slow requests of users may take while exports run.
	LiveSlowdown float64
	// MaxRunning is the number of exports that may run at once.
	MaxRunning int
	// MaxJobsPerClient is the number of exports of one client that are kept, running or ended; 0 bounds nothing.
	MaxJobsPerClient int
	// MaxExportBytes is the size that the files of one export may have together, before any compression; 0 bounds nothing.
	MaxExportBytes int64
	// PageSize overrides the probed number of rows asked for in one page.
	PageSize int
	// Settle overrides the pause between the transaction time and the first read.
	Settle time.Duration
	// Writes knows the writes under way, where all of them pass through the sidecar; nil means to wait for the settle time.
	Writes Writes
	// MaxFileBytes is the size in bytes of rows that no output file passes, but one of a single resource.
	MaxFileBytes int64
	// PageRows is how many rows make a manifest page, where a client takes several manifests.
	PageRows int64
	// Shape is the form of the manifests of which the kick-off does not say another; empty means state.Shape3.
	Shape state.Shape
	// Gzip compresses the files of all exports, also of those whose kick-off does not ask for it.
	Gzip bool
	// Attachments says how clients read the Binary that an exported Attachment names; empty means ServerAttachments.
	Attachments Attachments
	// Retention is how long a finished export is kept.
	Retention time.Duration
	// GiveUp is how long the upstream may answer nothing at all before a job fails.
	GiveUp time.Duration
	// WithoutReferenced leaves out what the resources of a Patient or Group export refer to outside of the compartment.
	WithoutReferenced bool
	// AllowPartial lets a job complete although resources are missing; its error file says which.
	AllowPartial bool
	// WithoutHistory says what is done about resources that changed while the export ran, on a server without history.
	WithoutHistory WithoutHistory
	// Ledger is the folder of the ledgers by which deletions are found on a server without history; empty means none. It is
	// made with mode 0700, and must be on the file system of Spool.
	Ledger string
	// LinkClient reads the signed link of the bucket's test; nil means http.DefaultClient.
	LinkClient *http.Client
	Log        *slog.Logger
	Metrics    *Metrics
	// Tracer begins the spans of exports; nil means that nobody traces.
	Tracer trace.Tracer
	// Audit keeps the audit trail of how jobs end; nil means that there is none.
	Audit auditor
}

// Writes knows the writes that are under way at the server.
type Writes interface {
	// Wait returns when all writes that began before a moment are visible; settle is how long those may take whose outcome
	// is not known. It fails with the cause with which ctx ended.
	Wait(ctx context.Context, before time.Time, settle time.Duration) error
}

// WithoutHistory is what an export does about resources that were changed after T and before they were read, where the
// server has no history that holds them as of T.
type WithoutHistory string

const (
	// IncludeCurrent exports them as they are now: the guide wants everything that was there at T, and asks less strongly
	// for nothing that came later.
	IncludeCurrent WithoutHistory = "include"
	// OmitChanged leaves them out.
	OmitChanged WithoutHistory = "omit"
	// Strict fails the export when there are any.
	Strict WithoutHistory = "strict"
)

// Exporter does the jobs of one store.
type Exporter struct {
	Config
	wake    chan struct{}
	retest  chan struct{}
	tested  chan struct{} // closed behind the first test of the bucket
	limiter *limiter
	stages  stages
	// admitting is held by the one kick-off that is being stored.
	admitting sync.Mutex

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc
	known   known // what the upstream can do
	bucket  error // why the bucket does not work, nil when it does
}

// New returns an exporter. It does nothing before Run. It fails when the spool folder cannot be made.
func New(cfg Config) (*Exporter, error) {
	setDefault(&cfg.Workers, DefaultWorkers)
	setDefault(&cfg.MaxRunning, DefaultMaxRunning)
	setDefault(&cfg.Retention, DefaultRetention)
	setDefault(&cfg.MaxFileBytes, DefaultMaxFileBytes)
	setDefault(&cfg.PageRows, DefaultPageRows)
	setDefault(&cfg.GiveUp, DefaultGiveUp)
	setDefault(&cfg.WithoutHistory, IncludeCurrent)
	setDefault(&cfg.LiveSlowdown, DefaultLiveSlowdown)
	if cfg.LinkClient == nil {
		cfg.LinkClient = http.DefaultClient
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	if err := os.MkdirAll(cfg.Spool, 0o700); err != nil {
		return nil, fmt.Errorf("make spool folder: %w", err)
	}
	e := &Exporter{
		Config:  cfg,
		wake:    make(chan struct{}, 1),
		retest:  make(chan struct{}, 1),
		tested:  make(chan struct{}),
		limiter: newLimiter(cfg.Workers, cfg.QuietHours),
		running: map[string]context.CancelCauseFunc{},
		bucket:  errUntested,
	}
	if cfg.Traffic != nil {
		e.limiter.polite = newPolite(cfg.Traffic, cfg.LiveSlowdown)
		e.limiter.polite.seen = e.Metrics.slowdown.Set
	}
	e.limiter.changed = e.Metrics.workers.Set
	e.limiter.changed(e.limiter.budget())
	e.limiter.waits = func(until time.Time) {
		e.Log.Info("exports wait for the quiet hours", "until", until)
	}
	return e, nil
}

func setDefault[T comparable](value *T, byDefault T) {
	var zero T
	if *value == zero {
		*value = byDefault
	}
}

// KickOff stores a new job and returns it. It fails with state.ErrBusy when as many exports run as may, and with
// state.ErrTooMany when as many of the client are kept as may be. The job is
// durable and can be polled when KickOff returns.
func (e *Exporter) KickOff(ctx context.Context, kickoff state.Kickoff) (*state.Job, error) {
	if kickoff.Shape == "" { // what holds now: a job goes through with one shape, whatever a next start is configured to
		kickoff.Shape = e.Shape
	}
	kickoff.Gzip = kickoff.Gzip || e.Gzip
	now := time.Now().UTC()
	id := uuid.NewString()
	job := &state.Job{
		ID: id, Folder: now.Format("20060102T150405Z") + "_" + id, Status: state.Accepted, Accepted: now,
		Kickoff: kickoff, Issues: kickoff.Ignored, AttachmentKey: e.attachmentKey(&kickoff),
	}
	if err := e.admit(ctx, job); err != nil {
		return nil, err
	}
	e.Metrics.jobs.WithLabelValues(string(state.Accepted)).Inc()
	e.Log.InfoContext(ctx, "export accepted", "job", id, "level", string(kickoff.Level))
	e.nudge()
	return job, nil
}

// Cancel ends a job: from its return on nobody finds it, its slot is free, its work stops and its files are removed in
// the background. It fails with state.ErrNotFound when there is no such job.
func (e *Exporter) Cancel(ctx context.Context, id string) error {
	if err := e.cancel(ctx, id); err != nil {
		return err
	}
	e.Log.InfoContext(ctx, "export cancelled", "job", id)
	return nil
}

func (e *Exporter) cancel(ctx context.Context, id string) error {
	err := e.Store.Update(ctx, id, func(job *state.Job) error {
		job.Status = state.Cancelled
		return nil
	})
	if err != nil {
		return err
	}
	e.Metrics.jobs.WithLabelValues(string(state.Cancelled)).Inc()
	e.mu.Lock()
	if stop, ok := e.running[id]; ok {
		stop(ErrCancelled)
	}
	e.mu.Unlock()
	e.nudge()
	return nil
}

// ExpiresAt is when retention removes the job; zero for one that has not ended.
func (e *Exporter) ExpiresAt(job *state.Job) time.Time {
	if job.Finished.IsZero() {
		return time.Time{}
	}
	return job.Finished.Add(e.Retention)
}

// Run does jobs until ctx is cancelled, and returns when all work has written its checkpoint. It goes on with jobs that
// an earlier process left.
func (e *Exporter) Run(ctx context.Context) error {
	if err := e.dropOrphans(ctx); err != nil { // forwarding must not end for it
		e.Log.ErrorContext(ctx, "old spool not removed", "error", err)
	}
	var group errgroup.Group
	group.Go(func() error { return e.watchBucket(ctx) })
	group.Go(func() error { return e.dispatch(ctx) })
	return group.Wait()
}

// dropOrphans removes spool folders without a job, and of jobs that have ended; with RemoveSpool all of them.
func (e *Exporter) dropOrphans(ctx context.Context) error {
	entries, err := os.ReadDir(e.Spool)
	if err != nil {
		return fmt.Errorf("read spool folder: %w", err)
	}
	for _, entry := range entries {
		job, err := e.Store.Get(ctx, entry.Name())
		switch {
		case err == nil && job.Running() && e.RemoveSpool:
			if err := e.markAnew(ctx, job.ID); err != nil {
				return err
			}
		case err == nil && job.Running(), err != nil && !errors.Is(err, state.ErrNotFound):
			continue
		}
		if err == nil && job.Status == state.Completed { // a crash came between
			if err := e.publishLedgers(ctx, filepath.Join(e.Spool, entry.Name())); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(filepath.Join(e.Spool, entry.Name())); err != nil {
			return fmt.Errorf("remove old spool: %w", err)
		}
	}
	return nil
}

// dispatch starts the work on jobs that need it and sweeps, at each nudge and once a minute.
func (e *Exporter) dispatch(ctx context.Context) error {
	var work errgroup.Group
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		if err := e.sweep(ctx, &work); err != nil && ctx.Err() == nil {
			e.Log.ErrorContext(ctx, "sweep failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return work.Wait()
		case <-tick.C:
		case <-e.wake:
		}
	}
}

// nudge wakes dispatch.
func (e *Exporter) nudge() { signal(e.wake) }

// signal leaves a sign in a channel of capacity one, unless there is one.
func signal(sign chan<- struct{}) {
	select {
	case sign <- struct{}{}:
	default:
	}
}

// sweep looks at each job once: running ones are given a worker, expired ones are cancelled, cancelled ones removed.
func (e *Exporter) sweep(ctx context.Context, work *errgroup.Group) error {
	jobs, err := e.Store.List(ctx)
	if err != nil {
		return err
	}
	e.Metrics.oldest.set(jobs)
	var errs []error
	for _, job := range jobs {
		if expires := e.ExpiresAt(job); job.Status != state.Cancelled && !expires.IsZero() && !time.Now().Before(expires) {
			if err := e.cancel(ctx, job.ID); err != nil {
				errs = append(errs, err)
				continue
			}
			e.Log.InfoContext(ctx, "export expired", "job", job.ID)
			e.noteOf(ctx, "expired", job)
			job.Status = state.Cancelled
		}
		switch {
		case job.Running():
			e.start(ctx, work, job.ID)
		case job.Status == state.Cancelled:
			e.own(ctx, work, job.ID, func(ctx context.Context) {
				if err := e.remove(ctx, job); err != nil && ctx.Err() == nil {
					e.Log.ErrorContext(ctx, "deleted export not removed yet", "job", job.ID, "error", err)
				}
			}, func() {}) // what could not be removed waits for the next minute
		}
	}
	return errors.Join(errs...)
}

// start gives a job its worker.
func (e *Exporter) start(ctx context.Context, work *errgroup.Group, id string) {
	e.own(ctx, work, id, func(ctx context.Context) { e.work(ctx, id) }, e.nudge) // a cancelled job can be removed then
}

// own runs fn for a job in a goroutine of its own, unless one has the job already, and after when the job is free again. A
// slow bucket then delays neither other jobs nor the sweep.
func (e *Exporter) own(ctx context.Context, work *errgroup.Group, id string, fn func(context.Context), after func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil || ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancelCause(ctx)
	e.running[id] = stop
	work.Go(func() error {
		err := guarded(func() error {
			fn(ctx)
			return nil
		})
		var fault *panicError
		if errors.As(err, &fault) {
			e.Log.ErrorContext(ctx, "work on a job ended by a fault of the sidecar", "job", id, "error", err, "stack", string(fault.stack))
		}
		e.disown(id, stop)
		after()
		return nil
	})
}

func (e *Exporter) disown(id string, stop context.CancelCauseFunc) {
	stop(nil)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
	e.stages.leave(id)
	e.Client.Forget(id)
}

// remove deletes the objects, the spool and then the record of a cancelled job. The record goes last, so that a crash or
// a bucket that cannot be reached leaves the rest for the next sweep.
func (e *Exporter) remove(ctx context.Context, job *state.Job) error {
	if err := e.deleteObjects(ctx, job); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(e.Spool, job.ID)); err != nil {
		return err
	}
	return e.Store.Remove(ctx, job.ID)
}

// deleteObjects deletes the manifest and the files of a job from the bucket.
func (e *Exporter) deleteObjects(ctx context.Context, job *state.Job) error {
	files, err := e.Store.Files(ctx, job.ID)
	if err != nil {
		return err
	}
	names := []string{manifestName}
	for _, file := range files {
		names = append(names, file.Name)
	}
	for _, name := range names {
		failpoint.Pass("before delete")
		if err := e.Bucket.Delete(ctx, job.Folder+"/"+name); err != nil {
			return err
		}
	}
	failpoint.Pass("after delete")
	return nil
}
