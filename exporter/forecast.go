package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

const (
	// sampleRows is how many rows of a type are read to see how large they are.
	sampleRows = 10
	// bisectWaste is how many pages of a bisected type are asked for in vain, in percent.
	bisectWaste = 50
)

// Forecast is what an export would do, before it does anything.
type Forecast struct {
	Software string
	// PageSize is the largest number of rows asked for in one page, Workers the largest number of requests at once.
	PageSize, Workers int
	// Members is the number of Patients of a Group, -1 at the other levels.
	Members int
	Types   []TypeForecast
	// Referenced are the types of which the export holds what its resources refer to. Nobody can say before how many.
	Referenced []string
	// Remarks are what the export would say in its error file so far.
	Remarks []string
	// PageTime is how long one page of the largest type took just now, 0 where none could be had.
	PageTime time.Duration
}

// TypeForecast is the part of a Forecast on one type.
type TypeForecast struct {
	Type string
	// Strategy is how the type is read: keyset, bisect or paging, with what is asked in front where it is not the whole type.
	Strategy string
	Slices   int
	// Rows is how many rows are read, by the server's counts; the export of Patients or a Group may hold a part of them. -1
	// where it does not count.
	Rows int64
	// Requests is how many requests that takes; where Rows is -1, the least that it takes.
	Requests int64
	// Bytes is the size of those rows, by a sample; -1 where Rows is, or no sample could be had.
	Bytes int64
	// Remark says why a type is not read, or is empty.
	Remark string
}

// Known tells whether the server counts everything that is read. Where it does not, Duration is the least that it takes.
func (f *Forecast) Known() bool {
	return !slices.ContainsFunc(f.Types, func(typ TypeForecast) bool { return typ.Rows < 0 })
}

// Duration is how long the requests take at the speed of one page just now, when all workers are busy.
func (f *Forecast) Duration() time.Duration {
	var requests int64
	for _, typ := range f.Types {
		requests += typ.Requests
	}
	return time.Duration(requests) * f.PageTime / time.Duration(max(1, f.Workers))
}

// Foresee plans an export without making it. It asks the upstream as a plan does, by counts and small pages, and stores
// nothing; of cfg it needs Client and Log, and no Store. It fails as an export would fail before its first page.
func Foresee(ctx context.Context, cfg Config, kickoff state.Kickoff) (_ *Forecast, err error) {
	if cfg.Spool, err = os.MkdirTemp(cfg.Spool, "plan-"); err != nil {
		return nil, local(err)
	}
	defer func() { err = errors.Join(err, local(os.RemoveAll(cfg.Spool))) }()
	engine, err := New(cfg)
	if err != nil {
		return nil, err
	}
	r := &run{Exporter: engine, dir: cfg.Spool, listing: make(chan struct{}, 1), job: &state.Job{Kickoff: kickoff}}
	r.pace = &pace{giveUp: time.Minute, limiter: engine.limiter}
	if err := r.probe(ctx); err != nil {
		return nil, err
	}
	r.job.TransactionTime = time.Now().UTC().Truncate(time.Second).Add(time.Second)
	if err := r.loadCohort(ctx); err != nil {
		return nil, err
	}
	return r.foresee(ctx)
}

func (r *run) foresee(ctx context.Context) (*Forecast, error) {
	f := &Forecast{Software: r.profile.Software, PageSize: r.pageSize(), Workers: r.Workers, Members: -1}
	if r.cohort != nil {
		f.Members = len(r.cohort.patients)
	}
	types, referenced, err := r.splitTypes(ctx)
	if err != nil {
		return nil, err
	}
	f.Referenced = referenced
	for _, typ := range types {
		one, err := r.foreseeType(ctx, typ)
		if err != nil {
			return nil, fmt.Errorf("plan %s: %w", typ, err)
		}
		f.Types = append(f.Types, one)
	}
	largest := slices.MaxFunc(append(f.Types, TypeForecast{}), func(a, b TypeForecast) int { return int(a.Requests - b.Requests) })
	for _, typ := range []string{largest.Type, "Patient"} {
		if typ == "" || f.PageTime > 0 {
			continue
		}
		_, f.PageTime, err = r.sample(ctx, typ, f.PageSize)
		if status := fhir.StatusOf(err); status != 0 && status != 401 { // it wants a Patient in each search
			err = nil
		}
		if err != nil {
			return nil, err
		}
	}
	for _, issue := range r.job.Issues {
		f.Remarks = append(f.Remarks, issue.Text)
	}
	return f, err
}

