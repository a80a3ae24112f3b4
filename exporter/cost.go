package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// Strategies that an operator can force upon the planner.
const (
	// StrategyAuto lets the planner choose by cost.
	StrategyAuto = "auto"
	// StrategyCrawl reads each type whole and filters it on our side.
	StrategyCrawl = "crawl"
	// StrategyLists asks for lists of members.
	StrategyLists = "lists"
	// StrategyPatients asks for one Patient after another.
	StrategyPatients = "patients"
	// StrategyCompartment searches in the compartment of one Patient after another.
	StrategyCompartment = "compartment"
	// StrategyHas asks for the members of the Group by a chained _has.
	StrategyHas = "has"
)

// Strategies returns all names of strategies, the default first.
func Strategies() []string {
	return []string{StrategyAuto, StrategyCrawl, StrategyLists, StrategyPatients, StrategyCompartment, StrategyHas}
}

// errForced ends a job whose forced strategy the server cannot do.
var errForced = fmt.Errorf("the setting strategy forces what cannot be used, auto chooses by itself: %w", errIncomplete)

// offer is one way to read a type, with what it costs. Whatever it finds goes through the filter: a way only decides what
// is asked, never who is a member.
type offer struct {
	name     string
	slice    state.Slice
	requests int64
}

// byMembers returns the slice of the cheapest way to ask a type for the members of the Group, where it is proved to be
// complete; nil means that the type is read whole and filtered.
func (r *run) byMembers(ctx context.Context, whole state.Slice) ([]state.Slice, error) {
	switch {
	case r.Strategy == StrategyCrawl, r.job.Kickoff.Level == state.System:
		return nil, nil
	case r.cohort == nil && !r.forced():
		return nil, nil // nearly every row of a compartment type is kept
	}
	offers, err := r.offers(ctx, whole)
	if err != nil {
		return nil, err
	}
	crawl := r.crawlCost(whole)
	slices.SortStableFunc(offers, func(a, b offer) int { return int(a.requests - b.requests) })
	for _, offer := range offers {
		if !fitsFilters(&offer.slice) {
			continue
		}
		if !r.forced() {
			if offer.requests >= crawl || offer.name == StrategyCompartment || offer.name == StrategyHas {
				continue
			}
		} else if offer.name != r.Strategy {
			continue
		}
		proved, err := r.proved(ctx, offer)
		if err != nil {
			return nil, err
		}
		if proved {
			return []state.Slice{offer.slice}, nil
		}
	}
	if !r.forced() || r.alwaysCrawled(whole.Type) || r.Strategy == StrategyHas && len(r.job.Kickoff.Patients) > 0 {
		return nil, nil
	}
	return nil, fmt.Errorf("%s by %s, which the server was not seen to do: %w", whole.Type, r.Strategy, errForced)
}

// forced tells whether the operator chose the strategy.
func (r *run) forced() bool { return r.Strategy != "" && r.Strategy != StrategyAuto }

// alwaysCrawled tells whether a type has nothing that could be asked for members: Groups are chosen by their own id, Provenance by its targets.
func (r *run) alwaysCrawled(typ string) bool {
	return typ == "Group" || typ == provenance || typ == "Patient" && r.cohort == nil
}

// offers are the ways in which a type can be asked for members, proved or not.
func (r *run) offers(ctx context.Context, whole state.Slice) ([]offer, error) {
	params, err := r.listParams(ctx, whole.Type)
	if err != nil || len(params) == 0 || r.alwaysCrawled(whole.Type) {
		return nil, err
	}
	members, err := r.members(ctx, whole.Newcomers)
	if err != nil || len(members.patients) == 0 {
		return nil, err
	}
	pages, err := r.memberPages(ctx, whole, members)
	if err != nil {
		return nil, err
	}
	by := func(name string, size int, post bool) offer {
		slice := whole
		slice.Lists, slice.ListSize, slice.Post = params, size, post
		lists := int64(len(params) * members.lists(size))
		return offer{name, slice, lists + pages + int64(probesPerParam*len(params))}
	}
	offers := []offer{by(StrategyLists, members.listSize(), false), by(StrategyPatients, 1, false)}
	if r.profile.PostSearch && len(whole.Filters) == 0 { // the self link of a form may not name the filter
		offers = append(offers, by(StrategyLists, postListIDs, true))
	}
	compartment := by(StrategyCompartment, members.listSize(), false)
	if !besideCompartment(whole.Type) {
		compartment = by(StrategyCompartment, 1, false)
		compartment.slice.Lists = []string{compartmentSearch}
	}
	offers = append(offers, compartment)
	if r.job.Kickoff.Level == state.Group && len(r.job.Kickoff.Patients) == 0 {
		has := by(StrategyHas, len(members.patients), false)
		has.slice.Lists = nil
		for _, param := range params {
			has.slice.Lists = append(has.slice.Lists, hasPrefix+param)
		}
		offers = append(offers, has)
	}
	return offers, nil
}

// besideCompartment tells whether no server has the type in a Patient's compartment: the Patient itself is not searched
// there, and the others are in ours alone. They are asked for by lists where compartments are forced.
func besideCompartment(typ string) bool { return typ == "Patient" || typ == "Device" || typ == "Task" }

const (
	// postListIDs is how many members a list has that is sent as a form.
	postListIDs = 100
	// compartmentSearch stands among a slice's lists for the search in a Patient's compartment, hasPrefix before the
	// parameter whose Patients are to be members of the Group.
	compartmentSearch = "compartment"
	hasPrefix         = "_has:"
)

