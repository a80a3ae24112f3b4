package conformance

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
)

func capabilityRows() []Row {
	return section("CapabilityStatement and documentation",
		row("Q-01", should, "instantiates names the CapabilityStatement of the guide", instantiates),
		row("Q-02", shall, "the operations are listed with the guide's names and definitions, and are there", operations),
		row("Q-03", should, "the types that can be exported are listed, with search parameters for _typeFilter", listedTypes),
		row("Q-04", should, "types that exports leave out are marked with operation-not-supported", markedTypes),
		row("Q-05", may, "several versions of an operation stand side by side under names of their own", versions),
		row("Q-06", should, "profiles, files, supporting resources, levels and parameters are documented", untestable("it is about documents for people; those of the sidecar are docs/api.md, files.md, narrowing.md, organized.md and upstreams.md")),
	)
}

const (
	bulkData     = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
	definitions  = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/"
	notSupported = "http://hl7.org/fhir/uv/bulkdata/Extension/operation-not-supported"
)

// statement is a CapabilityStatement.
type statement struct {
	ResourceType string   `json:"resourceType"`
	FHIRVersion  string   `json:"fhirVersion"`
	Instantiates []string `json:"instantiates"`
	Rest         []struct {
		Mode      string              `json:"mode"`
		Operation []operation         `json:"operation"`
		Resource  []statementResource `json:"resource"`
	} `json:"rest"`
}

type statementResource struct {
	Type      string            `json:"type"`
	Operation []operation       `json:"operation"`
	Search    []json.RawMessage `json:"searchParam"`
	Extension []struct {
		URL            string `json:"url"`
		ValueCanonical string `json:"valueCanonical"`
	} `json:"extension"`
}

type operation struct {
	Name       string `json:"name"`
	Definition string `json:"definition"`
}

// statement is what the server says to who has no token.
func (c *check) statement() statement {
	a := c.send(request{url: c.Base + "/metadata", header: http.Header{"Accept": {fhirJSON}}, token: noToken})
	var s statement
	if a.status != http.StatusOK || json.Unmarshal(a.body, &s) != nil || s.ResourceType != "CapabilityStatement" || len(s.Rest) == 0 {
		c.fatalf("GET metadata: status %d, want 200 and a CapabilityStatement", a.status)
	}
	return s
}

func (s statement) resource(typ string) statementResource {
	for _, r := range s.Rest[len(s.Rest)-1].Resource {
		if r.Type == typ {
			return r
		}
	}
	return statementResource{}
}

func instantiates(c *check) {
	if !slices.ContainsFunc(c.statement().Instantiates, func(of string) bool { return before(of, "|") == bulkData }) {
		c.errorf("instantiates does not name %s", bulkData)
	}
}

// exportsOf are the operations whose definition is the one of a level.
func exportsOf(list []operation, definition string) []operation {
	return slices.DeleteFunc(slices.Clone(list), func(o operation) bool { return before(o.Definition, "|") != definitions+definition })
}

func operations(c *check) {
	s := c.statement()
	for _, level := range []struct {
		definition string
		listed     []operation
		export     func() *export
	}{
		{"export", s.Rest[len(s.Rest)-1].Operation, c.system},
		{"patient-export", s.resource("Patient").Operation, c.patients},
		{"group-export", s.resource("Group").Operation, c.group},
	} {
		found := exportsOf(level.listed, level.definition)
		if !slices.ContainsFunc(found, func(o operation) bool { return o.Name == "export" }) {
			c.errorf("no operation export is defined by %s", level.definition)
		}
		if level.export().accepted.status != http.StatusAccepted {
			c.errorf("%s is listed and refused", level.definition)
		}
	}
}

func listedTypes(c *check) {
	s := c.statement()
	for key := range c.system().rows {
		if r := s.resource(typeOf(key)); r.Type == "" {
			c.errorf("%s was exported and is not listed", typeOf(key))
		} else if len(r.Search) == 0 {
			c.errorf("%s was exported and has no searchParam", r.Type)
		}
	}
}

