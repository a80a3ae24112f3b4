package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// checkpointTime and checkpointBytes are how much reading a crash may cost.
	checkpointTime  = 2 * time.Second
	checkpointBytes = 64 << 20
)

var (
	// errStrategy tells that the server did not keep what the slice's strategy needs, so that a poorer one has to do.
	errStrategy = errors.New("search parameter was not honoured")
	// errSuperset tells that the server gave rows that were not asked for, although it had been seen to honour what it is
	// asked. Whatever else it answers cannot be trusted.
	errSuperset = errors.New("the server gives rows that it was not asked for")
	errBefore   = fmt.Errorf("row before the window: %w", errSuperset)
)

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
	// refs are the resources that the slice's rows refer to, nil while they are not known.
	refs map[string]struct{}
	// durable is the slice as it was stored last, durableAt when.
	durable   state.Slice
	durableAt time.Time
	// ahead is the page that was asked for before it is wanted, while a keyset walk runs. unsure is how many pages are still
	// read without a guess at the next one.
	ahead  *pending
	unsure int
	// linked tells that the last pass over server pages had more than one.
	linked bool
	// usual is how long the first page of such a pass took, 0 behind its first link.
	usual time.Duration
	// passed are the ids that the last such pass met, first is the one that it met first.
	passed *idSet
	first  string
	// added are the ids that the current server page put into the boundary.
	added []string
	// least is how many rows the small pages beside users have at least, since those of one moment have to fit.
	least int
	// granuleRows is how many rows the pages of the granule have that is read now, 0 for as many as any.
	granuleRows int
	// seenRows and seenBytes tell how large the rows of the slice are.
	seenRows, seenBytes int64
	// members are the Patients of the lists, nil where the slice has none.
	members *cohort
	// draft tells that only ids are wanted, and nothing is stored.
	draft bool
	// idsOnly asks for resources without their content.
	idsOnly bool
	trouble
}

// walk reads a slice from where its last checkpoint left it.
func (r *run) walk(ctx context.Context, slice *state.Slice) error { return r.read(ctx, slice, false) }

