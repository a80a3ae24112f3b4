package conformance

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// system is an export of everything.
func (c *check) system() *export { return c.filled("system", kickoff{}) }

// patients is an export of all patients.
func (c *check) patients() *export { return c.filled("patients", kickoff{path: "Patient/$export"}) }

// group is an export of the Group with the most members.
func (c *check) group() *export {
	return c.filled("group", kickoff{path: "Group/" + c.groupID() + "/$export"})
}

// filled is share for an export that holds Patients where there are any, as without files most rows would see nothing.
func (c *check) filled(name string, k kickoff) *export {
	e := c.share(name, k)
	if len(e.manifest.Output) > 0 {
		return e
	}
	if n := c.count("Patient"); n > 0 {
		c.fatalf("the export has no files, the server has %d Patients", n)
	}
	c.lack("a Patient")
	return nil
}

// tokenFiles is an export of all patients whose files need a token; nil where none do.
func (c *check) tokenFiles() *export {
	if e := c.patients(); e.manifest.RequiresAccessToken {
		return e
	}
	if c.TokenFiles == "" {
		return nil
	}
	e := c.filled("token files", kickoff{base: c.TokenFiles, path: "Patient/$export"})
	if !e.manifest.RequiresAccessToken {
		c.fatalf("requiresAccessToken is false at the installation whose files need a token")
	}
	return e
}

// openFiles is an export of all patients whose files can be read without a token; nil where none can.
func (c *check) openFiles() *export {
	if e := c.patients(); !e.manifest.RequiresAccessToken {
		return e
	}
	return nil
}

// bothKinds are the exports of which some files need a token and some do not.
func (c *check) bothKinds() []*export {
	return slices.DeleteFunc([]*export{c.openFiles(), c.tokenFiles()}, func(e *export) bool { return e == nil })
}

// bundle is the answer to a search.
type bundle struct {
	ResourceType string `json:"resourceType"`
	Total        *int   `json:"total"`
	Entry        []struct {
		Resource json.RawMessage `json:"resource"`
	} `json:"entry"`
}

// search makes a search by REST and ends the row where there is none.
func (c *check) search(path string) bundle {
	a := c.send(request{url: c.Base + "/" + path, header: http.Header{"Accept": {fhirJSON}, "Cache-Control": {"no-cache"}}})
	var b bundle
	if a.status != http.StatusOK || json.Unmarshal(a.body, &b) != nil || b.ResourceType != "Bundle" {
		c.lack("a search " + before(path, "?") + " by REST")
	}
	return b
}

// count is how many resources a search finds.
func (c *check) count(path string) int {
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	b := c.search(path + separator + "_summary=count")
	if b.Total == nil {
		c.lack("counts by _summary=count")
	}
	return *b.Total
}

func before(s, separator string) string {
	head, _, _ := strings.Cut(s, separator)
	return head
}

// members are the ids of the Patients whom a Group names, those of Groups in it among them.
func (c *check) members(id string) []string {
	a := c.get(c.Base + "/Group/" + url.PathEscape(id))
	if a.status != http.StatusOK {
		c.lack("a Group that can be read")
	}
	var group groupResource
	c.must(json.Unmarshal(a.body, &group))
	var ids []string
	for _, member := range group.Member {
		reference := member.Entity.Reference
		ended, err := time.Parse("2006-01-02", before(member.Period.End, "T"))
		if member.Inactive || err == nil && ended.Before(time.Now()) {
			continue
		}
		if patient, ok := strings.CutPrefix(reference, "Patient/"); ok {
			ids = append(ids, patient)
		} else if inner, ok := strings.CutPrefix(reference, "Group/"); ok && inner != id {
			ids = append(ids, c.members(inner)...)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

type groupResource struct {
	ID     string `json:"id"`
	Member []struct {
		Entity struct {
			Reference string `json:"reference"`
		} `json:"entity"`
		Inactive bool `json:"inactive"`
		Period   struct {
			End string `json:"end"`
		} `json:"period"`
	} `json:"member"`
}

// groupID is the Group with the most members.
func (c *check) groupID() string {
	best, most := "", 0
	for _, entry := range c.search("Group?_count=50").Entry {
		var group groupResource
		if json.Unmarshal(entry.Resource, &group) == nil && group.ID != c.DeniedGroup && len(group.Member) > most {
			best, most = group.ID, len(group.Member)
		}
	}
	if best == "" {
		c.lack("a Group with members")
	}
	return best
}

// write puts a resource that the row may delete again, and gives it as the server keeps it.
func (c *check) write(key, body string) resource {
	a := c.send(request{method: http.MethodPut, url: c.Base + "/" + key, header: http.Header{"Content-Type": {fhirJSON}}, body: []byte(body)})
	if a.status/100 != 2 {
		c.fatalf("PUT of a resource: status %d: %s", a.status, a.short())
	}
	return parseResource(c.get(c.Base + "/" + key).body)
}

func (c *check) remove(key string) {
	if a := c.send(request{method: http.MethodDelete, url: c.Base + "/" + key}); a.status/100 != 2 {
		c.fatalf("DELETE of a resource: status %d: %s", a.status, a.short())
	}
}

// ofType are the rows of a type, by Type/id.
func (e *export) ofType(typ string) map[string]json.RawMessage {
	rows := map[string]json.RawMessage{}
	for key, line := range e.rows {
		if typeOf(key) == typ {
			rows[key] = line
		}
	}
	return rows
}

// sameKeys compares two sets of rows.
func (c *check) sameKeys(what string, got, want map[string]json.RawMessage) {
	missing, extra := 0, 0
	for key := range want {
		if got[key] == nil {
			missing++
		}
	}
	for key := range got {
		if want[key] == nil {
			extra++
		}
	}
	if missing+extra > 0 {
		c.errorf("%s: %d resources, want %d: %d are missing, %d too many", what, len(got), len(want), missing, extra)
	}
}

// refersTo tells whether a resource has a literal reference to another.
func refersTo(line []byte, key string) bool {
	return slices.ContainsFunc(references(line), func(reference string) bool { return localKey(reference) == key })
}

// localKey is the last Type/id of a reference, without its version.
func localKey(reference string) string {
	parts := strings.Split(before(reference, "/_history/"), "/")
	if len(parts) < 2 {
		return reference
	}
	return parts[len(parts)-2] + "/" + parts[len(parts)-1]
}
