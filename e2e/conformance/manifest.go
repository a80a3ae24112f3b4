package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// manifest is the body of a complete status, as far as rows look at it.
type manifest struct {
	TransactionTime     string          `json:"transactionTime"`
	Request             string          `json:"request"`
	RequiresAccessToken bool            `json:"requiresAccessToken"`
	OutputOrganizedBy   string          `json:"outputOrganizedBy"`
	Output              []item          `json:"output"`
	Deleted             []item          `json:"deleted"`
	Error               []item          `json:"error"`
	Outcome             []item          `json:"outcome"`
	Link                json.RawMessage `json:"link"`
	// fields are all of them.
	fields map[string]json.RawMessage
}

// item is one file of a manifest.
type item struct {
	Type            string          `json:"type"`
	URL             string          `json:"url"`
	Count           *int            `json:"count"`
	ContinuesInFile string          `json:"continuesInFile"`
	Extension       json.RawMessage `json:"extension"`
	FileSize        *int            `json:"fileSize"`
	CountSeverity   []struct {
		Code  string `json:"code"`
		Count int    `json:"count"`
	} `json:"countSeverity"`
}

func parseManifest(body []byte) (*manifest, error) {
	var m manifest
	if err := errors.Join(json.Unmarshal(body, &m), json.Unmarshal(body, &m.fields)); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return &m, nil
}

// all are the files of all lists.
func (m *manifest) all() []item {
	return slices.Concat(m.Output, m.Deleted, m.Error, m.Outcome)
}

// time is the transaction time.
func (m *manifest) time() (time.Time, error) {
	at, err := time.Parse(time.RFC3339, m.TransactionTime)
	if err != nil {
		return at, fmt.Errorf("transactionTime %q is not an instant", m.TransactionTime)
	}
	return at, nil
}

// resource is what rows look at in a resource.
type resource struct {
	ResourceType string `json:"resourceType"`
	ID           string `json:"id"`
	Meta         struct {
		VersionID   string    `json:"versionId"`
		LastUpdated time.Time `json:"lastUpdated"`
		Tag         []struct {
			System string `json:"system"`
			Code   string `json:"code"`
		} `json:"tag"`
	} `json:"meta"`
}

func parseResource(line []byte) resource {
	var r resource
	// What is no resource has neither type nor id, which every look at it notices.
	_ = json.Unmarshal(line, &r)
	return r
}

// keyOf gives Type/id of a line.
func keyOf(line []byte) string {
	r := parseResource(line)
	return r.ResourceType + "/" + r.ID
}

func typeOf(key string) string {
	typ, _, _ := strings.Cut(key, "/")
	return typ
}

// references are the literal references in a resource.
func references(line []byte) []string {
	var tree any
	if json.Unmarshal(line, &tree) != nil {
		return nil
	}
	var found []string
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[string]any:
			for name, child := range node {
				if reference, ok := child.(string); ok && name == "reference" {
					found = append(found, reference)
				}
				walk(child)
			}
		case []any:
			for _, child := range node {
				walk(child)
			}
		}
	}
	walk(tree)
	return found
}
