package fhirtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// fhirJSON is the media type of every answer but a faulty one.
const fhirJSON = "application/fhir+json;charset=UTF-8"

// refusal is an answer that is an OperationOutcome.
type refusal struct {
	status int
	text   string
}

func (e *refusal) Error() string { return e.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// issueCodes are the codes of the value set issue-type by status.
var issueCodes = map[int]string{
	http.StatusBadRequest: "invalid", http.StatusUnauthorized: "login", http.StatusForbidden: "forbidden",
	http.StatusNotFound: "not-found", http.StatusMethodNotAllowed: "not-supported", http.StatusGone: "deleted",
	http.StatusTooManyRequests: "throttled", http.StatusServiceUnavailable: "transient", http.StatusGatewayTimeout: "timeout",
}

// outcome writes one issue as an OperationOutcome.
func outcome(severity, code, text string) []byte {
	return fmt.Appendf(nil, `{"resourceType":"OperationOutcome","issue":[{"severity":%s,"code":%s,"diagnostics":%s}]}`,
		quote(severity), quote(code), quote(text))
}

func statusOutcome(status int, text string) []byte {
	code, ok := issueCodes[status]
	if !ok {
		code = "exception"
	}
	return outcome("error", code, text)
}

// fail answers with an OperationOutcome; once the body has begun, the connection is aborted instead, so that half an
// answer never looks whole.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var no *refusal
	if !errors.As(err, &no) {
		panic(http.ErrAbortHandler)
	}
	pretty := s.p.Pretty && r.URL.Query().Get("_pretty") != "false"
	if err := writeJSON(w, no.status, statusOutcome(no.status, no.text), pretty); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// writeJSON writes one whole answer.
func writeJSON(w http.ResponseWriter, status int, body []byte, pretty bool) error {
	if pretty {
		var b bytes.Buffer
		if err := json.Indent(&b, body, "", "  "); err != nil {
			return fmt.Errorf("indent answer: %w", err)
		}
		body = b.Bytes()
	}
	w.Header().Set("Content-Type", fhirJSON)
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
}
