package exporter

import (
	"context"
	"fmt"

	"sidecar/exporter/fhir"
)

// skip tells which entries are not rows: remarks of the server, and resources that were included. Rows without their
// resource are kept for later.
func (w *walk) skip(row *fhir.Entry) (bool, error) {
	switch {
	case row.Mode == "outcome" || row.Type == "OperationOutcome":
		code, severe := fhir.SevereCode(row.Resource)
		if !severe {
			w.noted, w.warned = true, w.warned || fhir.IsWarning(row.Resource)
			return true, nil
		}
		w.told = code
		if w.tolerant {
			return true, nil
		}
		return true, &partialError{code}
	case row.Mode == "include":
		return true, nil
	case row.Type != w.slice.Type:
		return true, fmt.Errorf("row of another type: %w", errSuperset)
	case row.ID == "":
		return true, fmt.Errorf("row without an id: %w", fhir.ErrMalformed)
	case row.Size() == 0:
		w.bare = append(w.bare, row.ID)
		return true, nil
	}
	return false, nil
}

// eachRow hands the rows of a page to fn. An answer of which the server says itself that it is not whole is an error, so that
// it never passes for one with fewer rows.
func eachRow(page *fhir.Page, fn func(*fhir.Entry) error) error {
	return page.Each(func(row *fhir.Entry) error {
		if row.Mode != "outcome" && row.Type != "OperationOutcome" {
			return fn(row)
		}
		if code, severe := fhir.SevereCode(row.Resource); severe {
			return &partialError{code}
		}
		return nil
	})
}

// eachBare reads the rows that came without their resource on the current page one by one, and tells how many of them are
// not there any more.
func (w *walk) eachBare(ctx context.Context, take func(*fhir.Entry) error) (missing int, err error) {
	for _, id := range w.bare {
		row, err := w.Client.ReadEntry(ctx, w.slice.Type, id)
		if gone(err) {
			missing++
			continue
		}
		if err != nil {
			return missing, err
		}
		if err := take(row); err != nil {
			return missing, err
		}
	}
	return missing, nil
}
