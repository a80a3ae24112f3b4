package exporter_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/fhir/fhirtest"
	"sidecar/state"
)

// promise is what an export of a product is, whatever is written while it runs.
type promise int

const (
	// exact is the state at T.
	exact promise = iota
	// weak is the state at T, or a failure of code incomplete: the server has to be left alone for a while.
	weak
	// undeleted is exact, but for what was deleted after T, which may be missing: the job says so. Or it fails as incomplete.
	undeleted
	// remarked is not exact while data change: the job says so, and only what was written after T may be missing or newer.
	// Or it fails as incomplete.
	remarked
	// refused fails as incomplete, unless only types are asked for that the server lets be searched; those are as remarked.
	refused
)

// product is a server that is exported under chaos.
type product struct {
	fhirtest.Personality
	promise promise
	// says is in the remarks of a completed job that is not exact.
	says string
	// whole tells that types are read whole, by the server's own pages: that takes a pass in which no row leaves, and fails as
	// incomplete where so much is written that there is none.
	whole bool
	// pause is the settle pause of the product, which a test leaves to the probe; 0 where the test chooses one.
	pause time.Duration
}

// askable are the types that can be searched Patient by Patient on servers that want one.
var askable = []string{"Encounter", "Immunization", "Patient"}

// products are the servers of the chaos suite: all that the sample server can be, and some that lack a single thing.
func products() []product {
	const history, types, counts = "gives no history", "gives no history of types", "does not count"
	others := map[string]product{
		"google":     {promise: undeleted, says: types, pause: time.Minute},
		"healthlake": {promise: undeleted, says: types, pause: time.Minute},
		"firely":     {whole: true},
		"ibm":        {pause: 125 * time.Second},
		"openmrs":    {promise: remarked, says: history},
		"oracle":     {promise: refused, says: history},
		"superset":   {promise: remarked, says: counts},
		"epic":       {promise: refused, says: history},
	}
	var all []product
	for _, personality := range fhirtest.All() {
		one := others[personality.Name] // else exact
		one.Personality = personality
		all = append(all, one)
	}
	odd := func(name string, base fhirtest.Personality, edit func(*fhirtest.Personality)) fhirtest.Personality {
		base.Name = name
		edit(&base)
		return base
	}
	return append(all,
		product{Personality: odd("clamped", fhirtest.HAPI(), func(p *fhirtest.Personality) { p.MaxCount = 7 })},
		product{Personality: odd("silent", fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoSummaryCount = true })},
		product{Personality: odd("forgetful", fhirtest.Plain(), func(p *fhirtest.Personality) { p.NoHistory = true }), promise: remarked, says: history},
		product{Personality: odd("unsorted", fhirtest.Plain(), func(p *fhirtest.Personality) { p.IgnoreSort = true }), promise: weak},
	)
}

// mayFail tells whether an export may fail as incomplete while the server is written to.
func (p *product) mayFail() bool { return p.promise != exact || p.whole }

// judge compares an export with the truth. late are the resources of which nobody can know whether their last version up
// to T was seen.
func (p *product) judge(t *testing.T, e *engine, truth *ledger, job *state.Job, late map[string]bool) {
	t.Helper()
	if job.Status == state.Failed && job.Failure.Code == "incomplete" && p.mayFail() {
		if p.promise == refused && !strings.Contains(job.Failure.Text, "the server cannot be asked for them") {
			t.Errorf("the failure is %q, want one that names the types", job.Failure.Text)
		}
		return
	}
	if len(job.Kickoff.Filters) > 0 && p.IgnoreEverything {
		if len(job.Kickoff.Patients) == 0 && len(job.Types) > 0 && (job.Status != state.Failed || job.Failure.Code != "not-supported") {
			t.Errorf("the job ended %s (%+v) on a server that evaluates no filter", job.Status, job.Failure)
		}
		return
	}
	unknown := truth.strangers(t, job)
	if p.promise >= undeleted {
		p.leaveOut(t, truth, job, late)
	}
	// A server all of whose rows are younger than its history is late seems to have none.
	unsure := slices.ContainsFunc(job.Kickoff.Patients, func(id string) bool { return late["Patient/"+id] }) || late["Group/g"] || late["Group/h"] || p.HistoryLag > 0
	if failed := job.Status == state.Failed && job.Failure.Status == 400; failed || len(unknown) > 0 {
		if failed != (len(unknown) > 0) && !unsure {
			t.Errorf("the job ended %s (%+v), the export cannot hold %v of %v", job.Status, job.Failure, unknown, job.Kickoff.Patients)
		}
		return
	}
	got, want := e.rows(job), truth.expected(t, job, everybody())
	if p.promise >= undeleted {
		if len(job.Types) > 0 && !strings.Contains(fmt.Sprint(job.Issues), p.says) { // nothing is read for a Group of nobody
			t.Errorf("the remarks are %+v, want one that the server %s", job.Issues, p.says)
		}
		if strings.Contains(fmt.Sprint(job.Issues), "its members are taken as they are now") {
			truth.real(t, job.Kickoff, got)
			return
		}
	}
	p.leaveOutFiltered(t, truth, job, got, want)
	if len(job.Kickoff.Associated) > 0 {
		addAssociated(t, truth, job, got, want, late)
	}
	if job.Kickoff.OrganizeBy != "" {
		checkBlocks(t, e, truth, job, want, late)
	}
	for key := range late {
		delete(got, key)
		delete(want, key)
	}
	same(t, got, want)
	if p.promise == exact {
		p.audit(t, e, truth, job, late)
	}
	for key := range truth.newest() {
		if got[key] != want[key] {
			t.Logf("%s: %s", key, truth.story(key, job.TransactionTime))
		}
	}
}

