package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// A history may lag behind the searches: one that is read from an index, or from another replica. What changed a moment ago
// is then found where it was by neither, and what the history shows of a resource is not the newest version at T. So a search
// is asked for what was written since shortly before T, and a history that is read after it has to show that.

const (
	// historyPatience is how long in a row an export waits for a history that lags.
	historyPatience = 5 * time.Minute
	// maxHistoryPause is the longest pause between two looks at such a history.
	maxHistoryPause = 30 * time.Second
)

// lagReason is the code of a hole where a history lags.
const lagReason = "transient"

// errLagging tells that a history did not show in time what was read before.
var errLagging = fmt.Errorf("the history does not show what was read before it: %w", errIncomplete)

// patience is how long a job has waited for histories, over all its workers: what never shows costs it once, not once a resource.
type patience struct {
	mu    sync.Mutex
	began time.Time // of the first wait since a history has caught up
}

// awaitShown calls look until it does not fail with errLagging, with growing pauses, as long as there is patience.
func (r *run) awaitShown(ctx context.Context, typ string, look func() error) (waited bool, err error) {
	p := &r.patience
	for pause := firstPause; ; pause = min(2*pause, maxHistoryPause) {
		err := look()
		p.mu.Lock()
		switch {
		case err == nil && waited:
			p.began = time.Time{}
		case errors.Is(err, errLagging) && p.began.IsZero():
			p.began = time.Now()
		}
		over := time.Since(p.began) > historyPatience
		p.mu.Unlock()
		if !errors.Is(err, errLagging) || over {
			return waited, err
		}
		r.stages.wait(r.job.ID, "waiting for the FHIR server's history", pause)
		r.Log.WarnContext(ctx, "the history lags behind the searches, it is waited for", "job", r.job.ID, "type", typ, "seconds", pause.Seconds())
		if err := sleep(ctx, pause); err != nil {
			return true, err
		}
		waited = true
	}
}

// sightings are the versions of one type that a search has found, of what was written since shortly before T.
type sightings struct {
	byID map[string]sighting
	at   time.Time // when the search was over
}

type sighting struct {
	version string
	updated time.Time
}

