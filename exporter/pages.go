package exporter

import (
	"context"
	"slices"
	"time"

	"sidecar/state"
)

// DefaultPageRows is the default of Config.PageRows.
const DefaultPageRows = 10_000

// readPages reads some of the types before the others, where the client takes several manifests: one group after another is
// read, repaired and proved, put, and shown in a manifest of its own. The stages that follow do the rest, with what hangs on
// other types and with the deletions; it is the last manifest. Done again after a crash it goes on behind the pages that there
// are.
func (r *run) readPages(ctx context.Context) error {
	if !r.job.Kickoff.PartialManifests || r.job.Kickoff.OrganizeBy != "" || !r.profile.Counts {
		return nil // of rows that are in no order of types, or not proved, there is no part to show
	}
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	var read [][]string // and not shown
	for _, types := range r.pageGroups(all) {
		if err := r.crawl(ctx, among(types)); err != nil {
			return err
		}
		if read = append(read, types); time.Now().Before(r.readAt.Add(r.lateSpan())) {
			continue
		}
		for _, types := range read {
			if err := r.repair(ctx, among(types)); err != nil {
				return err
			}
			if err := r.showPage(ctx, types); err != nil {
				return err
			}
		}
		read = nil
	}
	return nil
}

// lateSpan is how long after T nothing is shown: what is shown is not looked at again, so that writes that show late have to be
// there. It is as long as the repair looks back for them; where all writes pass through the sidecar, those before T were waited
// for, and the settle time is left to a server that shows an answered one late.
func (r *run) lateSpan() time.Duration {
	if r.Writes != nil {
		return r.settleTime()
	}
	return r.repairSpan()
}

// among tells of a type whether it is one of some types.
func among(types []string) func(typ string) bool {
	return func(typ string) bool { return slices.Contains(types, typ) }
}

// pageGroups are the types that no page has yet, in groups with enough rows for a page. Those of the last one are read by the
// stages that follow, and so are types of which these find more.
func (r *run) pageGroups(all []state.Slice) [][]string {
	counted := map[string]int64{}
	for _, slice := range all {
		counted[slice.Type] += max(0, slice.Counted)
	}
	var groups [][]string
	var open []string
	rows := int64(0)
	for _, typ := range r.job.Types {
		if r.last(typ) || slices.Contains(r.job.Referenced, typ) || r.job.PageOf(typ) > 0 {
			continue
		}
		open, rows = append(open, typ), rows+counted[typ]
		if rows >= r.PageRows {
			groups, open, rows = append(groups, open), nil, 0
		}
	}
	if rows == 0 && len(groups) > 0 { // nothing would be left for the last page
		groups = groups[:len(groups)-1]
	}
	return groups
}

// showPage puts all files of some types and records them as a page. Types of which something is missing wait for the end,
// which decides whether the export fails; of types without a file there is nothing to show.
func (r *run) showPage(ctx context.Context, types []string) error {
	all, err := r.Store.Slices(ctx, r.job.ID)
	if err != nil {
		return err
	}
	page := state.Page{}
	for _, typ := range types {
		proof, holes := sumUp(typ, all)
		if len(holes) == 0 {
			page.Types, page.Proof = append(page.Types, typ), append(page.Proof, proof)
		}
	}
	if err := r.putTypes(ctx, all, page.Types); err != nil {
		return err
	}
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil || !slices.ContainsFunc(files, func(file state.File) bool {
		return file.Kind == state.Output && slices.Contains(page.Types, file.Type)
	}) {
		return err
	}
	err = r.Store.Update(ctx, r.job.ID, func(job *state.Job) error {
		if job.Status != state.InProgress {
			return state.ErrFinal
		}
		job.Pages = append(job.Pages, page)
		r.job = job
		return nil
	})
	if err == nil {
		r.Log.InfoContext(ctx, "types can be fetched", "job", r.job.ID, "types", len(page.Types))
	}
	return err
}

// putTypes puts all that the slices have of some types, without the rows that were dropped.
func (r *run) putTypes(ctx context.Context, all []state.Slice, types []string) error {
	if err := r.rewriteStored(ctx, all, types); err != nil {
		return err
	}
	for _, typ := range types {
		err := r.join(ctx, state.Output, typ, all, func(s *state.Slice) bool { return s.Type == typ && s.Strategy != state.Deletions })
		if err != nil {
			return err
		}
	}
	return nil
}
