package exporter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
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
	rows   *sorter
	newest sighting
	at     time.Time // when the search was over
}

type sighting struct {
	id, version string
	updated     time.Time
}

// sightingBytes is how much is sorted at once of a type that was looked at. All types are before the first one is compared.
const sightingBytes = 512 << 10

// lookAround looks at each type when all of them were read.
func (r *run) lookAround(ctx context.Context, types []string) (all map[string]*sightings, err error) {
	if !r.profile.TypeHistory {
		return nil, nil
	}
	all = map[string]*sightings{}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(all))
		}
	}()
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
		return all, err
	}
	return all, r.measureLag(ctx, all)
}

func closeAll(all map[string]*sightings) error {
	var errs []error
	for _, seen := range all {
		errs = append(errs, seen.close())
	}
	return errors.Join(errs...)
}

// look searches a type for what was written since shortly before T. What the server does not let be searched so cannot be
// compared with its history.
func (r *run) look(ctx context.Context, typ string) (*sightings, error) {
	seen := &sightings{rows: newSorter(r.dir, typ+".seen")}
	seen.rows.limit = sightingBytes
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
		return seen, err
	case errors.As(err, &response) && response.NotOffered():
	default:
		r.Log.WarnContext(ctx, "the history of a type cannot be compared with a search", "job", r.job.ID, "type", typ, "error", err)
	}
	return seen, nil
}

func (s *sightings) take(row *fhir.Entry) error {
	if row.LastUpdated.After(s.newest.updated) {
		s.newest = sighting{row.ID, row.Version, row.LastUpdated}
	}
	return s.rows.add(row.ID + "\t" + row.Version + "\t" + formatTime(row.LastUpdated))
}

// close removes the files. It may be called on nil.
func (s *sightings) close() error {
	if s == nil {
		return nil
	}
	return s.rows.close()
}

// nextSighting is one of no id behind the last one.
func nextSighting(lines *sortedLines) (s sighting, err error) {
	line, more, err := lines.next()
	if err != nil || !more {
		return s, err
	}
	fields := strings.Split(line, "\t")
	if len(fields) != 3 {
		return s, errTornLog
	}
	s.id, s.version = fields[0], fields[1]
	s.updated, err = parseTime(fields[2])
	return s, local(err)
}

// measureLag finds out whether histories lag, by the newest row of all that was seen, and how much: a deletion leaves
// nothing in a search, so that only time tells when the history of its type has it.
func (r *run) measureLag(ctx context.Context, all map[string]*sightings) error {
	typ, newest := "", sighting{}
	for of, seen := range all {
		if seen.newest.updated.After(newest.updated) {
			typ, newest = of, seen.newest
		}
	}
	if typ == "" {
		return nil
	}
	waited, err := r.awaitShown(ctx, typ, func() error {
		shown := false
		err := r.history(ctx, typ, "", newest.updated.Add(-time.Second), nil, func(row *fhir.Entry) error {
			shown = shown || row.Type == typ && row.ID == newest.id && newest.in(row)
			return nil
		})
		if err == nil && !shown {
			return r.missed(ctx, typ, newest.id)
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
func (r *run) shownChanges(ctx context.Context, typ string, crawled []*state.Slice, seen *sightings) (h *changeLog, err error) {
	const name = "changes"
	if seen == nil {
		return r.changesOf(ctx, typ, name)
	}
	_, err = r.awaitShown(ctx, typ, func() error {
		err := sleep(ctx, time.Until(seen.at.Add(r.lag)))
		if err != nil {
			return err
		}
		if h, err = r.changesOf(ctx, typ, name); h == nil || err != nil {
			return err
		}
		if err = r.compare(ctx, typ, h, crawled, seen); err != nil {
			err = errors.Join(err, h.close())
			h = nil
		}
		return err
	})
	if errors.Is(err, errLagging) {
		r.Log.ErrorContext(ctx, "the history of a type lags too much", "job", r.job.ID, "type", typ)
		return nil, &lostHistory{lagReason}
	}
	return h, err
}

// compare fails with errLagging where the history lacks what was seen of a resource that still exists or is known to be deleted,
// or where it has a resource in older versions than the crawl wrote.
func (r *run) compare(ctx context.Context, typ string, h *changeLog, crawled []*state.Slice, seen *sightings) error {
	lines, err := seen.rows.sorted()
	if err != nil {
		return err
	}
	next, err := nextSighting(lines)
	if err != nil {
		return err
	}
	return h.each(func(part *changes) error {
		for next.id != "" && part.holds(next.id) {
			c := part.byID[next.id]
			if c == nil || !c.top || newer(next.version, next.updated, c.topVersion, c.topUpdated) {
				if err := r.missed(ctx, typ, next.id); err != nil {
					return err
				}
			}
			if next, err = nextSighting(lines); err != nil {
				return err
			}
		}
		if len(part.byID) == 0 { // nothing has changed: no look through all that was written
			return nil
		}
		for _, slice := range crawled {
			err := eachWritten(r.dir, slice.Seq, slice.IndexSize, func(id, version string) error {
				c := part.byID[id]
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
	})
}