// unmarked are the types of which the statement does not say that an operation leaves them out.
func (s statement) unmarked(definition string) []string {
	var types []string
	for _, r := range s.Rest[len(s.Rest)-1].Resource {
		marked := false
		for _, e := range r.Extension {
			marked = marked || e.URL == notSupported && (e.ValueCanonical == bulkData || e.ValueCanonical == definitions+definition)
		}
		if !marked {
			types = append(types, r.Type)
		}
	}
	return types
}

func markedTypes(c *check) {
	s := c.statement()
	for definition, path := range map[string]string{"export": "$export", "patient-export": "Patient/$export"} {
		types := s.unmarked(definition)
		if definition == "patient-export" && len(types) == len(s.Rest[len(s.Rest)-1].Resource) {
			c.errorf("no type is marked as left out by patient-export")
		}
		if a := c.try(kickoff{path: path, query: "_type=" + strings.Join(types, ",")}); a.status != http.StatusAccepted {
			c.errorf("%s refuses a type that is not marked: status %d: %s", path, a.status, a.short())
		}
	}
}

// fourth is the name of the system's export in version 4 of the guide; empty where there is none of its own.
func (s statement) fourth() string {
	for _, o := range exportsOf(s.Rest[len(s.Rest)-1].Operation, "export") {
		if _, version, _ := strings.Cut(o.Definition, "|"); o.Name != "export" && strings.HasPrefix(version, "4.") {
			return o.Name
		}
	}
	return ""
}

// fourthExport is an export of version 4.
func (c *check) fourthExport() *export {
	name := c.statement().fourth()
	if name == "" {
		c.notOffered("one version only")
	}
	return c.share("fourth", kickoff{
		path: "$" + name, prefer: "respond-async, handling=lenient",
		body: parameters([3]string{"_type", "String", `"Patient,Condition"`}, [3]string{"noSuchParameter", "String", `"x"`}),
	})
}

func versions(c *check) {
	e := c.fourthExport()
	c.sameKeys("the export of version 4", e.rows, c.repeated().rows)
}

// fourthVersion checks what a manifest of version 4 holds.
func fourthVersion(c *check) {
	e := c.fourthExport()
	var m struct {
		ManifestType string            `json:"manifestType"`
		OutputFormat *string           `json:"outputFormat"`
		Outcome      []json.RawMessage `json:"outcome"`
		Extension    json.RawMessage   `json:"extension"`
	}
	c.must(json.Unmarshal(e.last.body, &m))
	if m.ManifestType != "" && before(m.ManifestType, "|") != definitions+"export" {
		c.errorf("manifestType is not the operation")
	}
	if m.OutputFormat != nil && *m.OutputFormat != ndjson {
		c.errorf("outputFormat is %q, want %s", *m.OutputFormat, ndjson)
	}
	if m.Extension != nil && !isArray(m.Extension) {
		c.errorf("extension is not an array")
	}
	for _, gone := range []string{"request", "error"} {
		if e.manifest.fields[gone] != nil {
			c.errorf("%s stands in the manifest", gone)
		}
	}
	if len(m.Outcome) == 0 {
		c.errorf("outcome does not tell of the parameter that was ignored")
	}
	for _, item := range e.manifest.Outcome {
		c.severities(item, e.files[item.URL])
	}
	for _, item := range e.manifest.Output {
		body, err := e.files[item.URL].decoded()
		c.must(err)
		if item.FileSize != nil && *item.FileSize != len(body) {
			c.errorf("fileSize of a file of %s is %d, it has %d bytes", item.Type, *item.FileSize, len(body))
		}
	}
}

// severities compares the countSeverity of a file of outcomes with its lines.
func (c *check) severities(item item, f *file) {
	counted := map[string]int{}
	for _, line := range f.lines {
		o, err := parseOutcome(line)
		c.must(err)
		counted[o.Issue[0].Severity]++
	}
	for _, severity := range item.CountSeverity {
		if counted[severity.Code] != severity.Count {
			c.errorf("countSeverity has %d of %s, the file %d", severity.Count, severity.Code, counted[severity.Code])
		}
	}
}
