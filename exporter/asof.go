package exporter

import (
	"context"

	"sidecar/exporter/fhir"
)

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
	var then change
	if err := r.asOf(ctx, typ, id, r.job.TransactionTime, &then); err != nil {
		return nil, false, err
	}
	if !then.known || then.deleted {
		return nil, false, nil
	}
	return &fhir.Entry{Type: typ, ID: id, Version: then.version, LastUpdated: then.updated, Resource: then.body}, false, nil
}
