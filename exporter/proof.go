package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// proofTries is how often a slice is read again when the server counts more than was met.
const proofTries = 3

// patientTries is how often a count is taken that is less than the history says, while nothing shows that waiting is in vain.
const patientTries = 5

// prove counts the slices of a type again and holds the counts against what was met, with the type's history between: a
// row may have left its window since it was met, and one that was written before T may have shown only after its window
// was read. It returns the history, in which everything stands that changed before it was read; nil where there is none, and
// with a lostHistory where it could not be read: the slices are proved without it then.
//
// seen is what a search showed of the type when it had been read, nil where there is no history.
func (r *run) prove(ctx context.Context, typ string, crawled []*state.Slice, seen *sightings) (_ *changeLog, err error) {
	defer func() { err = errors.Join(err, seen.close()) }()
	for try := 1; ; try++ {
		h, err := r.shownChanges(ctx, typ, crawled, seen)
		var lost *lostHistory
		if err != nil && !errors.As(err, &lost) {
			return nil, err
		}
		open, errAccount := r.accountAll(ctx, typ, crawled, &h, try)
		if len(open) == 0 && errAccount == nil {
			return h, err
		}
		if err := errors.Join(errAccount, h.close()); err != nil {
			return nil, err
		}
		if err := sleep(ctx, time.Duration(try)*firstPause); err != nil {
			return nil, err
		}
		for _, slice := range open {
			if try > 1 && slice.Strategy == state.Keyset { // a sort that is ignored may look like one that is not
				r.Doubt(ctx, "pages held fewer rows than were counted")
				slice.Strategy = state.Bisect
			}
			if err := r.read(ctx, slice, true); err != nil {
				return nil, err
			}
		}
		if seen != nil {
			if err := seen.close(); err != nil {
				return nil, err
			}
			if seen, err = r.look(ctx, typ); err != nil {
				return nil, err
			}
		}
	}
}

// accountAll counts the slices of a type, and returns those that must be read again. Where the history is read again, h is the
// new one from then on: the repair must not know less than the proof.
func (r *run) accountAll(ctx context.Context, typ string, crawled []*state.Slice, h **changeLog, try int) (open []*state.Slice, err error) {
	moves, err := r.moved(crawled, *h)
	if err != nil {
		return nil, err
	}
	var counted []*state.Slice
	for i, slice := range crawled {
		missing, err := r.account(ctx, slice, h, moves[i])
		missing = lessHoles(slice, missing)
		if err != nil {
			return nil, fmt.Errorf("count slice %d of %s: %w", slice.Seq, typ, err)
		}
		switch {
		case missing == 0:
		case try == proofTries:
			slice.Holes = append(slice.Holes, state.Hole{
				Type: typ, From: slice.From, To: slice.To, Rows: missing, Reason: "incomplete",
			})
		default:
			open = append(open, slice)
			continue
		}
		if len(slice.Holes) > 0 {
			slice.Verdict = state.Incomplete
		}
		counted = append(counted, slice)
	}
	if len(counted) == 0 {
		return open, nil
	}
	return open, r.Store.Checkpoint(ctx, r.job.ID, counted...)
}

// account counts a slice and sets its verdict, and returns how many rows are missing. before is what the history says, where
// there is one.
func (r *run) account(ctx context.Context, slice *state.Slice, h **changeLog, before movement) (int64, error) {
	slice.Expected, slice.Left = -1, 0
	switch {
	case slice.Verdict == state.Incomplete:
		return 0, nil
	case !r.profile.Counts:
		slice.Verdict = state.Unverified
		return 0, nil
	case slice.Strategy == state.Paging: // proved itself while it was read
		slice.Verdict, slice.Expected = state.Paged, slice.Met
		return 0, nil
	}
	count, err := r.countSlice(ctx, slice)
	if err != nil {
		return 0, err
	}
	if count < 0 { // the server fails on this count
		slice.Verdict = state.Unverified
		if len(slice.Holes) > 0 { // it is known already that rows are missing
			return 0, nil
		}
		return 0, r.remark(ctx, state.Issue{
			Severity: "warning", Code: "incomplete",
			Text: "the server fails to count " + slice.Type + " resources, so that their completeness could not be verified",
		})
	}
	if limit := r.profile.CountsUpTo; limit > 0 && count > limit {
		slice.Verdict = state.Unverified
		return 0, r.remark(ctx, state.Issue{
			Severity: "information", Code: "incomplete",
			Text: "the server only estimates so large a number of " + slice.Type + " resources, so that their completeness could not be verified",
		})
	}
	if *h == nil {
		slice.Verdict, slice.Expected = state.Counted, max(count, slice.Met)
		return max(0, count-slice.Met), nil
	}
	return r.balance(ctx, slice, count, h, before)
}

