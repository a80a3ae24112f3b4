package fhir

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

const (
	// maxSamples is how many types are asked: the two biggest and the smallest that has rows.
	maxSamples = 3
	// sampleRows is how many rows of a type are read, and probeRows how many of them are asked about.
	sampleRows, probeRows = 10, 3
	// moreTypes is how many types beside the usual ones are looked at, once one with rows is known.
	moreTypes = 10
)

// usualTypes are the types that nearly every server has; the biggest and a small one are mostly among them.
var usualTypes = []string{
	"Observation", "Encounter", "Condition", "Patient", "Procedure", "ExplanationOfBenefit", "MedicationRequest", "Organization",
}

// sample is a type that is asked, with some of its rows.
type sample struct {
	typ string
	// count is the number of rows by method, -1 where it could not be counted.
	count  int64
	method CountMethod
	rows   []probeRow
	// patients are the ids of Patients that rows refer to, each once.
	patients []patientRef
}

type probeRow struct {
	id, version string
	updated     time.Time
}

// patientRef is a Patient that a row refers to by its element subject or patient.
type patientRef struct {
	id      string
	subject bool
}

// findSamples chooses the types that are asked: by their counts where the server counts, else the first with rows. Types that
// refuse to be searched are passed over.
func (p *probe) findSamples(ctx context.Context) error {
	var found []*sample
	var trouble error
	order, usual := p.order()
	for i, typ := range order {
		if i >= usual && (len(found) >= maxSamples || len(found) > 0 && i >= usual+moreTypes) {
			break
		}
		s, err := p.look(ctx, typ)
		switch {
		case isUnknown(ctx, err):
			trouble = err
		case err != nil && !isAnswer(err):
			return err
		case err == nil && s.count != 0:
			found = append(found, s)
		}
	}
	slices.SortStableFunc(found, func(a, b *sample) int { return cmp.Compare(b.count, a.count) })
	for len(found) > 0 && len(p.samples) < maxSamples {
		next := found[0]
		if len(p.samples) == maxSamples-1 {
			next = found[len(found)-1] // the small one
		}
		found = slices.DeleteFunc(found, func(s *sample) bool { return s == next })
		err := p.readRows(ctx, next)
		switch {
		case isUnknown(ctx, err):
			trouble = err
		case err != nil && !isAnswer(err):
			return err
		case err == nil && len(next.rows) > 0:
			p.samples = append(p.samples, next)
			p.profile.Types = append(p.profile.Types, next.typ)
		}
	}
	if len(p.samples) == 0 {
		return trouble // the types that were passed over for an error may be the ones that have rows
	}
	return nil
}

// order returns the types of the server, and how many of them are usual ones, which come first.
func (p *probe) order() (order []string, usual int) {
	for _, typ := range usualTypes {
		if p.statement.Offers(typ) {
			order = append(order, typ)
		}
	}
	usual = len(order)
	for _, typ := range p.statement.Types {
		if !slices.Contains(order[:usual], typ) {
			order = append(order, typ)
		}
	}
	return order, usual
}

// look counts a type, or reads some of its rows where it cannot be counted.
func (p *probe) look(ctx context.Context, typ string) (*sample, error) {
	s := &sample{typ: typ}
	var err error
	if s.count, s.method, err = p.size(ctx, typ); err != nil || s.count >= 0 {
		return s, err
	}
	if err = p.readRows(ctx, s); len(s.rows) == 0 {
		s.count = 0
	}
	return s, err
}

// readRows reads some rows of a type, unless it has been done.
func (p *probe) readRows(ctx context.Context, s *sample) error {
	if len(s.rows) > 0 {
		return nil
	}
	return p.read(ctx, Query{Type: s.typ, Count: sampleRows}, s.take)
}

// size counts a type for the choice of samples, -1 where that fails. After two types in a row that a method does not
// count it is not tried any more.
func (p *probe) size(ctx context.Context, typ string) (int64, CountMethod, error) {
	for _, method := range []struct {
		name  CountMethod
		fails *int
	}{{CountSummary, &p.summaryFails}, {CountTotal, &p.totalFails}} {
		if *method.fails >= 2 {
			continue
		}
		n, err := p.client.countBy(ctx, Query{Type: typ}, method.name)
		if err == nil {
			*method.fails = 0
			return n, method.name, nil
		}
		if !isAnswer(err) && !isUnknown(ctx, err) {
			return 0, CountNone, err
		}
		*method.fails++
	}
	return -1, CountNone, nil
}

// take remembers a row.
func (s *sample) take(e *Entry) {
	if e.Type != s.typ || e.ID == "" {
		return
	}
	if len(s.rows) < probeRows {
		s.rows = append(s.rows, probeRow{e.ID, e.Version, e.LastUpdated})
	}
	s.takePatient(e)
}

// takePatient remembers the Patient that a row refers to.
func (s *sample) takePatient(e *Entry) {
	if len(s.patients) >= sampleRows {
		return
	}
	var row struct {
		Subject, Patient struct{ Reference string }
	}
	if json.Unmarshal(e.Resource, &row) != nil {
		return // an element of this name with another shape
	}
	found := patientRef{}
	for reference, subject := range map[string]bool{row.Subject.Reference: true, row.Patient.Reference: false} {
		if typ, id, _, ok := splitReference(reference); ok && typ == "Patient" && !strings.Contains(reference, "|") {
			found = patientRef{id, subject}
		}
	}
	if found.id != "" && !slices.ContainsFunc(s.patients, func(known patientRef) bool { return known.id == found.id }) {
		s.patients = append(s.patients, found)
	}
}
