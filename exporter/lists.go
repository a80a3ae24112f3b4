package exporter

import (
	"context"

	"sidecar/exporter/fhir"
	"sidecar/state"
)

// probesPerParam is what it costs to learn whether a parameter's lists are complete.
const probesPerParam = 3

// listParams are the parameters by which a type belongs to the compartment, if the server declares them all.
func (r *run) listParams(ctx context.Context, typ string) ([]string, error) {
	switch {
	case typ == "Patient" && r.profile.IDLists:
		return []string{"_id"}, nil
	case typ == "Patient", typ == "Group": // a Group is chosen by its id, not by its members
		return nil, nil
	}
	statement, err := r.capabilities(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, param := range r.compartment.Params(typ) {
		if !statement.HasParam(typ, param.Name) || mayRepeat(typ, param) && !r.forced() {
			return nil, nil
		}
		names = append(names, param.Name)
	}
	return names, nil
}

// mayRepeat tells whether a resource can hold several references under the parameter. The server counts such a resource as
// having the parameter when it has indexed one of them, which says nothing about the others (see listsComplete).
func mayRepeat(typ string, param fhir.Param) bool {
	switch typ {
	case "Account", "Composition", "Contract", "List": // their subject repeats, in R5 at least
		return true
	}
	return len(param.Paths) != 1 || param.Paths[0] != "subject" && param.Paths[0] != "patient"
}

// listsComplete tells whether lists of a parameter find every row that names a member. A server may not have indexed a
// reference whose Patient did not exist when the row was written; such rows count as missing the parameter, and so does
// a row that has no such reference. Only when there are none at all can nothing be hidden. An unknown id must find
// nothing, and a list of two as much as its parts, because a parameter that is ignored would find everything. An operator who
// forces a strategy vouches for what the server has indexed; that it obeys the parameter is still seen to.
func (r *run) listsComplete(ctx context.Context, whole state.Slice, param string) (bool, error) {
	if param == "_id" {
		return true, nil // the probe of the profile has shown it
	}
	q := fhir.Query{Type: whole.Type}
	for _, check := range []struct {
		criterion fhir.QueryParam
		want      int64
	}{
		{fhir.QueryParam{Name: param + ":missing", Value: "true"}, 0},
		{fhir.QueryParam{Name: param, Value: "Patient/" + fhir.UnknownID}, 0},
	} {
		if check.criterion.Value == "true" && r.forced() {
			continue
		}
		got, err := r.count(ctx, q.With(check.criterion))
		if fhir.StatusOf(err) != 0 {
			return false, nil // not supported: the whole type is read
		}
		if err != nil || got != check.want {
			return false, err
		}
	}
	return r.listsJoin(ctx, whole, param)
}

// listsJoin tells whether a list means "or": two members that have rows must together have at least as many as the
// larger, and more than either unless all rows name both.
func (r *run) listsJoin(ctx context.Context, whole state.Slice, param string) (bool, error) {
	members, err := r.members(ctx, whole.Newcomers)
	if err != nil || len(members.patients) == 1 {
		return err == nil, err
	}
	q := fhir.Query{Type: whole.Type}
	var ids []string
	var counts []int64
	for _, id := range members.patients[:min(5, len(members.patients))] {
		n, err := r.count(ctx, q.With(fhir.QueryParam{Name: param, Value: "Patient/" + id}))
		if fhir.StatusOf(err) != 0 || err != nil {
			return false, err
		}
		if n > 0 {
			ids, counts = append(ids, id), append(counts, n)
		}
		if len(ids) == 2 {
			both, err := r.count(ctx, q.With(fhir.QueryParam{Name: param, Value: "Patient/" + ids[0] + ",Patient/" + ids[1]}))
			return both > max(counts[0], counts[1]) && both <= counts[0]+counts[1], err
		}
	}
	return r.forced(), nil // nothing speaks for it, nor against it
}

// fewIDs is the list size from which on a form is tried where addresses are too long.
const fewIDs = 10

// shorterLists halves the lists that the server does not take. From a few ids on it sends forms where that is possible;
// when the server takes no list at all, the type is read whole.
func (w *walk) shorterLists(ctx context.Context) {
	switch {
	case !w.slice.Post && w.profile.PostSearch && len(w.slice.Filters) == 0 && w.slice.ListSize <= fewIDs:
		w.slice.Post = true
	case w.slice.ListSize > 1:
		w.slice.ListSize /= 2
	default:
		w.slice.Lists, w.slice.ListSize, w.slice.Post = nil, 0, false
	}
	w.Log.WarnContext(ctx, "server does not take such long lists of ids", "job", w.job.ID, "type", w.slice.Type,
		"slice", w.slice.Seq, "ids", w.slice.ListSize, "post", w.slice.Post)
}
