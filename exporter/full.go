package exporter

import (
	"context"
	"errors"
	"time"

	"sidecar/state"
)

// exportWithRoom is export that outlasts a full disk: the job goes on from its last checkpoint when there is room again, as
// it does after a restart. It fails when there is none for GiveUp, so that its own spool does not fill the disk for ever.
func (e *Exporter) exportWithRoom(ctx context.Context, id string) error {
	var full time.Time // since when
	for try := 0; ; try++ {
		began := time.Now()
		err := e.export(ctx, id)
		if !state.DiskFull(err) || errors.Is(err, errGaveUp) || ctx.Err() != nil {
			return err
		}
		if full.IsZero() || time.Since(began) > e.GiveUp { // for so long there was room
			full, try = time.Now(), 0
		}
		if time.Since(full) > e.GiveUp {
			return local(err)
		}
		wait := (&pace{giveUp: e.GiveUp}).pause(try, err)
		e.Log.WarnContext(ctx, "disk is full: room is waited for", "job", id, "error", err, "seconds", wait.Seconds())
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}
