package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sidecar/exporter/fhir"
	"sidecar/state"
	"sidecar/state/failpoint"
)

// cohort is the membership of a Group at the transaction time, or what the parameter patient names of it or of all Patients:
// one snapshot, kept beside the spool, so that a restart goes on with the same members.
type cohort struct {
	patients []string // sorted ids
	groups   []string // sorted ids of the requested Group and the nested ones
	// newcomers are those patients, sorted, that were no members at _since: their whole record belongs to the export (Bulk
	// Data guide, parameter _since: "resources of newly added patients").
	newcomers []string
}

// onlyNewcomers is the cohort of those who have come.
func (c *cohort) onlyNewcomers() *cohort { return &cohort{patients: c.newcomers} }

// withoutNewcomers is the cohort of those who have stayed.
func (c *cohort) withoutNewcomers() *cohort {
	newcomers := c.onlyNewcomers()
	return &cohort{patients: slices.DeleteFunc(slices.Clone(c.patients), newcomers.hasPatient), groups: c.groups}
}

func (c *cohort) hasPatient(id string) bool {
	_, found := slices.BinarySearch(c.patients, id)
	return found
}

func (c *cohort) hasGroup(id string) bool {
	_, found := slices.BinarySearch(c.groups, id)
	return found
}

// loadCohort reads the members of the job's Group, or checks the Patients that are named, once per job.
func (r *run) loadCohort(ctx context.Context) error {
	if r.job.Kickoff.Level != state.Group && len(r.job.Kickoff.Patients) == 0 {
		return nil
	}
	path := filepath.Join(r.dir, "members")
	var err error
	if r.cohort, err = readCohort(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.job.Kickoff.Level == state.Group {
		err = r.loadMembers(ctx)
	} else {
		err = r.loadPatients(ctx)
	}
	if err != nil {
		return err
	}
	return local(writeCohort(path, r.cohort))
}

// loadMembers reads the members of the job's Group.
func (r *run) loadMembers(ctx context.Context) (err error) {
	if r.cohort, err = r.resolve(ctx, r.job.TransactionTime, r.groupAsOf); err != nil {
		return err
	}
	if err := r.narrowMembers(); err != nil {
		return err
	}
	return r.compareMembers(ctx)
}

// compareMembers finds who has come and who has gone since _since, by the Group's version as of then. Where the server has
// no history of it, only a member's period tells that he came later.
func (r *run) compareMembers(ctx context.Context) error {
	since := r.job.Kickoff.Since
	if since.IsZero() {
		return nil
	}
	read := r.groupAsOf
	if r.profile.InstanceHistory {
		read = func(ctx context.Context, id string) (*fhir.Group, error) {
			return r.groupAt(ctx, id, since, change{})
		}
	}
	then, err := r.resolve(ctx, since, read)
	if err != nil {
		return fmt.Errorf("as of _since: %w", err)
	}
	for _, id := range r.cohort.patients {
		if !then.hasPatient(id) {
			r.cohort.newcomers = append(r.cohort.newcomers, id)
		}
	}
	gone := 0
	for _, id := range then.patients {
		if !r.cohort.hasPatient(id) && len(r.job.Kickoff.Patients) == 0 { // who is named has not gone
			gone++
		}
	}
	var issues []state.Issue
	if gone > 0 {
		issues = append(issues, state.Issue{Severity: "information", Code: "informational", Text: numbered(gone, "patient has", "patients have") + " left the Group since _since; resources of those who left are not reported as deleted"})
	}
	if !r.profile.InstanceHistory {
		issues = append(issues, state.Issue{Severity: "information", Code: "informational", Text: "the server gives no history of the Group, " +
			"so new members are known by their period only; the earlier resources of others who have come since _since are missing"})
	}
	return r.remark(ctx, issues...)
}

// resolve follows the Group and the Groups in it as of a time. Inactive members and those whose period does not hold then
// are left out; members that are neither Patients nor Groups of this server are nobody's compartment.
func (r *run) resolve(ctx context.Context, at time.Time, read func(context.Context, string) (*fhir.Group, error)) (*cohort, error) {
	c := &cohort{groups: []string{r.job.Kickoff.Group}}
	bases := r.filter("Patient").bases
	for next := 0; next < len(c.groups); next++ {
		group, err := read(ctx, c.groups[next])
		if next > 0 && gone(err) { // a nested Group that is not there has no members
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the Group's members: %w", err)
		}
		for _, member := range group.Members {
			if !member.ActiveAt(at) {
				continue
			}
			if patient, ok := fhir.LocalReference("Patient", member.Reference, bases); ok {
				c.patients = append(c.patients, patient)
			}
			if nested, ok := fhir.LocalReference("Group", member.Reference, bases); ok && !slices.Contains(c.groups, nested) {
				c.groups = append(c.groups, nested)
			}
		}
	}
	slices.Sort(c.patients)
	c.patients = slices.Compact(c.patients)
	slices.Sort(c.groups)
	return c, nil
}

// groupAsOf reads a Group; where it was changed or deleted after T, its version as of T, if the server has a history. One
// that did not exist at T has no members.
func (r *run) groupAsOf(ctx context.Context, id string) (group *fhir.Group, err error) {
	err = r.pace.do(ctx, func() error {
		raw, err := r.Client.Read(ctx, "Group", id)
		if err != nil {
			return err
		}
		group, err = fhir.ParseGroup(raw)
		return err
	})
	switch {
	case err != nil && !gone(err):
		return group, err
	case err == nil && !group.LastUpdated.After(r.job.TransactionTime):
		return group, nil
	case err == nil && !r.profile.InstanceHistory:
		return group, r.remark(ctx, state.Issue{
			Severity: "warning", Code: "incomplete",
			Text: "a Group was changed after the transaction time and the server gives no history: its members are taken as they are now",
		})
	case !r.profile.InstanceHistory:
		return group, err
	}
	then := change{gone: deleted(err)}
	if err == nil {
		then.top, then.topUpdated = true, group.LastUpdated
	}
	return r.groupAt(ctx, id, r.job.TransactionTime, then)
}

// groupAt is a Group as of a time, by its history, which has to show what is known of it.
func (r *run) groupAt(ctx context.Context, id string, at time.Time, then change) (*fhir.Group, error) {
	var body []byte
	err := r.asOf(ctx, "Group", id, at, &then, func(version *fhir.Entry) (err error) {
		body, err = version.Bytes(anySize)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !then.known || then.deleted {
		return &fhir.Group{}, nil
	}
	return fhir.ParseGroup(body)
}

// writeCohort writes one line a member. The file appears as a whole or not at all.
func writeCohort(path string, c *cohort) (err error) {
	part, err := os.OpenFile(path+".part", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(part)
	for _, list := range []struct {
		typ string
		ids []string
	}{{"Group", c.groups}, {"Patient", c.patients}, {"New", c.newcomers}} {
		for _, id := range list.ids {
			if _, err := fmt.Fprintf(out, "%s/%s\n", list.typ, id); err != nil {
				return errors.Join(err, part.Close())
			}
		}
	}
	if err := errors.Join(out.Flush(), part.Sync(), part.Close()); err != nil {
		return err
	}
	failpoint.Pass("before rename")
	err = os.Rename(path+".part", path)
	failpoint.Pass("after rename")
	return err
}

func readCohort(path string) (*cohort, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &cohort{}
	for line := range strings.Lines(string(raw)) {
		typ, id, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "/")
		switch typ {
		case "Group":
			c.groups = append(c.groups, id)
		case "Patient":
			c.patients = append(c.patients, id)
		case "New":
			c.newcomers = append(c.newcomers, id)
		default:
			return nil, fmt.Errorf("read members: %w", errLocal)
		}
	}
	return c, nil
}

// lists is how many lists of size members the cohort has.
func (c *cohort) lists(size int) int { return (len(c.patients) + size - 1) / size }

// list returns the n-th list as the value of a search parameter.
func (c *cohort) list(param string, n, size int) string {
	ids := c.patients[n*size : min((n+1)*size, len(c.patients))]
	if param == "_id" {
		return strings.Join(ids, ",")
	}
	return "Patient/" + strings.Join(ids, ",Patient/")
}

// maxListBytes bounds the value of a list, since proxies and servers refuse long addresses; maxListIDs because databases
// limit the terms of one query.
const (
	maxListBytes = 1900
	maxListIDs   = 200
)

// listSize is how many members fit into one list.
func (c *cohort) listSize() int {
	longest := 1
	for _, id := range c.patients {
		longest = max(longest, len(id))
	}
	return max(1, min(maxListIDs, maxListBytes/(len("Patient/,")+longest)))
}