func (r *run) foreseeType(ctx context.Context, typ string) (TypeForecast, error) {
	one := TypeForecast{Type: typ}
	cut, err := r.planType(ctx, typ)
	var response *fhir.ResponseError
	if errors.As(err, &response) && response.NotOffered() {
		one.Remark = "not offered by the server"
		return one, nil
	}
	if err != nil || len(cut) == 0 {
		return one, err
	}
	one.Strategy, one.Slices = wayOf(cut[0]), len(cut)
	average, _, err := r.sample(ctx, typ, sampleRows)
	refused := fhir.StatusOf(err)
	switch {
	case refused == 0 || refused == 401:
	case len(cut[0].Lists) > 0: // it wants a Patient in each search
		err = nil
	default:
		one.Remark, err = fmt.Sprintf("the server answers %d: resources will be missing", refused), nil
	}
	if err != nil {
		return one, err
	}
	for _, slice := range cut {
		requests, rows, err := r.requests(ctx, slice, average)
		if err != nil {
			return one, err
		}
		one.Requests += requests
		if slice.Counted < 0 || one.Rows < 0 {
			one.Rows, one.Bytes = -1, -1
			continue
		}
		one.Rows, one.Bytes = one.Rows+rows, one.Bytes+rows*average
	}
	if refused != 0 {
		one.Bytes = -1
	}
	return one, nil
}

// wayOf names how a slice is read.
func wayOf(slice state.Slice) string {
	inner := string(slice.Strategy)
	switch {
	case len(slice.Lists) == 0:
		return inner
	case slice.Lists[0] == compartmentSearch:
		return StrategyCompartment + ", " + inner
	case slice.ListSize == 1:
		return StrategyPatients + ", " + inner
	case len(slice.Lists[0]) > len(hasPrefix) && slice.Lists[0][:len(hasPrefix)] == hasPrefix:
		return StrategyHas + ", " + inner
	case slice.Post:
		return StrategyLists + " as forms, " + inner
	}
	return StrategyLists + ", " + inner
}

// requests is how many requests a slice takes, by the cost model, and how many rows they bring. Of a slice that is not
// counted it is the least: one page, or as many searches as it has lists.
func (r *run) requests(ctx context.Context, slice state.Slice, average int64) (requests, rows int64, err error) {
	perPage := min(int64(r.pageSize()), max(minPageRows, pageBytes/max(1, average)))
	rows = max(0, slice.Counted)
	if len(slice.Lists) > 0 {
		members, err := r.members(ctx, slice.Newcomers)
		if err != nil {
			return 0, 0, err
		}
		all, err := r.allPatients(ctx)
		if err != nil {
			return 0, 0, err
		}
		if all > 0 {
			rows = int64(float64(rows) * min(1, float64(len(members.patients))/float64(all)))
		}
		requests = int64(len(slice.Lists) * members.lists(slice.ListSize))
	}
	pages := rows/perPage + 1
	switch slice.Strategy {
	case state.Bisect:
		pages += pages * bisectWaste / 100
	case state.Paging: // counted before and after
		if slice.Counted >= 0 {
			requests *= 3
			pages += 2
		}
	}
	if slice.Counted < 0 {
		return max(requests, 1), 0, nil
	}
	return requests + pages + 1, rows, nil // and a count in the end
}

// sample reads a page of a type and tells how many bytes its rows have on average and how long it took.
func (r *run) sample(ctx context.Context, typ string, rows int) (average int64, took time.Duration, err error) {
	err = r.pace.do(ctx, func() error {
		began, size, n := time.Now(), int64(0), int64(0)
		page, err := r.Client.Search(ctx, fhir.Query{Type: typ, Count: rows})
		if err != nil {
			return err
		}
		err = page.Each(func(row *fhir.Entry) error {
			size, n = size+row.Size()+1, n+1
			return nil
		})
		average, took = size/max(1, n), time.Since(began)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return average, took, nil
}
