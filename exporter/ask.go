package exporter

import (
	"context"
	"errors"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// askAsOf asks for a resource as of T. Of what is not known nothing is written, and nothing taken out.
func (t *typeRepair) askAsOf(ctx context.Context, id string, c *change, take func(*fhir.Entry) error) error {
	known, err := t.ask(ctx, func() error {
		if t.changes.searched && !t.profile.InstanceHistory {
			return t.askCurrent(ctx, id, c)
		}
		err := t.asOf(ctx, t.typ, id, t.job.TransactionTime, c, take)
		if t.changes.searched && notOffered(err) { // without_history says what becomes of it
			c.known, c.lost, err = false, true, nil
		}
		return err
	})
	if !known {
		c.known = false
	}
	return err
}

// notOffered tells that there is no history, be it of one resource.
func notOffered(err error) bool {
	var response *fhir.ResponseError
	return errors.Is(err, errNoHistory) || errors.As(err, &response) && response.NotOffered()
}

// askCurrent asks for the resource as it is, which may still be what it was at T.
func (t *typeRepair) askCurrent(ctx context.Context, id string, c *change) error {
	if !c.known {
		return nil // it was changed since
	}
	c.known = false // until now without a body
	row, later, err := t.readAsOf(ctx, t.typ, id)
	if err != nil || row == nil || later {
		return err
	}
	if c.takes(row, t.job.TransactionTime) {
		err = t.hold(c, row)
	}
	return err
}

// hold keeps the body of a version that was asked for.
func (t *typeRepair) hold(c *change, row *fhir.Entry) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.at, c.size, err = t.log.hold(row)
	return err
}

// ask asks for what the history of a resource tells, and whether it does: what the server does not give is a hole of the type.
// After many of them in a row it is not asked any more. An error that is not confined to the resource is returned.
func (t *typeRepair) ask(ctx context.Context, fn func() error) (known bool, err error) {
	t.mu.Lock()
	ended := t.barren >= maxReferenced
	if ended {
		t.holes[len(t.holes)-1].Rows = -1
	}
	t.mu.Unlock()
	if ended {
		return false, nil
	}
	err = fn()
	reason, ok := holeReason(err)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.barren = 0
		return true, nil
	case !ok || ctx.Err() != nil:
		return false, err
	}
	t.Log.ErrorContext(ctx, "the history of a resource cannot be read", "job", t.job.ID, "type", t.typ, "error", err)
	t.barren++
	for i := range t.holes {
		if hole := &t.holes[i]; hole.Reason == reason && hole.Rows >= 0 {
			hole.Rows++
			return false, nil
		}
	}
	t.holes = append(t.holes, state.Hole{Type: t.typ, Rows: 1, Reason: reason, History: true})
	return false, nil
}
