package fhir

import (
	"context"
	"time"
)

// filter is probe P2: a window after all data holds nothing. Of the other types P1 has counted that window.
func (p *probe) filter(ctx context.Context) error {
	got, err := p.first(ctx, "filtering by _lastUpdated", func(ctx context.Context, s *sample) (answer, error) {
		rows := 0
		err := p.read(ctx, Query{Type: s.typ, From: never, Count: 1}, func(*Entry) { rows++ })
		return verdict(rows == 0), err
	})
	p.profile.Filter = got
	return err
}

// maxEmptyPages bounds a chain of pages without rows.
const maxEmptyPages = 20

// read reads the first page that has rows and hands out those of the type that was asked for.
func (p *probe) read(ctx context.Context, q Query, take func(*Entry)) error {
	_, err := p.page(ctx, q, take)
	return err
}

// page is read that returns the page, too. One database gives empty pages with a next link before it.
func (p *probe) page(ctx context.Context, q Query, take func(*Entry)) (*Page, error) {
	page, err := p.client.search(ctx, q)
	for empty := 0; err == nil; empty++ {
		rows := 0
		err = page.Each(func(e *Entry) error {
			if e.Mode != "outcome" {
				rows++
			}
			if e.Type == q.Type {
				take(e)
			}
			return nil
		})
		next, broken := page.Next()
		if err != nil || rows > 0 || next == "" || broken != nil || empty >= maxEmptyPages {
			break
		}
		page, err = p.client.Follow(ctx, q.Type, "searchset", next)
	}
	return page, err
}

// bounds is probe P3. A server whose "lt" names the end of a second, not its beginning, passes when it is asked for the
// second before; a server that ignores "lt" passes neither.
func (p *probe) bounds(ctx context.Context) error {
	if !p.profile.Filter {
		return nil
	}
	meanings := map[bool]int{} // of lt: whether it names the end of a second
	got, err := p.all(ctx, "two bounds of _lastUpdated", func(ctx context.Context, s *sample) (answer, error) {
		inclusive := false
		said, err := p.steady(ctx, s, func(row probeRow) (answer, error) {
			if row.updated.IsZero() {
				p.remark("%s: resources carry no meta.lastUpdated", s.typ)
				return no, nil
			}
			for _, inclusive = range []bool{false, true} {
				honoured, err := p.honours(ctx, s.typ, row, time.Second, inclusive)
				if honoured || err != nil {
					return verdict(honoured), err
				}
			}
			return no, nil
		})
		if said == yes {
			meanings[inclusive]++
		}
		return said, err
	})
	if len(meanings) > 1 {
		p.remark("types disagree on what lt means: windows of _lastUpdated are not used")
		got = no
	}
	p.profile.Bounds = got == yes
	p.profile.InclusiveLT = p.profile.Bounds && meanings[true] > 0
	return err
}

// milliseconds is probe P4, put to the first type with a row that can show it: a row in the first millisecond of a second
// looks the same on a server that cuts fractions.
func (p *probe) milliseconds(ctx context.Context) error {
	if !p.profile.Bounds {
		return nil
	}
	for _, s := range p.samples {
		got, err := p.one(ctx, "milliseconds of _lastUpdated", s, func(ctx context.Context, s *sample) (answer, error) {
			return p.steady(ctx, s, func(row probeRow) (answer, error) {
				if row.updated.IsZero() || row.updated.Truncate(time.Millisecond).Equal(row.updated.Truncate(time.Second)) {
					return unasked, nil
				}
				honoured, err := p.honours(ctx, s.typ, row, time.Millisecond, p.profile.InclusiveLT)
				return verdict(honoured), err
			})
		})
		if err != nil || got != unasked {
			p.profile.Milliseconds = got == yes
			return err
		}
	}
	return nil
}

// steadyTries is how often rows are read anew because each of them was changed while it was asked about.
const steadyTries = 5

// steady puts a question to the rows of a type until one answers it. What a row says that was changed meanwhile says
// nothing: "no", since it has left its window, or "yes", since it is not in a window that a poorer server would find it in.
// Then the rows are read anew, so that live traffic does not make a server look other than it is.
func (p *probe) steady(ctx context.Context, s *sample, ask func(probeRow) (answer, error)) (answer, error) {
	for range steadyTries {
		changed := false
		for _, row := range s.rows {
			said, err := ask(row)
			if err != nil {
				return no, err
			}
			if said == unasked {
				continue
			}
			still, err := p.unchanged(ctx, s.typ, row)
			if err != nil {
				return no, err
			}
			if still {
				return said, nil
			}
			changed = true
		}
		if !changed {
			return unasked, nil
		}
		// The rows stay as they are until others are read: each sample has some.
		fresh := &sample{typ: s.typ}
		if err := p.readRows(ctx, fresh); err != nil {
			return no, err
		}
		if len(fresh.rows) == 0 {
			return no, nil
		}
		s.rows = fresh.rows
	}
	return no, nil
}

// unchanged tells whether a row still is as it was read.
func (p *probe) unchanged(ctx context.Context, typ string, row probeRow) (bool, error) {
	same := false
	err := p.read(ctx, Query{Type: typ, Criteria: []QueryParam{{"_id", row.id}}}, func(e *Entry) {
		same = same || e.ID == row.id && e.LastUpdated.Equal(row.updated)
	})
	return same, err
}

// honours tells whether a window around a row holds it and its neighbours do not. One row that passes is enough: live
// traffic may change another in between.
func (p *probe) honours(ctx context.Context, typ string, row probeRow, granule time.Duration, inclusive bool) (bool, error) {
	floor := row.updated.Truncate(granule)
	for _, window := range []struct {
		from, to time.Time
		want     bool
	}{
		{floor, floor.Add(granule), true},
		{floor.Add(granule), never, false},
		{floor.Add(-granule), floor, false},
	} {
		q := Query{
			Type: typ, Criteria: []QueryParam{{"_id", row.id}}, From: window.from, To: window.to, Count: 10, inclusive: inclusive,
		}
		found := false
		err := p.read(ctx, q, func(e *Entry) { found = found || e.ID == row.id })
		if err != nil || found != window.want {
			return false, err
		}
	}
	return true, nil
}

// sort is probe P5. A row that is written between the search for ids and the reading of bodies looks out of order, so a
// failure is asked again.
func (p *probe) sort(ctx context.Context) error {
	got, err := p.all(ctx, "sorting by _lastUpdated", func(ctx context.Context, s *sample) (answer, error) {
		for _, order := range []string{"_lastUpdated", "-_lastUpdated"} {
			sorted, err := p.sorted(ctx, s, order)
			for try := 1; try < steadyTries && err == nil && !sorted; try++ {
				sorted, err = p.sorted(ctx, s, order)
			}
			if err != nil || !sorted {
				return no, err
			}
		}
		return yes, nil
	})
	p.profile.Sort = got == yes
	p.profile.Keyset = p.profile.Filter && p.profile.Bounds && p.profile.Sort
	return err
}

func (p *probe) sorted(ctx context.Context, s *sample, order string) (bool, error) {
	var last time.Time
	monotone := true
	err := p.read(ctx, Query{Type: s.typ, Sort: order, Count: 50}, func(e *Entry) {
		s.takePatient(e)
		if !last.IsZero() {
			monotone = monotone && (e.LastUpdated.Equal(last) || e.LastUpdated.After(last) == (order == "_lastUpdated"))
		}
		last = e.LastUpdated
	})
	return monotone, err
}
