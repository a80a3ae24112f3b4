package fhirtest

import (
	"net/http"
	"slices"
	"strings"
)

// parseReference reads a reference parameter with an optional modifier: a type, or missing.
func (s *Server) parseReference(c *call, q *query, name, value string) (bool, error) {
	name, modifier, _ := strings.Cut(name, ":")
	param, ok := s.params.find(q.typ, name)
	if !ok {
		return false, nil
	}
	if chained, ok := strings.CutPrefix(modifier, "Patient._has:"); ok && !s.p.NoHas {
		return s.parseChain(q, param, chained, value)
	}
	if modifier == "missing" {
		if s.p.NoMissing {
			return true, refuse(http.StatusBadRequest, "modifier missing is not supported")
		}
		if value != "true" && value != "false" {
			return true, refuse(http.StatusBadRequest, ":missing takes true or false")
		}
		if !s.p.NoPatientLists {
			q.filters = append(q.filters, func(r *row) bool {
				has := slices.ContainsFunc(r.refs, func(f ref) bool { return f.param == param.name })
				return has == (value == "false")
			})
		}
		return true, nil
	}
	if modifier != "" && !slices.Contains(resourceTypes, modifier) {
		return true, refuse(http.StatusBadRequest, "unknown modifier or chain of parameter %s", name)
	}
	if s.p.NoPatientLists || value == "" {
		return true, nil
	}
	target := modifier
	if target == "" {
		target = param.target
	}
	whole, bare := referenceValues(value, target, c.base)
	q.filters = append(q.filters, func(r *row) bool {
		return slices.ContainsFunc(r.refs, func(f ref) bool {
			if f.param != param.name {
				return false
			}
			return whole[f.key] || len(bare) > 0 && bare[f.key[strings.IndexByte(f.key, '/')+1:]]
		})
	})
	return true, nil
}

// referenceValues splits the list of a reference parameter into keys with a type and ids without one.
func referenceValues(list, target, base string) (whole, bare map[string]bool) {
	whole, bare = map[string]bool{}, map[string]bool{}
	for value := range strings.SplitSeq(list, ",") {
		value = strings.TrimPrefix(value, base+"/")
		switch {
		case value == "":
			continue
		case !strings.Contains(value, "/") && target == "":
			bare[value] = true
			continue
		case !strings.Contains(value, "/"):
			value = target + "/" + value
		}
		whole[value] = true
		if !strings.Contains(value, "://") {
			whole[base+"/"+value] = true
		}
	}
	return whole, bare
}

// parseHas reads `_has:Type:param:_id=list`: rows that a resource of the list refers to.
func (s *Server) parseHas(q *query, rest, value string) (bool, error) {
	targets, known, err := s.hasTargets(rest, value)
	if known && err == nil && !s.p.NoPatientLists {
		q.filters = append(q.filters, func(r *row) bool { return targets[r.name()] })
	}
	return known, err
}

// parseChain reads `param:Patient._has:Type:param:_id=list`: rows that refer to a Patient whom `_has` would find.
func (s *Server) parseChain(q *query, param searchParam, rest, value string) (bool, error) {
	targets, known, err := s.hasTargets(rest, value)
	if known && err == nil && !s.p.NoPatientLists {
		q.filters = append(q.filters, func(r *row) bool {
			return slices.ContainsFunc(r.refs, func(f ref) bool {
				return f.param == param.name && strings.HasPrefix(f.key, "Patient/") && targets[f.key]
			})
		})
	}
	return known, err
}

// hasTargets lists what the resources of a `_has` refer to. known is false when the server does not know the parameter.
func (s *Server) hasTargets(rest, value string) (targets map[string]bool, known bool, err error) {
	parts := strings.Split(rest, ":")
	if len(parts) != 3 || parts[2] != "_id" && parts[2] != "id" {
		return nil, true, refuse(http.StatusBadRequest, "_has is offered for _id only")
	}
	if _, ok := s.params.find(parts[0], parts[1]); !ok {
		return nil, false, nil
	}
	targets = map[string]bool{}
	for id := range strings.SplitSeq(value, ",") {
		holder := s.current(parts[0], id)
		if holder == nil {
			continue
		}
		for _, f := range holder.refs {
			if f.param == parts[1] {
				targets[f.key] = true
			}
		}
	}
	return targets, true, nil
}
