package fhirtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
)

type coded struct {
	Code string `json:"code"`
}

type capabilityParam struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type capabilityResource struct {
	Type              string            `json:"type"`
	Interaction       []coded           `json:"interaction"`
	Versioning        string            `json:"versioning"`
	ReadHistory       bool              `json:"readHistory"`
	UpdateCreate      bool              `json:"updateCreate"`
	ConditionalDelete string            `json:"conditionalDelete"`
	SearchRevInclude  []string          `json:"searchRevInclude,omitempty"`
	SearchParam       []capabilityParam `json:"searchParam"`
}

type capabilityRest struct {
	Mode        string               `json:"mode"`
	Resource    []capabilityResource `json:"resource"`
	Interaction []coded              `json:"interaction"`
}

type capability struct {
	ResourceType   string            `json:"resourceType"`
	Status         string            `json:"status"`
	Date           string            `json:"date"`
	Kind           string            `json:"kind"`
	Software       map[string]string `json:"software"`
	Implementation map[string]string `json:"implementation"`
	FHIRVersion    string            `json:"fhirVersion"`
	Format         []string          `json:"format"`
	Rest           []capabilityRest  `json:"rest"`
}

// metadata answers with the CapabilityStatement.
func (s *Server) metadata(w http.ResponseWriter, c *call, read bool) error {
	if !read {
		return refuse(http.StatusMethodNotAllowed, "metadata can only be read")
	}
	types := s.p.Types
	if types == nil {
		types = append(slices.Clone(resourceTypes), s.Types()...)
		slices.Sort(types)
		types = slices.Compact(types)
	}
	rest := capabilityRest{Mode: "server", Interaction: codes("transaction", "batch")}
	if !s.p.NoHistory && !s.p.NoSystemHistory && !s.p.HistoryInstanceOnly {
		rest.Interaction = append(rest.Interaction, coded{"history-system"})
	}
	for _, typ := range types {
		rest.Resource = append(rest.Resource, s.capabilityOf(typ))
	}
	body, err := json.Marshal(capability{
		ResourceType: "CapabilityStatement", Status: "active", Date: c.now.UTC().Format("2006-01-02"), Kind: "instance",
		Software:       map[string]string{"name": s.p.Software, "version": s.p.Version},
		Implementation: map[string]string{"description": s.p.Software, "url": c.base},
		FHIRVersion:    fhirVersion, Format: []string{"application/fhir+json", "json"}, Rest: []capabilityRest{rest},
	})
	if err != nil {
		return fmt.Errorf("write CapabilityStatement: %w", err)
	}
	return writeJSON(w, http.StatusOK, body, c.pretty)
}

func codes(names ...string) []coded {
	list := make([]coded, len(names))
	for i, name := range names {
		list[i].Code = name
	}
	return list
}

func (s *Server) capabilityOf(typ string) capabilityResource {
	r := capabilityResource{
		Type: typ, Versioning: "versioned", ReadHistory: true, UpdateCreate: true, ConditionalDelete: "not-supported",
		Interaction: codes("read", "create", "update", "delete", "search-type"),
		SearchParam: []capabilityParam{{"_id", "token"}},
	}
	if s.p.RevIncludes {
		r.SearchRevInclude = []string{revInclude}
	}
	if !s.p.NoLastUpdated {
		r.SearchParam = append(r.SearchParam, capabilityParam{"_lastUpdated", "date"})
	}
	if s.p.NoHistory {
		r.Versioning, r.ReadHistory = "no-version", false
	} else {
		r.Interaction = append(r.Interaction, codes("vread", "history-instance")...)
		if !s.p.HistoryInstanceOnly {
			r.Interaction = append(r.Interaction, coded{"history-type"})
		}
	}
	for _, p := range s.params.byType[typ] {
		r.SearchParam = append(r.SearchParam, capabilityParam{p.name, "reference"})
	}
	return r
}