// balance holds the count of a slice against what was met and what the history says of it, before the count and after it. Among
// many writes the three may miss each other, and a history may show deletions late, of which no search tells. So they are taken
// again, with growing pauses; patiently until that was in vain once, as it is where the server expunges.
func (r *run) balance(ctx context.Context, slice *state.Slice, count int64, h **changeLog, before movement) (missing int64, err error) {
	tries := patientTries
	if r.unbalanced.Load() {
		tries = proofTries
	}
	for try := 1; ; try++ {
		slice.Verdict, slice.Left, slice.Expected = state.Proved, before.left, count+before.left
		if count == slice.Met-before.left+before.came {
			return 0, nil
		}
		after, err := r.movedSince(ctx, slice, h)
		var lost *lostHistory
		if errors.As(err, &lost) {
			slice.Verdict = state.Counted
			return max(0, count-slice.Met+before.left-before.came), nil
		}
		if err != nil {
			return 0, err
		}
		least := slice.Met - after.left - after.unsure + min(before.came, after.came)
		most := slice.Met - before.left + max(before.came, after.came)
		if count >= least {
			return max(0, count-most), nil
		}
		slice.Verdict = state.Counted // more has left than the history says: it was expunged, or the count lags
		if try >= tries {
			r.unbalanced.Store(true)
			return max(0, count-most), nil
		}
		if err := sleep(ctx, firstPause<<(try-1)); err != nil {
			return 0, err
		}
		again, err := r.countSlice(ctx, slice)
		if err != nil || again < 0 {
			return 0, err
		}
		count, before = again, after
	}
}

// lessHoles takes the rows of the holes off those that the proof misses.
func lessHoles(slice *state.Slice, missing int64) int64 {
	for _, hole := range slice.Holes {
		if hole.Rows < 0 {
			return 0
		}
		missing -= hole.Rows
	}
	return max(0, missing)
}

// countSlice asks the server how many rows a slice has now, over all its queries.
func (r *run) countSlice(ctx context.Context, slice *state.Slice) (int64, error) {
	w := &walk{run: r, slice: slice}
	if len(slice.Lists) > 0 {
		var err error
		if w.members, err = r.members(ctx, slice.Newcomers); err != nil {
			return 0, err
		}
	}
	var total int64
	for n := range w.queries() {
		count, err := r.count(ctx, w.queryAt(n))
		if poisoned(err) || len(slice.Holes) > 0 && fhir.StatusOf(err) != 0 && fhir.StatusOf(err) != 401 {
			return -1, nil // what cannot be read cannot be counted either
		}
		if err != nil {
			return 0, err
		}
		total += count
	}
	return total, nil
}

// movement is what the history says of the rows of a slice.
type movement struct {
	left int64 // met, and in the window no more, or in it in another version that was met, too
	came int64 // in the window now and not met: a late write; the repair adds it
	// unsure are met and still in the window, where a late write may have made them match no filter any more.
	unsure int64
}

// movedSince reads the history again for one slice, when it shows what the last count did.
func (r *run) movedSince(ctx context.Context, slice *state.Slice, h **changeLog) (m movement, err error) {
	if err := sleep(ctx, r.lag); err != nil {
		return m, err
	}
	name := "changes"
	if (*h).name == name {
		name = "recount"
	}
	again, err := r.changesOf(ctx, slice.Type, name)
	if err != nil || again == nil {
		return m, err
	}
	moves, err := r.moved([]*state.Slice{slice}, again)
	err = errors.Join(err, (*h).close())
	*h = again
	return moves[0], err
}

// moved looks the changed rows up among those that each slice met.
func (r *run) moved(crawled []*state.Slice, h *changeLog) ([]movement, error) {
	moves := make([]movement, len(crawled))
	if h == nil {
		return moves, nil
	}
	return moves, h.each(func(part *changes) error {
		for i, slice := range crawled {
			if err := moves[i].add(r.dir, slice, part); err != nil {
				return err
			}
		}
		return nil
	})
}

// add looks a range of changed rows up.
func (m *movement) add(dir string, slice *state.Slice, h *changes) error {
	met := make(map[uint64]int64, 2*len(h.byID))
	for id := range h.byID {
		met[metKey(id)], met[metKey(laterThanT(id))] = 0, 0
	}
	if len(met) == 0 {
		return nil
	}
	err := eachMet(dir, slice.Seq, slice.MetSize, func(key uint64) {
		if times, changed := met[key]; changed {
			met[key] = times + 1
		}
	})
	for id, c := range h.byID {
		times := met[metKey(id)] + met[metKey(laterThanT(id))]
		switch {
		case c.left(slice.From, slice.To):
			m.left += times // from several lists a row is met, and counted, more than once
		case times > 1 && !several(slice) && c.in(slice.From, slice.To):
			m.left += times - 1 // a late write showed between its old place and its new one
		case len(slice.Filters) > 0: // what was not met may just not match: a late write that does is met when it is read again
			m.unsure += times
		case times == 0 && len(slice.Lists) == 0 && c.in(slice.From, slice.To):
			m.came++
		}
	}
	return err
}

