package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// ErrCancelled is the cause with which the work on a job ends after a DELETE.
var ErrCancelled = errors.New("export was cancelled")

// run is the work on one job in this process.
type run struct {
	*Exporter
	job     *state.Job
	profile *fhir.Profile
	// compartment and cohort decide membership; at System level both are nil, unless targets of Provenance are looked for. At
	// Patient level cohort is nil where the parameter patient does not narrow the export.
	compartment *fhir.Compartment
	cohort      *cohort
	// output is how the rows are written that belong to the export.
	output *fhir.Output
	dir    string
	// readAt is when T is over, by the clock that nobody sets: before it and the settle pause nothing is read.
	readAt time.Time
	// crawledAt is when the reading of what is being repaired was over.
	crawledAt time.Time
	// lag is how much histories were seen to lag behind the searches, 0 where they do not. patience is for those that do.
	lag      time.Duration
	patience patience
	// unbalanced tells that a count stayed less than the history says, however often both were asked.
	unbalanced atomic.Bool
	// pace is the budget for the upstream, bucketPace the one for the bucket.
	pace, bucketPace *pace

	// roster are all Patients, where they have to be asked for one by one and the job has no cohort. listing holds a sign
	// while one slice lists them, which takes requests: the others wait, or end with their context.
	listing chan struct{}
	roster  *cohort

	// targets are the names of what the export holds, while Provenance is read; asked are answers about others.
	targets *targets
	asking  sync.Mutex
	asked   map[string]bool

	stop     sync.Mutex
	patients int64           // the server's count of them, 0 where it was not asked
	barred   map[string]bool // types that are not asked for any more
}

// work does one job until it has ended or ctx is cancelled, and writes down how it ended.
func (e *Exporter) work(ctx context.Context, id string) {
	log := e.Log.With("job", id)
	ctx, span := e.span(ctx, "export", attribute.String("sidecar.job", id))
	defer span.End()
	err := guarded(func() error { return e.exportWithRoom(ctx, id) })
	switch {
	case err == nil:
		e.Metrics.jobs.WithLabelValues(string(state.Completed)).Inc()
		log.InfoContext(ctx, "export completed", e.account(ctx, id)...)
		e.note(ctx, "completed", id)
		return
	case errors.Is(context.Cause(ctx), ErrCancelled), errors.Is(err, state.ErrFinal), errors.Is(err, state.ErrNotFound):
		return
	case ctx.Err() != nil:
		log.InfoContext(ctx, "export interrupted by shutdown, it goes on with the next start")
		return
	}
	var fault *panicError
	if errors.As(err, &fault) {
		log = log.With("stack", string(fault.stack))
	}
	log.ErrorContext(ctx, "export failed", "error", err)
	span.SetStatus(codes.Error, failureOf(err).Code)
	e.Metrics.jobs.WithLabelValues(string(state.Failed)).Inc()
	e.fail(ctx, log, id, failureOf(err))
	e.note(ctx, "failed", id)
}

// account is what a completed export handed out, in numbers that outlive its files in the log. It is empty where the job is
// gone already.
func (e *Exporter) account(ctx context.Context, id string) []any {
	job, err := e.Store.Get(ctx, id)
	if err != nil {
		return nil
	}
	files, err := e.Store.Files(ctx, id)
	if err != nil {
		return nil
	}
	var rows, bytes int64
	types := map[string]bool{}
	for _, file := range files {
		if file.Kind == state.Output {
			rows, bytes, types[file.Type] = rows+file.Count, bytes+file.Bytes, true
		}
	}
	return []any{
		"level", string(job.Kickoff.Level), "transaction_time", job.TransactionTime, "types", len(types), "files", len(files),
		"resources", rows, "bytes", bytes,
	}
}