// read reads a slice, anew from its beginning or from where its last checkpoint left it.
func (r *run) read(ctx context.Context, slice *state.Slice, anew bool) (err error) {
	files, err := openSpool(r.dir, slice)
	if err != nil {
		return err
	}
	w := &walk{run: r, slice: slice, filter: r.filterIn(ctx, slice.Type), spool: files, durable: *slice, durableAt: time.Now()}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, files.close())
		if err != nil && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("slice %d of %s: %w", slice.Seq, slice.Type, err)
		}
	}()
	if len(slice.Lists) > 0 && !byTargets(slice) {
		if w.members, err = r.members(ctx, slice.Newcomers); err != nil {
			return err
		}
	}
	if err := r.remarkTargets(ctx, slice); err != nil {
		return err
	}
	w.loadBoundary()
	if several(slice) || slice.Strategy != state.Keyset || slice.Reread {
		if err := w.loadWritten(); err != nil {
			return err
		}
	}
	if anew {
		if err := w.again(ctx); err != nil {
			return err
		}
	}
	if err := w.readOrMiss(ctx); err != nil {
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

// readAll reads the slice by its strategy, and by a poorer one where the server does not keep what that needs.
func (w *walk) readAll(ctx context.Context) error {
	err := w.readOnce(ctx)
	for err != nil {
		if err = w.adapt(ctx, err); err != nil {
			return err
		}
		err = w.readOnce(ctx)
	}
	return nil
}

func (w *walk) readOnce(ctx context.Context) error {
	switch {
	case byTargets(w.slice):
		return w.aboutTargets(ctx)
	case w.slice.Strategy == state.Paging:
		return w.paging(ctx)
	}
	read := w.keyset
	if w.slice.Strategy == state.Bisect {
		read = w.bisect
	}
	for {
		if err := read(ctx, w.query()); err != nil {
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
	w.slice.Query, w.slice.Cursor, w.slice.Boundary, w.slice.Met, w.slice.MetSize = 0, time.Time{}, nil, 0, 0
	w.slice.Reread, w.slice.Done, w.slice.Holes = true, false, nil
	w.until = time.Time{}
	clear(w.boundary)
	if err := w.spool.cut(w.slice); err != nil {
		return err
	}
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	return w.loadWritten()
}

// queries is how many searches the slice consists of, one after another.
func (w *walk) queries() int {
	lists := 1
	if len(w.slice.Lists) > 0 {
		lists = len(w.slice.Lists) * w.members.lists(w.slice.ListSize)
	}
	return max(1, len(w.slice.Filters)) * lists
}

// several tells whether a slice consists of several searches, which may find the same rows.
func several(slice *state.Slice) bool { return len(slice.Lists) > 0 || len(slice.Filters) > 1 }

// query is the search that is being read, without its page.
func (w *walk) query() fhir.Query { return w.queryAt(w.slice.Query) }

func (w *walk) queryAt(n int) fhir.Query {
	q := fhir.Query{Type: w.slice.Type, From: w.slice.From, To: w.slice.To, Post: w.slice.Post, IDsOnly: w.idsOnly}
	if w.slice.Open {
		q.From, q.To = time.Time{}, time.Time{}
	}
	if each := w.queries() / max(1, len(w.slice.Filters)); len(w.slice.Filters) > 0 {
		q.Filter, n = fhir.ParseCriteria(w.slice.Filters[n/each]), n%each
	}
	if len(w.slice.Lists) == 0 {
		return q
	}
	lists := w.members.lists(w.slice.ListSize)
	param, n := w.slice.Lists[n/lists], n%lists
	if param == compartmentSearch {
		q.Patient = w.members.patients[n]
		return q
	}
	if name, ok := strings.CutPrefix(param, hasPrefix); ok {
		return q.With(fhir.QueryParam{Name: hasName(q.Type, name), Value: w.job.Kickoff.Group})
	}
	return q.With(fhir.QueryParam{Name: param, Value: w.members.list(param, n, w.slice.ListSize)})
}

// countMet counts a row of the window, whether it belongs to the export or not. One that is newer than T, in a window that
// ends a little after it, was not met as it was at T.
func (w *walk) countMet(row *fhir.Entry) error {
	w.slice.Met++
	if row.LastUpdated.After(w.job.TransactionTime) {
		return w.spool.meet(laterThanT(row.ID))
	}
	return w.spool.meet(row.ID)
}

// emit writes a row that passes the filter.
func (w *walk) emit(row *fhir.Entry) error {
	keep, err := w.filter.keep(row)
	if err != nil {
		return err
	}
	if !keep || w.written != nil && !w.written.add(row.ID) {
		return nil
	}
	w.slice.Written++
	w.slice.SpoolRows++
	if w.draft {
		return w.spool.note(row)
	}
	if err := errors.Join(w.collect(row), w.noteTargets(row)); err != nil {
		return err
	}
	return w.spool.write(row, w.output)
}

// committed follows each page: now and then the slice is made durable, and a full file leaves.
func (w *walk) committed(ctx context.Context) error {
	if w.draft {
		return nil
	}
	if open(w.slice) >= w.rollSize() && w.job.Kickoff.OrganizeBy == "" { // what is organised is read again
		return w.roll(ctx)
	}
	if time.Since(w.durableAt) < checkpointTime && w.slice.SpoolSize-w.durable.SpoolSize < checkpointBytes {
		return nil
	}
	return w.checkpoint(ctx)
}

// checkpoint makes the slice durable up to the last page that was read whole.
func (w *walk) checkpoint(ctx context.Context) error {
	if w.draft {
		return w.spool.sync()
	}
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

// roll puts what is open into the bucket, in full files, and begins a new spool file with what remains. The bucket may hold the
// old one itself, so that it is not cut but left.
func (w *walk) roll(ctx context.Context) error {
	if err := w.checkpoint(ctx); err != nil {
		return err
	}
	for open(w.slice) >= w.rollSize() {
		parts := []state.Slice{*w.slice}
		if _, err := w.putFile(ctx, state.File{Kind: state.Output, Type: w.slice.Type}, parts, w.fileLimit()); err != nil {
			return err
		}
		*w.slice = parts[0]
	}
	if w.slice.SpoolRows == 0 {
		w.durable = *w.slice
		return w.spool.rows.remove()
	}
	full, err := w.spool.renew(w.dir, w.slice)
	if err != nil {
		return err
	}
	if err := w.checkpoint(ctx); err != nil {
		return errors.Join(err, local(full.close()))
	}
	return local(errors.Join(full.close(), os.Remove(full.path)))
}