// judge sums up the proofs, and ends the job when something is missing and the operator does not allow that.
func (r *run) judge(ctx context.Context, all []state.Slice) error {
	proofs := make([]state.Proof, 0, len(r.job.Types))
	var remarks, issues []state.Issue
	cause := errForbidden
	for _, typ := range r.outputTypes() {
		proof, holes := sumUp(typ, all)
		proofs = append(proofs, proof)
		if proof.Replaced > 0 {
			remarks = append(remarks, lateRemark(proof))
		}
		for _, hole := range holes {
			r.Metrics.missing.WithLabelValues(typ).Add(float64(max(0, hole.Rows)))
			issues = append(issues, holeIssue(typ, hole))
			if hole.Reason != "forbidden" {
				cause = errIncomplete
			}
		}
		r.Metrics.proof(proof)
	}
	if len(issues) > 0 && !r.AllowPartial {
		return fmt.Errorf("%s: %w", summary(issues), cause)
	}
	if err := r.remark(ctx, append(remarks, issues...)...); err != nil {
		return err
	}
	return r.Store.Update(ctx, r.job.ID, func(job *state.Job) error {
		job.Proof = proofs
		return nil
	})
}

// lateRemark says how many rows were taken out again, because a write showed after the settle pause.
func lateRemark(proof state.Proof) state.Issue {
	return state.Issue{
		Severity: "information", Code: "informational",
		Text: numbered(proof.Replaced, proof.Type+" resource was", proof.Type+" resources were") + " written before the transaction time but showed only " +
			"after the settle pause; the export has it as of the transaction time; raise the setting settle",
	}
}

// shownIssues is how many holes a failure names.
const shownIssues = 10

// summary puts holes into one line.
func summary(issues []state.Issue) string {
	var texts []string
	for _, issue := range issues[:min(shownIssues, len(issues))] {
		texts = append(texts, issue.Text)
	}
	if more := len(issues) - shownIssues; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, "; ")
}

// sumUp is the account of one type over its slices: its verdict is the weakest of theirs.
func sumUp(typ string, all []state.Slice) (state.Proof, []state.Hole) {
	proof := state.Proof{Type: typ, Verdict: state.Proved}
	var holes []state.Hole
	for i := range all {
		slice := &all[i]
		switch {
		case slice.Type != typ:
			continue
		case slice.Strategy == state.Deletions:
			proof.Deleted += slice.Met
			continue
		case slice.Strategy == state.History:
			kept := slice.Written - int64(len(slice.Dropped))
			proof.Repaired += kept
			proof.Exported += kept
			proof.Departed = slice.Departed
			if holes = append(holes, slice.Holes...); len(slice.Holes) > 0 {
				proof.Verdict = state.Incomplete
			}
			continue
		}
		proof.Met += slice.Met
		proof.Exported += slice.Written - int64(len(slice.Dropped))
		proof.Replaced += int64(len(slice.Dropped)) - slice.Superseded
		if slice.Expected < 0 || proof.Expected < 0 {
			proof.Expected = -1
		} else {
			proof.Expected += slice.Expected
		}
		proof.Verdict = weaker(proof.Verdict, slice.Verdict)
		holes = append(holes, slice.Holes...)
	}
	return proof, holes
}

// verdicts are ordered from the strongest to the weakest.
var verdicts = []state.Verdict{state.Proved, state.Counted, state.Paged, state.Unverified, state.Incomplete}

func weaker(a, b state.Verdict) state.Verdict {
	return verdicts[max(slices.Index(verdicts, a), slices.Index(verdicts, b))]
}

// holeIssue says which window of which type is missing and why.
func holeIssue(typ string, hole state.Hole) state.Issue {
	what := "resources"
	if hole.Rows >= 0 {
		what = fmt.Sprintf("%d resources", hole.Rows)
	}
	window := ""
	if !hole.From.IsZero() {
		window += " from " + fhir.FormatInstant(hole.From)
	}
	if !hole.To.IsZero() {
		window += " before " + fhir.FormatInstant(hole.To)
	}
	if window != "" {
		window = " with lastUpdated" + window
	}
	why := holeReasons[hole.Reason]
	if why == "" {
		why = "the server says so itself"
	}
	if hole.History && hole.Reason == lagReason {
		why = "it lags behind the searches, and was waited for in vain"
	}
	if hole.History {
		of := ""
		if hole.Rows > 0 {
			of = " of " + what
		}
		return state.Issue{
			Severity: "error", Code: hole.Reason,
			Text: typ + ": the history" + of + " cannot be read, so resources that were changed or deleted while the export ran may be missing: " + why,
		}
	}
	return state.Issue{Severity: "error", Code: hole.Reason, Text: fmt.Sprintf("%s: %s%s are missing: %s", typ, what, window, why)}
}

// holeReasons say what the codes of holes mean.
var holeReasons = map[string]string{
	"exception":     "the server fails on them",
	"forbidden":     "the server does not let the sidecar read them",
	"incomplete":    "the server has more resources than it gives",
	"not-supported": "the server cannot be asked for them",
	"structure":     "the server's answers are damaged",
	"too-long":      "they, or the pages that hold them, are too large",
}