// fail records the failure of a job and removes its spool. Where the state file takes nothing, the spool may have had the
// room that is missing. A failure that cannot be recorded at all leaves the job to the next sweep, in a while.
func (e *Exporter) fail(ctx context.Context, log *slog.Logger, id string, failure *state.Failure) {
	record := func() error {
		return e.Store.Update(context.WithoutCancel(ctx), id, func(job *state.Job) error {
			if !job.Running() {
				return state.ErrFinal
			}
			job.Status, job.Finished, job.Failure = state.Failed, time.Now().UTC(), failure
			return nil
		})
	}
	err := record()
	if err := os.RemoveAll(filepath.Join(e.Spool, id)); err != nil {
		log.ErrorContext(ctx, "spool not removed", "error", err)
	}
	if err != nil && !errors.Is(err, state.ErrFinal) && !errors.Is(err, state.ErrNotFound) {
		err = record()
	}
	if err == nil {
		return
	}
	log.ErrorContext(ctx, "failure not recorded", "error", err)
	_ = sleep(ctx, sweepInterval) // it ends with the process or a DELETE, which need nothing here
}

// failureOf puts an error into words for the client.
func failureOf(err error) *state.Failure {
	failure := &state.Failure{Status: 500, Code: "exception", Text: "the export failed: " + err.Error()}
	var fault *panicError
	switch status := fhir.StatusOf(err); {
	case errors.As(err, &fault):
		failure.Text = "the export failed: an error inside the export sidecar; its log says more"
	case errors.Is(err, errLocal), state.DiskFull(err): // paths and hosts of ours are not for clients
		failure.Text = "the export failed: its files could not be stored; the sidecar's log says more"
	case errors.Is(err, errGaveUp):
		failure.Code = "timeout"
	case errors.Is(err, errFilter), errors.Is(err, fhir.ErrNotApplied):
		failure.Status, failure.Code = 400, "not-supported"
	case errors.Is(err, errTooCostly):
		failure.Status, failure.Code = 400, "too-costly"
	case errors.Is(err, errUnknownPatient):
		failure.Status, failure.Code = 400, "not-found"
	case errors.Is(err, errNotMember):
		failure.Status, failure.Code = 400, "invalid"
	case errors.Is(err, errIncomplete):
		failure.Code = "incomplete"
	case errors.Is(err, errSpoolRemoved):
		failure.Code = "transient"
	case status == 401 || status == 403 || errors.Is(err, errForbidden):
		failure.Code = "forbidden"
	}
	return failure
}

// export takes a job through its stages. Each stage can be entered again after a crash.
func (e *Exporter) export(ctx context.Context, id string) error {
	ctx = fhir.OfJob(ctx, id)
	r := &run{
		Exporter: e, dir: filepath.Join(e.Spool, id), listing: make(chan struct{}, 1),
	}
	r.pace = &pace{giveUp: e.GiveUp, limiter: e.limiter, waiting: func(err error, wait time.Duration) {
		if errors.Is(err, fhir.ErrNoLoan) {
			e.stages.wait(id, "waiting for a token of its client", wait)
			return // it is looked for often, and nothing is wrong
		}
		stage := "waiting for the FHIR server"
		if errors.Is(err, fhir.ErrCredentials) {
			stage = "waiting for an access token"
		}
		e.stages.wait(id, stage, wait)
		e.Log.WarnContext(ctx, "FHIR server is waited for", "job", id, "error", err, "seconds", wait.Seconds())
	}}
	r.bucketPace = &pace{giveUp: e.GiveUp, waiting: func(err error, wait time.Duration) {
		e.stages.wait(id, "waiting for the bucket", wait)
		e.Log.WarnContext(ctx, "bucket is waited for", "job", id, "error", err, "seconds", wait.Seconds())
	}}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fmt.Errorf("make spool folder: %w", err)
	}
	for _, stage := range []struct {
		does string // as a status request tells it; empty for the reading, of which the numbers tell
		do   func(context.Context) error
	}{
		{"", func(ctx context.Context) error { return r.anew(ctx, id) }},
		{"asking the server for its clock", func(ctx context.Context) error { return r.begin(ctx, id) }},
		{"asking what the server can do", r.probe},
		{"waiting until the server's last writes have settled", r.settle},
		{"reading the members", r.loadCohort},
		{"planning", r.timed("export planned", r.plan)},
		{"storing files", r.finishFiles},
		{"", r.readPages},
		{"", r.timed("slices read", func(ctx context.Context) error { return r.crawl(ctx, r.notLast) })},
		{"looking for what has changed meanwhile", r.timed("history read", func(ctx context.Context) error { return r.repair(ctx, r.notLast) })},
		{"reading Provenance", r.readLast},
		{"reading what is referred to", r.timed("referenced resources read", r.addReferenced)},
		{"storing files", r.timed("files stored", r.seal)},
	} {
		e.stages.enter(id, stage.does)
		if err := e.spanned(ctx, cmp.Or(stage.does, "reading"), stage.do); err != nil {
			return err
		}
	}
	return nil
}

