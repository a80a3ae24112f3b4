package exporter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// checkpointTime and checkpointBytes are how much reading a crash may cost.
	checkpointTime  = 2 * time.Second
	checkpointBytes = 16 << 20
	// proofTries is how often a slice is read again when the server counts more than was met.
	proofTries = 3
)

// errStrategy tells that the server did not keep what the slice's strategy needs: it ignored a bound or the sort.
var errStrategy = errors.New("search parameter was not honoured")

// walk reads one slice. Only the goroutine that runs it touches it.
type walk struct {
	*run
	slice  *state.Slice
	filter *filter
	spool  *spool
	// boundary holds the ids met since the beginning of the cursor's second.
	boundary map[string]struct{}
	// written holds all ids of the slice, where a row can come twice in ways that the boundary does not see: from
	// several lists of members, from server pages, from a second reading. Otherwise nil.
	written *idSet
	// durable is the slice as it was stored last, durableAt when.
	durable   state.Slice
	durableAt time.Time
	ahead     *pending
	// linked tells that the last pass over server pages had more than one.
	linked bool
	// added are the ids that the current server page put into the boundary.
	added []string
	// seenRows and seenBytes tell how large the rows of the slice are.
	seenRows, seenBytes int64
}

// walk reads a slice from where its last checkpoint left it, and proves it.
func (r *run) walk(ctx context.Context, slice *state.Slice) (err error) {
	files, err := openSpool(r.dir, slice)
	if err != nil {
		return err
	}
	w := &walk{run: r, slice: slice, filter: r.filter(slice.Type), spool: files, durable: *slice, durableAt: time.Now()}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, w.ahead.drop(), files.close())
		if err != nil && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("slice %d of %s: %w", slice.Seq, slice.Type, err)
		}
	}()
	w.loadBoundary()
	if len(slice.Lists) > 0 || slice.Strategy == state.Paging || slice.Reread {
		if err := w.loadWritten(); err != nil {
			return err
		}
	}
	if err := w.readAll(ctx); err != nil {
		return errors.Join(err, w.stopped(outer))
	}
	slice.Done = true
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	r.Metrics.slices.WithLabelValues(slice.Type).Inc()
	return nil
}

// stopped keeps what was read when the process is asked to end, so that the next start repeats less. A cancelled job
// needs nothing, and its store refuses it.
func (w *walk) stopped(ctx context.Context) error {
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), ErrCancelled) {
		return nil
	}
	err := w.checkpoint(context.WithoutCancel(ctx))
	if errors.Is(err, state.ErrFinal) {
		return nil
	}
	return err
}

func (w *walk) loadBoundary() {
	w.boundary = make(map[string]struct{}, len(w.slice.Boundary))
	for _, id := range w.slice.Boundary {
		w.boundary[id] = struct{}{}
	}
}

// loadWritten fills the set of written ids from the index.
func (w *walk) loadWritten() error {
	w.written = newIDSet()
	return eachWritten(w.dir, w.slice.Seq, w.slice.IndexSize, func(id, _ string) error {
		w.written.add(id)
		return nil
	})
}

