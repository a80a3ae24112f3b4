package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// deletionsPerBundle is how many deletions one line of a deleted file holds.
const deletionsPerBundle = 100

// deletions collects what was deleted of one type since _since: the lines of the manifest's deleted array, transaction
// Bundles of DELETE requests (Bulk Data guide, section "Response - Complete Status").
type deletions struct {
	*typeRepair
	slice *state.Slice // nil while there is none
	spool *spool
	urls  []string
	// unknown counts deletions whose membership cannot be told, since no version of the resource is left.
	unknown int
}

func (t *typeRepair) newDeletions() *deletions { return &deletions{typeRepair: t} }

// add takes up a deletion that is newer than _since. At Patient and Group level the resource's last version decides whether
// it belonged to the export.
func (d *deletions) add(ctx context.Context, w *walk, id string, c *change) error {
	since := d.job.Kickoff.Since
	if since.IsZero() || !c.updated.After(since) {
		return nil
	}
	belongs := false
	known, err := d.ask(ctx, func() error {
		if c.guessed {
			if later, err := d.since(ctx, d.typ, id, since); err != nil || !later[c.version] {
				return err
			}
		}
		var err error
		belongs, err = d.wasMember(ctx, w.filter, id)
		return err
	})
	if err != nil || !known || !belongs {
		return err
	}
	return d.report(id)
}

// report writes that a resource was deleted.
func (d *deletions) report(id string) (err error) {
	if d.slice == nil {
		d.slice = &state.Slice{Seq: d.number(), Type: d.typ, Strategy: state.Deletions, Counted: -1, Done: true}
		if d.spool, err = openSpool(d.dir, d.slice); err != nil {
			return err
		}
	}
	d.slice.Met++
	d.urls = append(d.urls, d.typ+"/"+id)
	if len(d.urls) < deletionsPerBundle {
		return nil
	}
	return d.flush()
}

// wasMember tells whether the last version of a deleted resource, or the one as of _since, was in the compartment of the export.
func (d *deletions) wasMember(ctx context.Context, f *filter, id string) (bool, error) {
	if f.level == state.System || f.typ == "Patient" {
		return f.member(&fhir.Entry{Type: f.typ, ID: id})
	}
	var last, then change
	belongs, belonged := false, false
	err := d.history(ctx, d.typ, id, beginning, nil, func(row *fhir.Entry) (err error) {
		if row.Deleted {
			return nil
		}
		wasLast, wasThen := last, then
		if last.takes(row, d.job.TransactionTime) {
			belongs, err = f.member(row)
		}
		if err == nil && !d.last(d.typ) && then.takes(row, f.since) {
			belonged, err = f.stayed().member(row)
		}
		if err != nil { // the page may be read again
			last, then = wasLast, wasThen
		}
		return err
	})
	if gone(err) {
		var status int
		status, err = d.presence(ctx, d.typ, id)
		if err == nil && status == http.StatusOK { // it was made again after T
			err = fmt.Errorf("%w of a resource", errNoHistory)
		}
		last.known = false
	}
	if err != nil {
		return false, err
	}
	if !last.known {
		d.unknown++
		return false, nil
	}
	if belongs || !belonged {
		return belongs, nil
	}
	// It had left the export since _since, and was deleted then: whoever has it still must let it go.
	return d.belonged(ctx, f, id)
}

type deletionBundle struct {
	ResourceType string          `json:"resourceType"`
	Type         string          `json:"type"`
	Entry        []deletionEntry `json:"entry"`
}

type deletionEntry struct {
	Request deletionRequest `json:"request"`
}

type deletionRequest struct {
	Method string `json:"method"`
	URL    string `json:"url"`
}

// flush writes one Bundle.
func (d *deletions) flush() error {
	bundle := deletionBundle{ResourceType: "Bundle", Type: "transaction"}
	for _, url := range d.urls {
		bundle.Entry = append(bundle.Entry, deletionEntry{deletionRequest{"DELETE", url}})
	}
	d.urls = d.urls[:0]
	line, err := json.Marshal(bundle)
	if err != nil {
		return fmt.Errorf("write deletions: %w", err)
	}
	d.slice.Written++
	d.slice.SpoolRows++
	return d.spool.write(&fhir.Entry{Resource: line}, nil)
}

// finish makes the lines durable and returns their slice, nil where there is none.
func (d *deletions) finish(ctx context.Context) (*state.Slice, error) {
	if d.unknown > 0 {
		err := d.remark(ctx, state.Issue{
			Severity: "warning", Code: "incomplete",
			Text: numbered(d.unknown, "deleted "+d.typ+" resource has", "deleted "+d.typ+" resources have") +
				" no version left that tells whether it belonged to this export, and is not reported",
		})
		if err != nil {
			return nil, err
		}
	}
	if d.slice == nil {
		return nil, nil
	}
	var err error
	if len(d.urls) > 0 {
		err = d.flush()
	}
	err = errors.Join(err, d.spool.sync())
	d.spool.measure(d.slice)
	return d.slice, err
}

func (d *deletions) close() error {
	if d.spool == nil {
		return nil
	}
	return d.spool.close()
}