// crawlCost is how many requests it takes to read a type whole.
func (r *run) crawlCost(whole state.Slice) int64 {
	return max(0, whole.Counted)/int64(r.pageSize()) + 1
}

// memberPages is how many pages the members' rows have, taking them for average Patients.
func (r *run) memberPages(ctx context.Context, whole state.Slice, members *cohort) (int64, error) {
	if whole.Counted <= 0 || !r.profile.Counts {
		return 0, nil
	}
	all, err := r.allPatients(ctx)
	if err != nil || all <= 0 {
		return 0, err
	}
	share := min(1, float64(len(members.patients))/float64(all))
	return int64(share * float64(r.crawlCost(whole))), nil
}

// allPatients counts the Patients once. A server that does not say makes 0 of it.
func (r *run) allPatients(ctx context.Context) (int64, error) {
	r.stop.Lock()
	known := r.patients
	r.stop.Unlock()
	if known > 0 {
		return known, nil
	}
	n, err := r.count(ctx, fhir.Query{Type: "Patient"})
	if fhir.StatusOf(err) != 0 && fhir.StatusOf(err) != 401 {
		return 0, nil
	}
	r.stop.Lock()
	defer r.stop.Unlock()
	r.patients = n
	return n, err
}

// proved tells whether an offer finds every row of every member.
func (r *run) proved(ctx context.Context, o offer) (bool, error) {
	params := o.slice.Lists
	switch o.name {
	case StrategyCompartment, StrategyHas:
		var err error
		if params, err = r.listParams(ctx, o.slice.Type); err != nil {
			return false, err
		}
	}
	for _, param := range params {
		if complete, err := r.listsComplete(ctx, o.slice, param); err != nil || !complete {
			return false, err
		}
	}
	switch {
	case o.name == StrategyCompartment && !besideCompartment(o.slice.Type):
		return r.compartmentWorks(ctx, o.slice.Type, params)
	case o.name == StrategyHas:
		return r.hasWorks(ctx, o.slice.Type, params)
	}
	return true, nil
}

// compartmentWorks tells whether the compartment of nobody is empty, and that of a member as large as its parameter says;
// rows under several parameters cannot be added up.
func (r *run) compartmentWorks(ctx context.Context, typ string, params []string) (bool, error) {
	members, err := r.members(ctx, false)
	if err != nil {
		return false, err
	}
	checks := [][2]fhir.Query{{{Type: typ, Patient: fhir.UnknownID}, {}}}
	if len(params) > 1 {
		return r.countsAgree(ctx, checks)
	}
	for _, id := range members.patients[:min(3, len(members.patients))] {
		one := fhir.Query{Type: typ}.With(fhir.QueryParam{Name: params[0], Value: "Patient/" + id})
		checks = append(checks, [2]fhir.Query{{Type: typ, Patient: id}, one})
	}
	return r.countsAgree(ctx, checks)
}

// hasWorks tells whether _has means the very members that we resolved, alone and in the chain: an unknown Group has none,
// the Group as many as we know, and the chain finds as many rows as lists of them do.
func (r *run) hasWorks(ctx context.Context, typ string, params []string) (bool, error) {
	members, err := r.members(ctx, false)
	if err != nil {
		return false, err
	}
	const ofGroup = "_has:Group:member:_id"
	known, err := r.count(ctx, fhir.Query{Type: "Patient"}.With(fhir.QueryParam{Name: ofGroup, Value: r.job.Kickoff.Group}))
	if fhir.StatusOf(err) != 0 || err != nil || known != int64(len(members.patients)) {
		return false, notAnswered(err)
	}
	for _, param := range params {
		name := hasName(typ, param)
		var listed int64
		for n := range members.lists(members.listSize()) {
			q := fhir.Query{Type: typ}.With(fhir.QueryParam{Name: param, Value: members.list(param, n, members.listSize())})
			some, err := r.count(ctx, q)
			if err != nil {
				return false, notAnswered(err)
			}
			listed += some
		}
		for value, want := range map[string]int64{r.job.Kickoff.Group: listed, fhir.UnknownID: 0} {
			got, err := r.count(ctx, fhir.Query{Type: typ}.With(fhir.QueryParam{Name: name, Value: value}))
			if err != nil || got != want {
				return false, notAnswered(err)
			}
		}
	}
	return true, nil
}

// hasName is the name of the parameter that asks for rows of the Group's members.
func hasName(typ, param string) string {
	if typ == "Patient" {
		return "_has:Group:member:_id"
	}
	return param + ":Patient._has:Group:member:_id"
}

// countsAgree compares pairs of counts. A query without a type stands for 0.
func (r *run) countsAgree(ctx context.Context, pairs [][2]fhir.Query) (bool, error) {
	for _, pair := range pairs {
		var n [2]int64
		for i, q := range pair {
			if q.Type == "" {
				continue
			}
			var err error
			if n[i], err = r.count(ctx, q); err != nil {
				return false, notAnswered(err)
			}
		}
		if n[0] != n[1] {
			return false, nil
		}
	}
	return true, nil
}

// notAnswered drops an error that only says that the server cannot do what it was asked.
func notAnswered(err error) error {
	status := fhir.StatusOf(err)
	if status != 0 && status != 401 || errors.Is(err, fhir.ErrMalformed) {
		return nil
	}
	return err
}
