package fhir

import (
	"context"
	"strings"
)

// counts is probe P1: a method counts when its totals are none for an unknown id and for a window after all data.
func (p *probe) counts(ctx context.Context) error {
	for _, method := range []CountMethod{CountSummary, CountTotal} {
		what := "counting by _summary=count"
		if method == CountTotal {
			what = "counting by _total=accurate"
		}
		got, err := p.all(ctx, what, func(ctx context.Context, s *sample) (answer, error) { return p.countsBy(ctx, s, method) })
		if err != nil {
			return err
		}
		if got == yes {
			p.profile.CountMethod, p.profile.Counts = method, true
			if strings.Contains(strings.ToLower(p.statement.Software), "medplum") {
				p.profile.CountsUpTo = medplumExact
			}
			return p.idLists(ctx)
		}
	}
	return nil
}

func (p *probe) countsBy(ctx context.Context, s *sample, method CountMethod) (answer, error) {
	for _, control := range []struct {
		q    Query
		none bool
	}{
		{Query{Type: s.typ}, false}, // mostly known from the choice of samples
		{Query{Type: s.typ, Criteria: []QueryParam{{"_id", UnknownID}}}, true},
		{Query{Type: s.typ, From: never}, true},
	} {
		n, err := s.count, error(nil)
		if control.none || s.method != method {
			n, err = p.client.countBy(ctx, control.q, method)
		}
		if !control.none {
			s.count, s.method = n, method
		}
		if err != nil || (n == 0) != control.none {
			return no, err
		}
	}
	if method == CountTotal {
		return p.totalsAreExact(ctx, s)
	}
	return yes, nil
}

// medplumExact is the number of rows above which Medplum estimates, whatever it is asked for (its source, getCount).
const medplumExact = 1_000_000

// totalsAreExact asks for two rows on pages of one: some servers only estimate the total until the last page.
func (p *probe) totalsAreExact(ctx context.Context, s *sample) (answer, error) {
	if strings.Contains(strings.ToLower(p.statement.Software), "google") { // documented, and two rows may be estimated well
		return no, nil
	}
	if len(s.rows) < 2 {
		return yes, nil
	}
	n, err := p.client.countBy(ctx, Query{Type: s.typ, Criteria: []QueryParam{{"_id", s.rows[0].id + "," + s.rows[1].id}}}, CountTotal)
	return verdict(n <= 2), err // one may just have been deleted
}

// count counts by the method that P1 found.
func (p *probe) count(ctx context.Context, q Query) (int64, error) {
	q.inclusive = p.profile.InclusiveLT
	return p.client.countBy(ctx, q, p.profile.CountMethod)
}

// idLists asks for two ids at once; that an unknown one finds nothing has been asked by P1.
func (p *probe) idLists(ctx context.Context) error {
	got, err := p.first(ctx, "lists of _id", func(ctx context.Context, s *sample) (answer, error) {
		if len(s.rows) < 2 {
			return unasked, nil
		}
		both, err := p.count(ctx, Query{Type: s.typ, Criteria: []QueryParam{{"_id", s.rows[0].id + "," + s.rows[1].id}}})
		return verdict(both == 2), err
	})
	p.profile.IDLists = got
	return err
}

// undated is probe P11: rows without lastUpdated lie in no window, so a window up to the end of time counts fewer. Rows
// that are deleted between the two counts look the same, so a difference is counted again and the smaller one stands.
func (p *probe) undated(ctx context.Context) error {
	if !p.profile.Counts || !p.profile.Bounds {
		return nil
	}
	_, err := p.all(ctx, "rows without lastUpdated", func(ctx context.Context, s *sample) (answer, error) {
		fewest := s.count
		for range steadyTries {
			dated, err := p.count(ctx, Query{Type: s.typ, To: never})
			if err != nil {
				return no, err
			}
			if fewest = min(fewest, s.count-dated); fewest <= 0 {
				return yes, nil
			}
			if s.count, err = p.count(ctx, Query{Type: s.typ}); err != nil {
				return no, err
			}
		}
		p.profile.Undated += fewest
		p.remark("%s has rows without meta.lastUpdated", s.typ)
		return unasked, nil
	})
	p.profile.Keyset = p.profile.Keyset && p.profile.Undated == 0
	return err
}
