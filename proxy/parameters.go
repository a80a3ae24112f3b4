package proxy

import (
	"encoding/json"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// isJSON tells whether a body says to be FHIR's JSON. JSON is UTF-8 by its own standard.
func isJSON(header http.Header) bool {
	media, parameters, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || header.Get("Content-Encoding") != "" && !strings.EqualFold(header.Get("Content-Encoding"), "identity") {
		return false
	}
	charset := parameters["charset"]
	return slices.Contains([]string{"application/fhir+json", "application/json"}, media) && (charset == "" || strings.EqualFold(charset, "utf-8"))
}

// body adds the parameters of a Parameters resource to those of the address. A value means what the same text would mean
// there, whichever value[x] it comes in; percent signs and plus signs stand for themselves.
func (r *reading) body(body []byte, into map[string][]string) error {
	var wire struct {
		ResourceType string
		Parameter    []map[string]json.RawMessage
	}
	if !jsontext.Value(body).IsValid() || json.Unmarshal(body, &wire) != nil { // not with members that are said twice: which one counts, nobody knows
		return &refusal{http.StatusBadRequest, "structure", "the body is not a Parameters resource in JSON"}
	}
	if wire.ResourceType != "Parameters" {
		return &refusal{http.StatusBadRequest, "structure", "the body is not a Parameters resource"}
	}
	for _, member := range wire.Parameter {
		var name string
		if json.Unmarshal(member["name"], &name) != nil || name == "" {
			r.fault("", "structure", "a parameter in the body has no name")
			continue
		}
		if value, wrong := valueOf(member); wrong == "" {
			into[name] = append(into[name], value)
		} else {
			base, _, _ := strings.Cut(name, ":")
			r.fault(base, "structure", "the parameter "+printable(name)+" in the body "+wrong)
		}
	}
	return nil
}

// valueOf returns the one value[x] of a parameter as text, or what is wrong with it. Whatever else it holds would change
// what it means.
func valueOf(member map[string]json.RawMessage) (value, wrong string) {
	found := false
	for key, raw := range member {
		switch {
		case key == "name", key == "id", key == "extension", strings.HasPrefix(key, "_"):
		case !strings.HasPrefix(key, "value") || found:
			return "", "may have one value and nothing beside it"
		default:
			found = true
			if value, wrong = textOf(key, raw); wrong != "" {
				return "", wrong
			}
		}
	}
	if !found {
		return "", "has no value"
	}
	return value, ""
}

// textOf reads a primitive value, the reference of a Reference, or the code of a Coding.
func textOf(key string, raw json.RawMessage) (text, wrong string) {
	const unreadable = "has a value that cannot be read"
	var value any
	if json.Unmarshal(raw, &value) != nil {
		return "", unreadable
	}
	switch value := value.(type) {
	case string:
		return value, ""
	case bool, float64:
		return string(raw), "" // the number as it was written
	case map[string]any:
		member := map[string]string{"valueReference": "reference", "valueCoding": "code"}[key]
		if text, ok := value[member].(string); ok {
			return text, ""
		}
	}
	return "", unreadable
}