// audit checks what else an exact export says: its proof, that its account fits its files, and what it names as deleted.
func (p *product) audit(t *testing.T, e *engine, truth *ledger, job *state.Job, late map[string]bool) {
	t.Helper()
	account, found := map[string]int{}, map[string]int{}
	for _, proof := range job.Proof {
		if proof.Verdict != state.Proved && proof.Verdict != state.Paged {
			t.Errorf("%s is only %s: %+v", proof.Type, proof.Verdict, proof)
		}
		account[proof.Type] += int(proof.Exported)
		account[proof.Type+", deleted"] += int(proof.Deleted)
	}
	for key := range e.rows(job) {
		typ, _, _ := strings.Cut(key, "/")
		found[typ]++
	}
	gone, want := map[string]bool{}, truth.deletedSince(t, job, everybody())
	for _, key := range e.deleted(job) {
		gone[key] = true
		typ, _, _ := strings.Cut(key, "/")
		found[typ+", deleted"]++
	}
	maps.DeleteFunc(account, func(_ string, n int) bool { return n == 0 })
	if !maps.Equal(account, found) && job.Kickoff.OrganizeBy == "" { // the account is of all, the blocks leave out
		t.Errorf("the account says %v, the files hold %v", account, found)
	}
	for key := range late {
		delete(gone, key)
		delete(want, key)
	}
	if len(job.Kickoff.Associated) > 0 { // which Provenance is named as deleted is decided by its targets, of which the ledger knows nothing
		for _, keys := range []map[string]bool{gone, want} {
			maps.DeleteFunc(keys, func(key string, _ bool) bool { return strings.HasPrefix(key, "Provenance/") })
		}
	}
	if !maps.Equal(gone, want) {
		t.Errorf("named as deleted are %v, want %v", slices.Sorted(maps.Keys(gone)), slices.Sorted(maps.Keys(want)))
	}
}

// addAssociated adds to want the Provenance of all that an export holds, whatever else it should hold. Of what a late Provenance
// was ever about nobody knows which one is the latest: late becomes theirs, too.
func addAssociated(t *testing.T, truth *ledger, job *state.Job, got, want map[string]string, late map[string]bool) {
	t.Helper()
	latestOnly := !slices.Contains(job.Kickoff.Associated, relevant)
	all, unsure := truth.asOf(job.TransactionTime), map[string]bool{}
	for _, v := range truth.sample.Log() {
		if key := v.Type + "/" + v.ID; latestOnly && late[key] && v.Type == "Provenance" && !v.Deleted {
			for _, target := range targetsOf(t, string(v.Body)) {
				unsure[target] = true
			}
		}
	}
	for key, body := range withProvenance(t, got, all, latestOnly) {
		if strings.HasPrefix(key, "Provenance/") {
			want[key] = asExported(t, job.Kickoff, "Provenance", body)
		}
	}
	for key, body := range all {
		if strings.HasPrefix(key, "Provenance/") && slices.ContainsFunc(targetsOf(t, body), func(target string) bool { return unsure[target] }) {
			late[key] = true
		}
	}
}

// targetsOf are the resources that a Provenance is about.
func targetsOf(t *testing.T, body string) []string {
	t.Helper()
	var about struct {
		Target []struct{ Reference string }
	}
	must(t, json.Unmarshal([]byte(body), &about))
	var targets []string
	for _, target := range about.Target {
		name, _, _ := strings.Cut(target.Reference, "/_history")
		targets = append(targets, name)
	}
	return targets
}

