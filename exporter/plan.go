package exporter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// pagesPerSlice is the number of pages below which a type is not cut.
	pagesPerSlice = 4
	// slicesPerWorker says how finely a big type is cut, so that the workers end at about the same time.
	slicesPerWorker = 8
	// countsPerWorker bounds the requests that cutting one type may cost.
	countsPerWorker = 16
)

// Types returns the resource types that an export of a level reads when the client names none, or those it may name.
// At Patient and Group level that is the compartment; AuditEvent and Task are read only when they are named, and so is
// Group at Group level, where its characteristics are not part of the members' data.
func Types(level state.Level, statement *fhir.CapabilityStatement, named bool) ([]string, error) {
	if level == state.System {
		return statement.Types, nil
	}
	compartment, err := fhir.PatientCompartment(statement.FHIRVersion)
	if err != nil {
		return nil, err
	}
	compartment = compartment.WithTask()
	var types []string
	for _, typ := range statement.Types {
		onlyNamed := typ == "AuditEvent" || typ == "Task" || typ == "Group" && level == state.Group
		if compartment.Contains(typ) && (named || !onlyNamed) {
			types = append(types, typ)
		}
	}
	return types, nil
}

// plan cuts the work into slices, once per job.
func (r *run) plan(ctx context.Context) error {
	if r.job.Planned {
		return nil
	}
	types, referenced, err := r.splitTypes(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var planned []state.Slice
	var issues []state.Issue
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(r.Workers)
	for _, typ := range types {
		group.Go(func() error {
			var cut []state.Slice
			err := guarded(func() (err error) {
				cut, err = r.planType(groupCtx, typ)
				return err
			})
			var response *fhir.ResponseError
			mu.Lock()
			defer mu.Unlock()
			if errors.As(err, &response) && response.NotOffered() {
				issues = append(issues, state.Issue{Severity: "information", Code: "not-supported", Text: "the server does not offer a search of " + typ})
				return nil
			}
			if err != nil {
				return fmt.Errorf("plan %s: %w", typ, err)
			}
			planned = append(planned, cut...)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(types) > 0 && !r.profile.Counts {
		issues = append(issues, state.Issue{
			Severity: "information", Code: "incomplete", Text: "the server does not count, so completeness could not be verified",
		})
	}
	if len(types) > 0 && !r.profile.TypeHistory {
		issues = append(issues, r.noHistory(""))
	}
	slices.SortStableFunc(planned, func(a, b state.Slice) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), a.From.Compare(b.From))
	})
	for i := range planned {
		planned[i].Seq = i + 1
	}
	err = r.Store.PutPlan(ctx, r.job.ID, planned, func(job *state.Job) {
		job.Types, job.Referenced, job.Issues = types, referenced, append(job.Issues, issues...)
		r.job = job
	})
	if err != nil {
		return err
	}
	r.Log.InfoContext(ctx, "export planned", "job", r.job.ID, "types", len(types), "slices", len(planned))
	return nil
}

// types are the types that this job reads.
func (r *run) types(ctx context.Context) ([]string, error) {
	types, err := r.typesAsked(ctx)
	return r.withoutWithheld(types), err
}

// withoutWithheld leaves out the types that the client may not read.
func (r *run) withoutWithheld(types []string) []string {
	return slices.DeleteFunc(slices.Clone(types), func(typ string) bool { return slices.Contains(r.job.Kickoff.Withheld, typ) })
}

func (r *run) typesAsked(ctx context.Context) ([]string, error) {
	if r.cohort != nil && len(r.cohort.patients) == 0 { // exports nothing, and nothing is asked for it
		if slices.Contains(r.job.Kickoff.Types, "Group") {
			return []string{"Group"}, nil
		}
		return nil, nil
	}
	if named := r.job.Kickoff.Types; len(named) > 0 {
		return r.withAssociated(named), nil
	}
	statement, err := r.capabilities(ctx)
	if err != nil {
		return nil, err
	}
	types, err := Types(r.job.Kickoff.Level, statement, false)
	return r.withAssociated(types), err
}

func (r *run) capabilities(ctx context.Context) (statement *fhir.CapabilityStatement, err error) {
	err = r.pace.do(ctx, func() error {
		statement, err = r.Client.Capabilities(ctx)
		return err
	})
	return statement, err
}

// planType cuts one type.
func (r *run) planType(ctx context.Context, typ string) ([]state.Slice, error) {
	open := openSlice(typ)
	if err := r.filterBy(ctx, &open); err != nil {
		return nil, err
	}
	if !r.profile.Bounds {
		return r.planOpen(ctx, open)
	}
	from, to := r.window(typ)
	whole := r.windowSlice(typ, to)
	whole.From, whole.Filters, whole.Post = from, open.Filters, open.Post
	if !from.Before(to) {
		return nil, nil
	}
	slices, err := r.planWindow(ctx, whole)
	if err == nil && r.cohort != nil && len(r.cohort.newcomers) > 0 && !whole.From.IsZero() {
		older := whole
		older.From, older.To, older.Newcomers = time.Time{}, whole.From, true
		var more []state.Slice
		more, err = r.planWindow(ctx, older)
		slices = append(more, slices...)
	}
	switch status := fhir.StatusOf(err); {
	case status == 400: // this type knows no _lastUpdated, or wants a Patient
		return r.planOpen(ctx, open)
	case status == 403, status == 409, status == 412, status == 422, poisoned(err):
		return []state.Slice{whole}, nil // the walk finds out what is missing, the other types go on
	}
	return slices, err
}

// planBefore cuts what a type has before a moment.
func (r *run) planBefore(ctx context.Context, typ string, to time.Time) ([]state.Slice, error) {
	if !r.profile.Bounds {
		return r.planOpen(ctx, openSlice(typ))
	}
	slices, err := r.planWindow(ctx, r.windowSlice(typ, to))
	if fhir.StatusOf(err) == 400 { // as in planType
		return r.planOpen(ctx, openSlice(typ))
	}
	return slices, err
}

// openSlice is a type without a window.
func openSlice(typ string) state.Slice {
	return state.Slice{Type: typ, Strategy: state.Paging, Counted: -1}
}

// windowSlice is all of a type before a moment, to be read in the best way that the server allows.
func (r *run) windowSlice(typ string, to time.Time) state.Slice {
	whole := openSlice(typ)
	if whole.Strategy, whole.To = state.Bisect, to; r.profile.Keyset {
		whole.Strategy = state.Keyset
	}
	return whole
}

// planWindow cuts a type by time.
func (r *run) planWindow(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	if !r.profile.Counts {
		return r.uncounted(ctx, whole)
	}
	total, err := r.countWindow(ctx, &whole)
	if err != nil || total == 0 {
		return nil, err
	}
	whole.Counted = total
	if by, err := r.byMembers(ctx, whole); err != nil || by != nil {
		return by, err
	}
	if total <= int64(pagesPerSlice*r.pageSize()) {
		return []state.Slice{whole}, nil
	}
	return r.cut(ctx, whole)
}

// planOpen returns one slice for a type that is read by the server's pages: whole where the server allows that, else
// Patient by Patient.
func (r *run) planOpen(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	var err error
	if r.profile.Counts {
		whole.Counted, err = r.countWindow(ctx, &whole)
	}
	if whole.Counted < 0 || err != nil {
		whole.Counted = -1
		var some []state.Slice
		if some, err = r.uncounted(ctx, whole); err == nil {
			return some, nil
		}
	}
	switch status := fhir.StatusOf(err); {
	case status == 400:
		return r.byPatient(ctx, whole)
	case status == 403, status == 409, status == 412, status == 422, poisoned(err):
		return []state.Slice{whole}, nil // as in planType
	case err != nil || whole.Counted == 0:
		return nil, err
	}
	by, err := r.byMembers(ctx, whole)
	if err != nil || by != nil {
		return by, err
	}
	return []state.Slice{whole}, nil
}

// uncounted returns one slice for a type that is not counted, after a look whether the type is offered at all.
func (r *run) uncounted(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	err := r.pace.do(ctx, func() error {
		page, err := r.Client.Search(ctx, fhir.Query{Type: whole.Type, Count: 1})
		if err != nil {
			return err
		}
		return eachRow(page, func(*fhir.Entry) error { return nil }) // a login page offers nothing
	})
	if err != nil {
		return nil, err
	}
	return []state.Slice{whole}, nil
}

// countWindow counts the rows of a slice's window, without its lists. A row that matches two filters counts twice, as it is
// met.
func (r *run) countWindow(ctx context.Context, slice *state.Slice) (total int64, err error) {
	for _, q := range windowQueries(slice) {
		n, err := r.count(ctx, q)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (r *run) count(ctx context.Context, q fhir.Query) (n int64, err error) {
	err = r.pace.do(ctx, func() error {
		n, err = r.Client.Count(ctx, q)
		return err
	})
	return n, err
}

// cut halves the window until each leaf is small enough: half-open windows of whole seconds without gap or overlap.
func (r *run) cut(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	first, last, err := r.edges(ctx, whole)
	if fhir.StatusOf(err) == 400 && whole.Strategy == state.Keyset { // the rows of this type are not sorted
		whole.Strategy = state.Bisect
		first, last, err = r.edges(ctx, whole)
	}
	if err != nil {
		return nil, err
	}
	leaf := max(int64(pagesPerSlice*r.pageSize()), whole.Counted/int64(slicesPerWorker*r.Workers))
	if limit := r.profile.CountsUpTo; limit > 0 { // a larger count would prove nothing
		leaf = min(leaf, limit)
	}
	budget := countsPerWorker * r.Workers
	var leaves []state.Slice
	var halve func(part state.Slice, from, to time.Time) error
	halve = func(part state.Slice, from, to time.Time) error {
		middle := from.Add(to.Sub(from) / 2).Truncate(time.Second)
		if part.Counted <= leaf || budget <= 0 || !middle.After(from) || !middle.Before(to) {
			if part.Counted != 0 {
				leaves = append(leaves, part)
			}
			return nil
		}
		budget -= max(1, len(whole.Filters))
		left, right := part, part
		left.To, right.From = middle, middle
		left.Counted, err = r.countWindow(ctx, &left)
		if err != nil {
			return err
		}
		right.Counted = max(0, part.Counted-left.Counted)
		if err := halve(left, from, middle); err != nil {
			return err
		}
		return halve(right, middle, to)
	}
	if err := halve(whole, first, last); err != nil {
		return nil, err
	}
	return fillGaps(whole, leaves), nil
}

// fillGaps stretches the leaves over the windows that were counted empty, so that together they are the whole window.
func fillGaps(whole state.Slice, leaves []state.Slice) []state.Slice {
	if len(leaves) == 0 {
		return []state.Slice{whole}
	}
	for i := range leaves {
		if i == 0 {
			leaves[i].From = whole.From
		}
		if i+1 < len(leaves) {
			leaves[i].To = leaves[i+1].From
		} else {
			leaves[i].To = whole.To
		}
	}
	return leaves
}

// edges returns the seconds of the first row and behind the last row of a window, where halving begins.
func (r *run) edges(ctx context.Context, whole state.Slice) (first, last time.Time, err error) {
	if whole.Strategy != state.Keyset { // nobody tells; empty halves cost a count each
		if first = whole.From; first.IsZero() {
			first = epoch
		}
		return first, whole.To, nil
	}
	ask := func(q fhir.Query, sort string) (at time.Time, err error) {
		q.Sort, q.Count = sort, 1
		err = r.pace.do(ctx, func() error {
			page, err := r.Client.Search(ctx, q)
			if err != nil {
				return err
			}
			return eachRow(page, func(row *fhir.Entry) error {
				if row.Type == whole.Type && at.IsZero() {
					at = row.LastUpdated.Truncate(time.Second)
				}
				return nil
			})
		})
		return at, err
	}
	for _, q := range windowQueries(&whole) {
		from, err := ask(q, "_lastUpdated")
		if err != nil {
			return first, last, err
		}
		to, err := ask(q, "-_lastUpdated")
		if err != nil {
			return first, last, err
		}
		if !from.IsZero() && (first.IsZero() || from.Before(first)) {
			first = from
		}
		if to.After(last) {
			last = to
		}
	}
	return first, last.Add(time.Second), nil
}
