package fhirtest

import (
	"net/http"
	"slices"
)

// Access is what a client may read.
type Access struct {
	// Types are the only types that it may ask for, nil for all.
	Types []string
	// Sees tells of which resources its searches have rows; nil means all. Like many servers do it with consents, no status
	// says that anything was left out.
	Sees func(typ, id string) bool
}

// admit holds a call against what Gate says of its client. The CapabilityStatement is open.
func (s *Server) admit(w http.ResponseWriter, c *call) error {
	if s.Gate == nil || len(c.path) == 1 && c.path[0] == "metadata" {
		return nil
	}
	access := s.Gate(c.r)
	if access == nil {
		w.Header().Set("WWW-Authenticate", `Bearer realm="fhirtest"`)
		return refuse(http.StatusUnauthorized, "the credentials do not hold")
	}
	if c.sees = access.Sees; access.Types != nil && len(c.path) > 0 && !slices.Contains(access.Types, c.path[0]) {
		return refuse(http.StatusForbidden, "the credentials are not for this type")
	}
	return nil
}
