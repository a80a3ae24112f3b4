package fhir

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// capabilityLifetime is how long a CapabilityStatement is trusted before it is read again.
const capabilityLifetime = 10 * time.Minute

// CapabilityStatement is what the sidecar reads of the server's own statement.
type CapabilityStatement struct {
	FHIRVersion string
	Software    string
	Version     string
	// Types are the resource types that can be searched, sorted.
	Types []string
	// SearchParams are the declared search parameters of each type.
	SearchParams map[string][]string
	// RevIncludes are the types whose searches are declared to bring along what refers to them, with the declared values.
	RevIncludes map[string][]string
	// Export tells that the server declares an $export of its own.
	Export bool
	// Ahead is how far the server's clock was ahead of ours when the statement was read, to a second or two; 0 where it sends
	// no Date.
	Ahead time.Duration
}

// Offers tells whether the type can be searched.
func (s *CapabilityStatement) Offers(typ string) bool {
	_, found := slices.BinarySearch(s.Types, typ)
	return found
}

// HasParam tells whether the server declares the search parameter for the type.
func (s *CapabilityStatement) HasParam(typ, param string) bool {
	return slices.Contains(s.SearchParams[typ], param)
}

// HasRevInclude tells whether the server declares the value of _revinclude for searches of the type.
func (s *CapabilityStatement) HasRevInclude(typ, value string) bool {
	return slices.Contains(s.RevIncludes[typ], value)
}

// IsHAPI tells whether the server is a HAPI FHIR server, which has a dialect of its own.
func (s *CapabilityStatement) IsHAPI() bool {
	return strings.Contains(strings.ToLower(s.Software), "hapi")
}

// wireStatement is the part of the resource that is read.
type wireStatement struct {
	ResourceType string
	FHIRVersion  string `json:"fhirVersion"`
	Software     struct{ Name, Version string }
	Rest         []struct {
		Mode      string
		Operation []struct{ Name string }
		Resource  []struct {
			Type        string
			Interaction []struct{ Code string }
			SearchParam []struct{ Name string }
			RevIncludes []string `json:"searchRevInclude"`
			Operation   []struct{ Name, Definition string }
		}
	}
}

// Capabilities returns the server's CapabilityStatement, read again every ten minutes. It fails with ErrMalformed when
// the answer is no such statement.
func (c *Client) Capabilities(ctx context.Context) (*CapabilityStatement, error) {
	c.mu.Lock()
	known, fresh := c.capabilities, time.Since(c.askedAt) < capabilityLifetime
	c.mu.Unlock()
	if known != nil && fresh {
		return known, nil
	}
	const op = "read CapabilityStatement"
	body, header, err := c.small(ctx, op, c.address("/metadata", ""), http.Header{"Cache-Control": {"no-cache"}}, c.own)
	if err != nil {
		return nil, err
	}
	var wire wireStatement
	if json.Unmarshal(body, &wire) != nil || wire.ResourceType != "CapabilityStatement" {
		return nil, fmt.Errorf("%s: not a CapabilityStatement: %w", op, ErrMalformed)
	}
	statement := wire.statement()
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		statement.Ahead = time.Until(date)
	}
	c.mu.Lock()
	c.capabilities, c.askedAt = statement, time.Now()
	c.mu.Unlock()
	return statement, nil
}

// typeName is how types are called. They become parts of addresses and names of files.
var typeName = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,63}$`)

func (w *wireStatement) statement() *CapabilityStatement {
	s := &CapabilityStatement{
		FHIRVersion:  w.FHIRVersion,
		Software:     w.Software.Name,
		Version:      w.Software.Version,
		SearchParams: map[string][]string{},
		RevIncludes:  map[string][]string{},
	}
	for _, rest := range w.Rest {
		if rest.Mode != "server" {
			continue
		}
		for _, operation := range rest.Operation {
			s.Export = s.Export || operation.Name == "export"
		}
		for _, resource := range rest.Resource {
			if !typeName.MatchString(resource.Type) {
				continue
			}
			for _, operation := range resource.Operation {
				s.Export = s.Export || operation.Name == "export" || strings.HasSuffix(operation.Name, "-export")
			}
			for _, interaction := range resource.Interaction {
				if interaction.Code == "search-type" {
					s.Types = append(s.Types, resource.Type)
				}
			}
			s.RevIncludes[resource.Type] = append(s.RevIncludes[resource.Type], resource.RevIncludes...)
			for _, param := range resource.SearchParam {
				s.SearchParams[resource.Type] = append(s.SearchParams[resource.Type], param.Name)
			}
		}
	}
	slices.Sort(s.Types)
	s.Types = slices.Compact(s.Types)
	return s
}

func (c *Client) isHAPI() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.capabilities != nil && c.capabilities.IsHAPI()
}