// lookAround looks at each type when all of them were read.
func (r *run) lookAround(ctx context.Context, types []string) (map[string]*sightings, error) {
	if !r.profile.TypeHistory {
		return nil, nil
	}
	all := map[string]*sightings{}
	var mu sync.Mutex
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(r.Workers)
	for _, typ := range types {
		group.Go(func() error {
			return guarded(func() error {
				seen, err := r.look(groupCtx, typ)
				mu.Lock()
				defer mu.Unlock()
				all[typ] = seen
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return all, r.measureLag(ctx, all)
}

// look searches a type for what was written since shortly before T. What the server does not let be searched so cannot be
// compared with its history.
func (r *run) look(ctx context.Context, typ string) (*sightings, error) {
	seen := &sightings{byID: map[string]sighting{}}
	var err error
	if r.profile.Bounds {
		// A second later than the history begins, which not all servers compare alike.
		q := fhir.Query{Type: typ, From: r.job.TransactionTime.Add(time.Second - r.repairSpan()), Count: r.pageSize(), IDsOnly: true}
		if q.Sort = "_lastUpdated"; !r.profile.Sort {
			q.Sort, q.ServerPages = "", true
		}
		if _, err = r.tail(ctx, q, seen.take); fhir.StatusOf(err) == http.StatusBadRequest { // it may be _elements that is refused
			q.IDsOnly = false
			_, err = r.tail(ctx, q, seen.take)
		}
	}
	seen.at = time.Now()
	var response *fhir.ResponseError
	switch _, confined := holeReason(err); {
	case err == nil:
	case !confined || ctx.Err() != nil:
		return nil, err
	case errors.As(err, &response) && response.NotOffered():
	default:
		r.Log.WarnContext(ctx, "the history of a type cannot be compared with a search", "job", r.job.ID, "type", typ, "error", err)
	}
	return seen, nil
}

func (s *sightings) take(row *fhir.Entry) error {
	if had, known := s.byID[row.ID]; !known || newer(row.Version, row.LastUpdated, had.version, had.updated) {
		s.byID[row.ID] = sighting{row.Version, row.LastUpdated}
	}
	return nil
}

// measureLag finds out whether histories lag, by the newest row of all that was seen, and how much: a deletion leaves
// nothing in a search, so that only time tells when the history of its type has it.
func (r *run) measureLag(ctx context.Context, all map[string]*sightings) error {
	typ, id, newest := "", "", sighting{}
	for of, seen := range all {
		for one, s := range seen.byID {
			if s.updated.After(newest.updated) {
				typ, id, newest = of, one, s
			}
		}
	}
	if typ == "" {
		return nil
	}
	waited, err := r.awaitShown(ctx, typ, func() error {
		shown := false
		err := r.history(ctx, typ, "", newest.updated.Add(-time.Second), nil, func(row *fhir.Entry) error {
			shown = shown || row.Type == typ && row.ID == id && newest.in(row)
			return nil
		})
		if err == nil && !shown {
			return r.missed(ctx, typ, id)
		}
		return err
	})
	if _, confined := holeReason(err); confined && ctx.Err() == nil { // what comes of it is found out type by type
		return nil
	}
	if err != nil || !waited {
		return err
	}
	var now time.Time
	err = r.pace.do(ctx, func() error {
		now, err = r.Client.Now(ctx, typ)
		return err
	})
	r.lag = min(now.Add(time.Second).Sub(newest.updated), historyPatience) // the clock has whole seconds, it may be
	r.Log.WarnContext(ctx, "the history lags behind the searches", "job", r.job.ID, "seconds", r.lag.Seconds())
	return err
}

// missed fails with errLagging for a resource that a history lacks, unless it was expunged since it was seen.
func (r *run) missed(ctx context.Context, typ, id string) error {
	status, err := r.presence(ctx, typ, id)
	if _, confined := holeReason(err); err != nil && (!confined || ctx.Err() != nil) {
		return err
	}
	if err == nil && status == http.StatusNotFound {
		return nil
	}
	return errLagging
}

// in tells whether an entry of a history is the version, or one that followed.
func (s sighting) in(row *fhir.Entry) bool {
	return !newer(s.version, s.updated, row.Version, row.LastUpdated)
}

// shownChanges is changesOf as soon as the history shows what was seen before it, and what the crawl wrote. It fails with a
// lostHistory where that takes too long.
func (r *run) shownChanges(ctx context.Context, typ string, crawled []*state.Slice, seen *sightings) (h *changes, err error) {
	if seen == nil {
		return r.changesOf(ctx, typ)
	}
	_, err = r.awaitShown(ctx, typ, func() error {
		err := sleep(ctx, time.Until(seen.at.Add(r.lag)))
		if err != nil {
			return err
		}
		h = nil // it may be large
		if h, err = r.changesOf(ctx, typ); h == nil || err != nil {
			return err
		}
		return r.compare(ctx, typ, h, crawled, seen)
	})
	if errors.Is(err, errLagging) {
		r.Log.ErrorContext(ctx, "the history of a type lags too much", "job", r.job.ID, "type", typ)
		return nil, &lostHistory{lagReason}
	}
	return h, err
}

// compare fails with errLagging where the history lacks what was seen of a resource that still exists or is known to be deleted,
// or where it has a resource in older versions than the crawl wrote.
func (r *run) compare(ctx context.Context, typ string, h *changes, crawled []*state.Slice, seen *sightings) error {
	for id, s := range seen.byID {
		c := h.byID[id]
		if c != nil && c.top && !newer(s.version, s.updated, c.topVersion, c.topUpdated) {
			continue
		}
		if err := r.missed(ctx, typ, id); err != nil {
			return err
		}
		delete(seen.byID, id)
	}
	for _, part := range crawled {
		err := eachWritten(r.dir, part.Seq, part.IndexSize, func(id, version string) error {
			c := h.byID[id]
			if c != nil && c.top && newer(version, time.Time{}, c.topVersion, time.Time{}) { // by number alone
				return errLagging
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