// timed logs how long a stage took.
func (r *run) timed(done string, stage func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		began := time.Now()
		if err := stage(ctx); err != nil {
			return err
		}
		r.Log.InfoContext(ctx, "stage done", "job", r.job.ID, "stage", done, "seconds", time.Since(began).Seconds())
		return nil
	}
}

// begin fixes the transaction time: the upstream's clock, rounded up to a whole second, so that what was written before
// the kick-off is at or before it.
func (r *run) begin(ctx context.Context, id string) error {
	job, err := r.Store.Get(ctx, id)
	if err != nil {
		return err
	}
	r.job = job
	if !job.Running() { // it ended between the look of sweep and the start of this work
		return state.ErrFinal
	}
	if job.Status != state.Accepted {
		// T was at most a second ahead, so it is over then, whatever our clock was set to since.
		r.readAt = time.Now().Add(time.Second)
		r.Log.InfoContext(ctx, "export goes on", "job", id, "planned", job.Planned)
		return nil
	}
	var now time.Time
	err = r.pace.do(ctx, func() error {
		statement, err := r.Client.Capabilities(ctx)
		if err != nil {
			return err
		}
		if len(statement.Types) == 0 {
			return fmt.Errorf("the server declares no type that can be searched: %w", errIncomplete)
		}
		typ := statement.Types[0]
		if statement.Offers("Patient") {
			typ = "Patient"
		}
		now, err = r.Client.Now(ctx, typ)
		return err
	})
	if err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	transactionTime := now.Truncate(time.Second).Add(time.Second).UTC()
	r.readAt = time.Now().Add(transactionTime.Sub(now))
	err = r.Store.Update(ctx, id, func(job *state.Job) error {
		if job.Status != state.Accepted {
			return state.ErrFinal
		}
		job.Status = state.InProgress
		job.TransactionTime = transactionTime
		job.ReadAt = r.readAt.UTC()
		r.job = job
		return nil
	})
	if err == nil {
		r.Metrics.jobs.WithLabelValues(string(state.InProgress)).Inc()
	}
	return err
}

