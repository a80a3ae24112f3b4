package fhir

import (
	"encoding/json"
	"slices"
)

// OperationOutcome is FHIR's answer for an error.
type OperationOutcome struct {
	ResourceType string `json:"resourceType"`
	// ID is that of the request which it answers, empty where there is none.
	ID    string         `json:"id,omitempty"`
	Issue []OutcomeIssue `json:"issue"`
}

// OutcomeIssue is one issue of an OperationOutcome. Severity and Code are from FHIR's required value sets
// issue-severity and issue-type.
type OutcomeIssue struct {
	Severity    string `json:"severity"`
	Code        string `json:"code"`
	Diagnostics string `json:"diagnostics,omitempty"`
}

// NewOutcome returns an OperationOutcome with one issue.
func NewOutcome(severity, code, diagnostics string) *OperationOutcome {
	return &OperationOutcome{
		ResourceType: "OperationOutcome",
		Issue:        []OutcomeIssue{{Severity: severity, Code: code, Diagnostics: diagnostics}},
	}
}

// SevereCode returns the code of the first issue of severity error or fatal, and whether there is one. What cannot be
// read is severe and has the code exception.
func SevereCode(outcome []byte) (code string, severe bool) {
	var o OperationOutcome
	if json.Unmarshal(outcome, &o) != nil {
		return "exception", true
	}
	for _, issue := range o.Issue {
		if issue.Severity != "error" && issue.Severity != "fatal" {
			continue
		}
		if isCode(issue.Code) {
			return issue.Code, true
		}
		return "exception", true
	}
	return "", false
}

// IsWarning tells whether an OperationOutcome has an issue of severity warning.
func IsWarning(outcome []byte) bool {
	var o OperationOutcome
	if json.Unmarshal(outcome, &o) != nil {
		return false
	}
	for _, issue := range o.Issue {
		if issue.Severity == "warning" {
			return true
		}
	}
	return false
}

// outcomeCodes returns the issue codes of a body that may be an OperationOutcome. Only codes that are FHIR's are
// taken, because errors are logged.
func outcomeCodes(body []byte) []string {
	var outcome OperationOutcome
	if json.Unmarshal(body, &outcome) != nil || outcome.ResourceType != "OperationOutcome" {
		return nil
	}
	var codes []string
	for _, issue := range outcome.Issue {
		if isCode(issue.Code) {
			codes = append(codes, issue.Code)
		}
	}
	return codes
}

// issueTypes are FHIR's required value set issue-type, as of R4.
var issueTypes = []string{
	"business-rule", "code-invalid", "conflict", "deleted", "duplicate", "exception", "expired", "extension", "forbidden", "incomplete",
	"informational", "invalid", "invariant", "lock-error", "login", "multiple-matches", "no-store", "not-found", "not-supported", "processing",
	"required", "security", "structure", "suppressed", "throttled", "timeout", "too-costly", "too-long", "transient", "unknown", "value",
}

// isCode tells whether s is a code of issue-type: a server's own word would make an OperationOutcome of ours invalid.
func isCode(s string) bool { return slices.Contains(issueTypes, s) }