// readAll reads the slice by its strategy, counts it again, and reads it again when the count is higher.
func (w *walk) readAll(ctx context.Context) error {
	for try := 1; ; try++ {
		err := w.readOnce(ctx)
		if errors.Is(err, errStrategy) && w.slice.Strategy == state.Keyset {
			w.Log.WarnContext(ctx, "server ignores a search parameter, its own pages are read instead",
				"job", w.job.ID, "type", w.slice.Type, "slice", w.slice.Seq)
			w.slice.Strategy = state.Paging
			err = w.again(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		missing, err := w.missing(ctx)
		if err != nil || missing == 0 {
			return err
		}
		if try == proofTries {
			return fmt.Errorf("the server counts %d more rows than it gave: %w", missing, errIncomplete)
		}
		if err := sleep(ctx, time.Duration(try)*firstPause); err != nil {
			return err
		}
		if err := w.again(ctx); err != nil {
			return err
		}
	}
}

func (w *walk) readOnce(ctx context.Context) error {
	if w.slice.Strategy == state.Paging {
		return w.paging(ctx)
	}
	for {
		if err := w.keyset(ctx, w.query()); err != nil {
			return err
		}
		if w.slice.Query+1 >= w.queries() {
			return nil
		}
		w.slice.Query++
		w.slice.Cursor, w.slice.Boundary = time.Time{}, nil
		clear(w.boundary)
	}
}

// again starts the reading from the beginning; what is written already is not written twice.
func (w *walk) again(ctx context.Context) error {
	if err := w.ahead.drop(); err != nil {
		return err
	}
	w.ahead = nil
	w.slice.Query, w.slice.Cursor, w.slice.Boundary, w.slice.Met, w.slice.Reread = 0, time.Time{}, nil, 0, true
	clear(w.boundary)
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	return w.loadWritten()
}

// queries is how many searches the slice consists of, one after another.
func (w *walk) queries() int {
	if len(w.slice.Lists) == 0 {
		return 1
	}
	return len(w.slice.Lists) * w.cohort.lists(w.slice.ListSize)
}

// query is the search that is being read, without its page.
func (w *walk) query() fhir.Query {
	q := fhir.Query{Type: w.slice.Type, From: w.slice.From, To: w.slice.To}
	if len(w.slice.Lists) > 0 {
		lists := w.cohort.lists(w.slice.ListSize)
		param := w.slice.Lists[w.slice.Query/lists]
		q = q.With(fhir.QueryParam{Name: param, Value: w.cohort.list(param, w.slice.Query%lists, w.slice.ListSize)})
	}
	return q
}

// missing counts the slice again. Rows can only leave a window that has settled, so fewer than were met is no hole.
func (w *walk) missing(ctx context.Context) (int64, error) {
	if !w.profile.Counts || w.slice.Strategy == state.Paging || len(w.slice.Lists) > 0 {
		return 0, nil // server pages prove themselves; lists are proved by their parameters (see useLists)
	}
	var count int64
	err := w.pace.do(ctx, func() error {
		var err error
		count, err = w.Client.Count(ctx, w.query())
		return err
	})
	return max(0, count-w.slice.Met), err
}

// emit writes a row that passes the filter.
func (w *walk) emit(row *fhir.Entry) error {
	keep, err := w.filter.keep(row)
	if err != nil {
		return fmt.Errorf("read references: %w", fhir.ErrMalformed)
	}
	if !keep || w.written != nil && !w.written.add(row.ID) {
		return nil
	}
	w.slice.Written++
	w.slice.SpoolRows++
	return w.spool.write(row)
}

// committed follows each page: now and then the slice is made durable, and a full file leaves.
func (w *walk) committed(ctx context.Context) error {
	if w.slice.SpoolSize >= w.MaxFileBytes {
		return w.roll(ctx)
	}
	if time.Since(w.durableAt) < checkpointTime && w.slice.SpoolSize-w.durable.SpoolSize < checkpointBytes {
		return nil
	}
	return w.checkpoint(ctx)
}

// checkpoint makes the slice durable up to the last page that was read whole.
func (w *walk) checkpoint(ctx context.Context) error {
	if err := w.spool.sync(); err != nil {
		return err
	}
	w.slice.Boundary = w.slice.Boundary[:0]
	for id := range w.boundary {
		w.slice.Boundary = append(w.slice.Boundary, id)
	}
	w.slice.Shown = max(w.slice.Shown, w.slice.Met)
	if err := w.Store.Checkpoint(ctx, w.job.ID, w.slice); err != nil {
		return err
	}
	w.durable, w.durableAt = *w.slice, time.Now()
	return nil
}

// roll puts the open file into the bucket and begins a new one.
func (w *walk) roll(ctx context.Context) error {
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	if err := w.putFile(ctx, []state.Slice{*w.slice}); err != nil {
		return err
	}
	w.slice.SpoolSize, w.slice.SpoolRows = 0, 0
	w.durable = *w.slice
	return local(w.spool.rows.cut(0))
}