// probe learns what the upstream can do, unless that is known from an earlier job.
func (r *run) probe(ctx context.Context) error {
	err := r.pace.do(ctx, func() error {
		var err error
		r.profile, err = r.learn(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("probe the server: %w", err)
	}
	elements := r.job.Kickoff.Elements
	if r.job.Kickoff.OrganizeBy != "" { // the references decide about the blocks: they are left out when these are written
		elements = nil
	}
	if r.output, err = r.newOutput(elements); err != nil {
		return err
	}
	if r.job.Kickoff.Level == state.System && len(r.job.Kickoff.Associated) == 0 {
		return nil
	}
	if r.compartment, err = fhir.PatientCompartment(r.profile.FHIRVersion); err != nil {
		return err
	}
	if slices.Contains(r.job.Kickoff.Types, "Task") { // it is outside of R4's, and of an export that does not name it
		r.compartment = r.compartment.WithTask()
	}
	return nil
}

// pageSize is the largest number of rows asked for in one page.
func (r *run) pageSize() int { return r.profile.PageSize }

// settleTime is how long the upstream may take to make a write visible. Where lastUpdated has whole seconds, a write in
// the second after T still carries T, so that second has to be over.
func (r *run) settleTime() time.Duration {
	settle := r.profile.Settle
	if r.Settle > 0 {
		settle = r.Settle
	}
	if !r.profile.Milliseconds {
		settle = max(settle, time.Second)
	}
	return settle
}

// settle waits until T + settle: servers stamp lastUpdated when a write begins and show it when it commits.
func (r *run) settle(ctx context.Context) error {
	if r.job.Planned {
		return nil
	}
	if r.Writes != nil {
		return r.awaitWrites(ctx)
	}
	wait := time.Until(r.readAt.Add(r.settleTime()))
	if wait <= 0 {
		return nil
	}
	r.Log.InfoContext(ctx, "waiting for the server's writes to settle", "job", r.job.ID, "seconds", wait.Seconds())
	return sleep(ctx, wait)
}

// awaitWrites waits until T is over and the writes that began before it are answered. Where lastUpdated has whole seconds
// T is a whole second.
func (r *run) awaitWrites(ctx context.Context) error {
	over := r.readAt
	if !r.profile.Milliseconds {
		over = over.Add(time.Second)
	}
	r.Log.InfoContext(ctx, "waiting for the writes in flight", "job", r.job.ID)
	if err := sleep(ctx, time.Until(over)); err != nil {
		return err
	}
	return r.Writes.Wait(ctx, over, r.settleTime())
}

// crawl reads the planned slices, the largest first, several at once.
func (r *run) crawl(ctx context.Context, chosen func(typ string) bool) error {
	planned, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	planned = slices.DeleteFunc(planned, func(s state.Slice) bool {
		return s.Done || !chosen(s.Type) || s.Strategy == state.History || s.Strategy == state.Referenced
	})
	slices.SortStableFunc(planned, func(a, b state.Slice) int { return int(b.Counted - a.Counted) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.Workers)
	for i := range planned {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			planned := &planned[i]
			before := planned.Strategy
			err := guarded(func() error {
				return r.spanned(ctx, "slice", func(ctx context.Context) error { return r.walk(ctx, planned) }, sliceAttributes(planned)...)
			})
			if planned.Strategy != before || errors.Is(err, errStrategy) || errors.Is(err, errIncomplete) {
				r.Doubt(ctx, "a search did not give what was asked for")
			}
			return err
		})
	}
	return group.Wait()
}

// window is the window of what an export holds: from _since up to T or _until. A bound between two of the server's granules is
// moved outwards, and kept by the filter.
func (r *run) window(typ string) (from, to time.Time) {
	to = r.windowEnd()
	if r.associates(typ) { // whenever it was written
		return time.Time{}, to
	}
	granule := time.Second
	if r.profile.Milliseconds {
		granule = time.Millisecond
	}
	if until := r.job.Kickoff.Until; !until.IsZero() && until.Before(to) {
		if to = until.Truncate(granule); to.Before(until) {
			to = to.Add(granule)
		}
	}
	if since := r.job.Kickoff.Since; !since.IsZero() {
		from = since.Truncate(time.Second)
	}
	return from, to
}

// windowEnd is the exclusive end of the newest window. Rows up to and including T belong to the export; where only whole
// seconds are compared, the rows of T's second that are later are dropped by the filter.
func (r *run) windowEnd() time.Time {
	if r.profile.Milliseconds {
		return r.job.TransactionTime.Add(time.Millisecond)
	}
	return r.job.TransactionTime.Add(time.Second)
}
