package exporter

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"sidecar/exporter/fhir"
)

// asOf asks the resource's own history for its version at or before a time, and hands it to take, which may be nil, after
// versions that it turned out to be newer than. Deletions without a time are placed by their neighbours, else by the server:
// those that it lists since a millisecond later came later. An expunged resource has no version. It fails with errNoHistory
// where the server has the resource, or remembers its deletion, but not its history, and with errLagging where that does not
// show in time the newest version that is known.
func (r *run) asOf(ctx context.Context, typ, id string, until time.Time, c *change, take func(*fhir.Entry) error) error {
	_, err := r.awaitShown(ctx, typ, func() error { return r.askHistory(ctx, typ, id, until, c, take) })
	return err
}

func (r *run) askHistory(ctx context.Context, typ, id string, until time.Time, c *change, take func(*fhir.Entry) error) error {
	newest, shown := sighting{version: c.topVersion, updated: c.topUpdated}, !c.top
	*c = change{top: c.top, topVersion: c.topVersion, topUpdated: c.topUpdated, topDeleted: c.topDeleted, gone: c.gone}
	var line timeline
	var last change // the newest that the history shows; first where versions without a time do not tell
	first := false
	err := r.history(ctx, typ, id, beginning, &line, func(row *fhir.Entry) error {
		shown = shown || newest.in(row)
		first = first || !last.top && row.Deleted
		last.raise(row, until)
		if row.Deleted && row.LastUpdated.IsZero() {
			c.deletion(row.Version).stand(line.stand(), line.inPage)
			return nil
		}
		line.pass(row.LastUpdated)
		if row.LastUpdated.After(until) && (c.next.IsZero() || row.LastUpdated.Before(c.next)) {
			c.next = row.LastUpdated
		}
		before := *c
		if !c.takes(row, until) || row.Deleted || take == nil {
			return nil
		}
		err := take(row)
		if err != nil { // the page may be read again
			*c = before
		}
		return err
	})
	if gone(err) {
		c.known, c.lost, c.deletions = false, true, nil
		return r.expunged(ctx, typ, id)
	}
	if err != nil {
		return err
	}
	if shown && c.gone && !last.topDeleted && !first {
		shown, err = r.existsAgain(ctx, typ, id)
	}
	if err != nil {
		return err
	}
	if !shown {
		return errLagging
	}
	line.close()
	if c.place(until, r.job.Kickoff.Since, line.unsorted); !c.undated {
		return nil
	}
	later, err := r.since(ctx, typ, id, until)
	if err != nil {
		return err
	}
	for _, d := range c.deletions {
		switch {
		case later[d.version]:
			d.latest, d.earliest = time.Time{}, until.Add(time.Millisecond)
		case !d.before(until):
			d.latest = until
			fallthrough
		case d.after(until):
			d.earliest = time.Time{}
		}
	}
	c.undated = false
	c.place(until, r.job.Kickoff.Since, false)
	return nil
}

// since asks which versions of a resource came after a time. It fails with errNoHistory where the server lists others, too.
func (r *run) since(ctx context.Context, typ, id string, after time.Time) (map[string]bool, error) {
	later := map[string]bool{}
	err := r.history(ctx, typ, id, after.Add(time.Millisecond), nil, func(row *fhir.Entry) error {
		if !row.LastUpdated.IsZero() && row.LastUpdated.Before(after.Add(-time.Second)) {
			return fmt.Errorf("%w as of a time", errNoHistory)
		}
		later[row.Version] = true
		return nil
	})
	if gone(err) {
		return nil, nil
	}
	return later, err
}

// expunged returns nil where the server knows nothing of a resource that it gives no history of.
func (r *run) expunged(ctx context.Context, typ, id string) error {
	switch status, err := r.presence(ctx, typ, id); {
	case err != nil:
		return err
	case status == http.StatusNotFound:
		return nil
	}
	return fmt.Errorf("%w of a resource", errNoHistory)
}

// presence is the status with which the server answers a read: 200, 404 or 410.
func (r *run) presence(ctx context.Context, typ, id string) (int, error) {
	err := r.pace.do(ctx, func() error {
		_, err := r.Client.ReadEntry(ctx, typ, id)
		return err
	})
	if gone(err) {
		return fhir.StatusOf(err), nil
	}
	return http.StatusOK, err
}

// existsAgain tells whether a resource that was deleted has been made again.
func (r *run) existsAgain(ctx context.Context, typ, id string) (bool, error) {
	status, err := r.presence(ctx, typ, id)
	return status == http.StatusOK, err
}

// deleted tells that the server remembers a deletion.
func deleted(err error) bool { return fhir.StatusOf(err) == http.StatusGone }

// gone tells whether a resource, or its history, is not there.
func gone(err error) bool {
	status := fhir.StatusOf(err)
	return status == http.StatusNotFound || status == http.StatusGone
}

// readAsOf reads one resource as of T; nil when it was not there, or where that cannot be known any more. later tells that
// it was changed since and that there is no history: then it is the resource as it is now.
func (r *run) readAsOf(ctx context.Context, typ, id string) (row *fhir.Entry, later bool, err error) {
	err = r.pace.do(ctx, func() error {
		var err error
		row, err = r.Client.ReadEntry(ctx, typ, id)
		return err
	})
	switch {
	case err != nil && !gone(err):
		return nil, false, err
	case err == nil && !row.LastUpdated.After(r.job.TransactionTime):
		return row, false, nil
	case r.profile.InstanceHistory:
	case err != nil || row.Version == "1": // a first version was not there at T
		return nil, false, nil
	default:
		return row, true, nil
	}
	then := change{gone: deleted(err)}
	var body []byte
	if row != nil { // as it is now it is of no use, but its history has to show it
		then.top, then.topVersion, then.topUpdated = true, row.Version, row.LastUpdated
		row = nil
	}
	err = r.asOf(ctx, typ, id, r.job.TransactionTime, &then, func(version *fhir.Entry) (err error) {
		body, err = version.Bytes(anySize)
		return err
	})
	if err != nil || !then.known || then.deleted {
		return nil, false, err
	}
	return &fhir.Entry{Type: typ, ID: id, Version: then.version, LastUpdated: then.updated, Resource: body}, false, nil
}
