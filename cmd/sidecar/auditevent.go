package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"sidecar/state"
)

// The shapes of an AuditEvent. What R4 and R5 have in different forms is any.
type (
	auditEvent struct {
		ResourceType string         `json:"resourceType"`
		Type         *coding        `json:"type,omitempty"`    // R4
		Subtype      []coding       `json:"subtype,omitempty"` // R4
		Code         *concept       `json:"code,omitempty"`    // R5
		Action       string         `json:"action"`
		Recorded     string         `json:"recorded"`
		Outcome      any            `json:"outcome"`
		Agent        []auditAgent   `json:"agent"`
		Source       auditSource    `json:"source"`
		Entity       []auditSubject `json:"entity"`
	}
	coding struct {
		System  string `json:"system,omitempty"`
		Code    string `json:"code,omitempty"`
		Display string `json:"display,omitempty"`
	}
	concept struct {
		Coding []coding `json:"coding,omitempty"`
		Text   string   `json:"text,omitempty"`
	}
	auditAgent struct {
		Who       auditReference `json:"who"`
		Requestor bool           `json:"requestor"`
	}
	auditSource struct {
		Observer auditReference `json:"observer"`
	}
	auditReference struct {
		Identifier *auditIdentifier `json:"identifier,omitempty"`
		Display    string           `json:"display,omitempty"`
	}
	auditIdentifier struct {
		Value string `json:"value"`
	}
	auditSubject struct {
		What   *auditReference `json:"what,omitempty"`
		Detail []auditDetail   `json:"detail"`
	}
	auditDetail struct {
		Type  any    `json:"type"`
		Value string `json:"valueString"`
	}
)

// maxAuditHashes bounds how many files of an export an AuditEvent names: it is for people, and servers bound their resources.
const maxAuditHashes = 200

// newAuditEvent writes an event as an AuditEvent of a FHIR release, R4, R4B or R5. Who may read AuditEvents must not get at the files
// by them: the job stands there by its hash.
func newAuditEvent(release string, event *state.Audit) ([]byte, error) {
	r5 := strings.HasPrefix(release, "5.")
	if !r5 && !strings.HasPrefix(release, "4.") {
		return nil, fmt.Errorf("AuditEvent of FHIR %s is not known", release)
	}
	export := coding{System: "http://dicom.nema.org/resources/ontology/DCM", Code: "110106", Display: "Export"}
	e := auditEvent{
		ResourceType: "AuditEvent", Action: auditAction(event.What), Recorded: event.Time.UTC().Format("2006-01-02T15:04:05.000Z"),
		Source: auditSource{auditReference{Display: "bulk export sidecar"}},
	}
	outcome := auditOutcome(event)
	if r5 {
		e.Code = &concept{Coding: []coding{export}, Text: event.What}
		e.Outcome = struct {
			Code coding `json:"code"`
		}{coding{System: "http://terminology.hl7.org/CodeSystem/audit-event-outcome", Code: outcome}}
	} else {
		e.Type, e.Subtype, e.Outcome = &export, []coding{{Display: event.What}}, outcome
	}
	client := auditReference{Display: "a client that is not named"}
	if event.Client != "" {
		client = auditReference{Identifier: &auditIdentifier{event.Client}}
	}
	e.Agent = []auditAgent{{client, true}}
	subject := auditSubject{}
	if event.Job != "" {
		subject.What = &auditReference{Identifier: &auditIdentifier{state.AuditHash(event.Job)}, Display: "SHA-256 of the export's id"}
	}
	for _, detail := range auditDetails(event) {
		var typ any = detail[0]
		if r5 {
			typ = concept{Text: detail[0]}
		}
		subject.Detail = append(subject.Detail, auditDetail{typ, detail[1]})
	}
	e.Entity = []auditSubject{subject}
	return json.Marshal(e)
}

// auditAction is a code of FHIR's value set audit-event-action.
func auditAction(what string) string {
	switch what {
	case "download", "attachment":
		return "R"
	case "cancel", "expired":
		return "D"
	}
	return "E"
}

// auditOutcome is a code of audit-event-outcome: success, the client's fault, ours.
func auditOutcome(event *state.Audit) string {
	switch {
	case event.Status >= http.StatusInternalServerError || event.What == "failed":
		return "8"
	case event.Status >= http.StatusBadRequest || event.Aborted:
		return "4"
	}
	return "0"
}

// auditDetails are what else is known of an event, names and values.
func auditDetails(event *state.Audit) (details [][2]string) {
	add := func(name, value string) {
		if value != "" && value != "0" && value != "false" {
			details = append(details, [2]string{name, value})
		}
	}
	add("what", event.What)
	add("status", strconv.Itoa(event.Status))
	add("aborted", strconv.FormatBool(event.Aborted))
	add("level", string(event.Level))
	add("group", event.Group)
	add("types", strings.Join(event.Types, ","))
	add("file", event.File)
	add("range", strconv.FormatBool(event.Range))
	add("sha256", event.SHA256)
	add("files", strconv.Itoa(event.Files))
	add("resources", strconv.FormatInt(event.Resources, 10))
	add("bytes", strconv.FormatInt(event.Bytes, 10))
	for i, name := range slices.Sorted(maps.Keys(event.Hashes)) {
		if i == maxAuditHashes {
			break
		}
		add("sha256 of "+name, event.Hashes[name])
	}
	return details
}