// leaveOutFiltered takes from want what a filter may lose: what was changed after T and before it was read. The export has to
// say so.
func (p *product) leaveOutFiltered(t *testing.T, truth *ledger, job *state.Job, got, want map[string]string) {
	t.Helper()
	changed := truth.written(func(v fhirtest.LogEntry) bool { return v.Visible.After(job.TransactionTime) })
	deleted := truth.written(func(v fhirtest.LogEntry) bool { return v.Deleted })
	whole := truth.asOf(job.TransactionTime)
	for key := range want {
		typ, _, _ := strings.Cut(key, "/")
		filtered := slices.ContainsFunc(job.Kickoff.Filters, func(f state.TypeFilter) bool { return f.Type == typ })
		if !filtered || got[key] != "" {
			continue
		}
		var tree any
		must(t, json.Unmarshal([]byte(whole[key]), &tree))
		away := func(target string) bool { return deleted[target] && truth.asOf(updated(t, whole[key]))[target] == "" }
		if p.References && slices.ContainsFunc(references(tree), away) { // when it was written: the server finds it by no reference
			delete(want, key)
			continue
		}
		if !changed[key] {
			continue
		}
		delete(want, key)
		if job.Kickoff.OrganizeBy != "" { // it may refer to nothing, which is said of all such resources together
			continue
		}
		if says := fmt.Sprint(job.Issues); !strings.Contains(says, "matched _typeFilter") && p.promise == exact {
			t.Errorf("%s is left out, and the remarks do not say so: %s", key, says)
		}
	}
}

// leaveOut adds to late what an export cannot know by its promise: what was written after T, or of that only deletions, and,
// where rows are asked for by Patient, those of Patients who did not exist all the time since; also the earlier resources of
// members of whom nobody knows that they have come since _since.
func (p *product) leaveOut(t *testing.T, truth *ledger, job *state.Job, late map[string]bool) {
	t.Helper()
	unsaid := func(v fhirtest.LogEntry) bool { return v.Visible.After(job.TransactionTime) }
	if p.promise == undeleted { // a commit that is indexed after the settle pause may be overtaken by the next one
		settled := job.TransactionTime.Add(p.pause - p.IndexLag)
		unsaid = func(v fhirtest.LogEntry) bool {
			late := v.Visible.Sub(v.Updated) > p.pause-p.IndexLag // its row goes back in time, and may do so while it is looked for
			return v.Deleted && v.Visible.After(job.TransactionTime) || !v.Updated.After(job.TransactionTime) && v.Visible.After(settled) || late
		}
	}
	for key := range truth.written(unsaid) {
		late[key] = true
	}
	if strings.Contains(fmt.Sprint(job.Issues), "new members are known by their period only") {
		for key, body := range truth.expected(t, job, everybody()) {
			if !updated(t, body).After(job.Kickoff.Since) {
				late[key] = true
			}
		}
	}
	if p.promise != refused || job.Kickoff.Level != state.Patient {
		return
	}
	then := truth.asOf(job.TransactionTime)
	gone := truth.written(func(v fhirtest.LogEntry) bool { return v.Deleted && v.Visible.After(job.TransactionTime) })
	steady := slices.DeleteFunc(everybody(), func(id string) bool { return then["Patient/"+id] == "" || gone["Patient/"+id] })
	theirs := truth.expected(t, job, steady)
	for key := range truth.expected(t, job, everybody()) {
		if theirs[key] == "" {
			late[key] = true
		}
	}
}

// kickoffOf is the kick-off of a level, of the Group g where it is Group's.
func kickoffOf(level state.Level, types ...string) state.Kickoff {
	kickoff := state.Kickoff{Level: level, Base: "http://public/fhir", Types: types}
	if level == state.Group {
		kickoff.Group = "g"
	}
	return kickoff
}

// Ensure each product keeps its promise on each level when nobody writes, that of all types of R4 in one export.
func TestEveryProductAtRest(t *testing.T) {
	n := 0
	for _, p := range products() {
		for _, level := range []state.Level{state.System, state.Patient, state.Group} {
			if n++; sparse(n) {
				continue
			}
			t.Run(p.Name+"/"+string(level), func(t *testing.T) {
				t.Parallel()
				var w *writer
				fill := func(s *fhirtest.Server) {
					w = newWriter(t, s, rand.New(rand.NewPCG(5, 1)), knobs{})
					w.fill()
				}
				server := p.Personality
				if level == state.System {
					server.Types = fhirtest.AllTypes()
				}
				inBubble(t, server, smallPages, fill, func(t *testing.T, b *bubble) {
					<-time.After(15 * time.Second)
					job := b.finish(b.kickOff(kickoffOf(level)))
					if (job.Status == state.Failed) != (p.promise == refused) {
						t.Errorf("the export ended %s: %+v", job.Status, job.Failure)
					}
					p.judge(t, b.engine, w.ledger, job, map[string]bool{})
					if p.promise == refused && level != state.System {
						p.judge(t, b.engine, w.ledger, b.finish(b.kickOff(kickoffOf(level, askable...))), map[string]bool{})
					}
				})
			})
		}
	}
}
