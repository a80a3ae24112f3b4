package conformance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

func manifestRows() []Row {
	return section("Manifest",
		row("M-01", shall, "transactionTime: all that was changed up to it comes, nothing later", transactionTime, needsWrites),
		row("M-02", shall, "request is the public address of the kick-off, of a POST without parameters", requestField),
		row("M-03", shall, "requiresAccessToken says whether files need a token", requiresAccessToken),
		row("M-04", shall, "output is an array of files with type and absolute url, empty where nothing was found", outputField),
		row("M-05", shall, "each file holds one type, and none is empty", (*check).oneTypeEach),
		row("M-06", may, "count is the number of a file's resources", counts),
		row("M-07", shall, "continuesInFile names the file in which a block goes on", continues),
		row("M-08", should, "deleted lists what was deleted since _since, and output does not", deletedFiles, needsWrites),
		row("M-09", shall, "each line of a deleted file is a transaction Bundle of DELETE requests", deletedLines, needsWrites),
		row("M-10", shall, "error is an array of files of OperationOutcomes", errorField),
		row("M-11", shall, "outputOrganizedBy stands in the manifest of an organised output only", organizedBy),
		row("M-12", may, "link leads to the next manifest, with allowPartialManifests only", linkField),
		row("M-13", may, "extension is a JSON object", extensionField),
		row("M-14", may, "the fields of version 4 of the guide have its form", fourthVersion),
	)
}

// transactionTime writes one resource before a kick-off and changes it after it. Where the server has begun so late that all
// changes were before its transactionTime, nothing was shown, and it is given more time.
func transactionTime(c *check) {
	const key = "Basic/conformance-time"
	write := func(text string) resource {
		return c.write(key, fmt.Sprintf(`{"resourceType":"Basic","id":"conformance-time","code":{"text":%q}}`, text))
	}
	defer c.remove(key)
	for wait := 1200 * time.Millisecond; wait < time.Minute; wait *= 4 {
		if c.changedAround(key, write, wait) || c.outcome == NotMet {
			return
		}
	}
	c.lack("a change after transactionTime")
}

// changedAround changes a resource before the kick-off, soon after it, and after a while, when transactionTime is over, which
// may be rounded up to a whole second. It tells whether that was so.
func (c *check) changedAround(key string, write func(text string) resource, wait time.Duration) bool {
	first := write("before, and " + wait.String())
	c.slots <- struct{}{}
	defer func() { <-c.slots }()
	release := c.hold("Basic")
	defer release()
	e, err := c.begin(c.ctx, kickoff{query: "_type=Basic"})
	c.must(err)
	defer c.drop(e)
	versions := []resource{first, write("soon after")}
	c.must(pause(c.ctx, wait))
	versions = append(versions, write("after"))
	release()
	c.must(c.await(c.ctx, e, ""))
	c.complete(e)
	c.must(c.download(c.ctx, e, ""))
	at, err := e.manifest.time()
	c.must(err)
	if at.Before(first.Meta.LastUpdated) {
		c.errorf("transactionTime lies before a change that was made before the kick-off")
	}
	want := 0
	for i, version := range versions {
		if !version.Meta.LastUpdated.After(at) {
			want = i
		}
	}
	switch got := parseResource(e.rows[key]); {
	case e.rows[key] == nil:
		c.errorf("a resource that was changed before and after transactionTime is missing")
	case got.Meta.VersionID != versions[want].Meta.VersionID:
		c.errorf("version %s of a resource, want %s, which was the newest at transactionTime", got.Meta.VersionID, versions[want].Meta.VersionID)
	}
	for _, line := range e.rows {
		if parseResource(line).Meta.LastUpdated.After(at) {
			c.errorf("a resource was changed after transactionTime")
		}
	}
	return want < len(versions)-1
}

func requestField(c *check) {
	for _, e := range []*export{c.system(), c.repeated()} {
		if e.manifest.Request != e.request.url {
			c.errorf("request is not the address of the kick-off")
		}
	}
	base := c.Base + "/$export"
	if got := c.posted().manifest.Request; got != base {
		c.errorf("request of a POST is %q, want %s", strings.ReplaceAll(got, c.Base, "[base]"), "[base]/$export")
	}
}

func requiresAccessToken(c *check) {
	for _, e := range append(c.bothKinds(), c.system()) {
		if value := string(e.manifest.fields["requiresAccessToken"]); value != "true" && value != "false" {
			c.errorf("requiresAccessToken is %s, want a JSON boolean", value)
		}
		status := c.send(request{url: e.manifest.Output[0].URL, token: noToken}).status
		if needs := status != http.StatusOK; needs != e.manifest.RequiresAccessToken {
			c.errorf("requiresAccessToken is %t, but a file without a token: status %d", !needs, status)
		}
	}
}

func outputField(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		if !isArray(e.manifest.fields["output"]) {
			c.errorf("output is not an array")
		}
		for _, item := range e.manifest.Output {
			at, err := url.Parse(item.URL)
			if err != nil || !at.IsAbs() || at.Host == "" {
				c.errorf("url %q is not absolute", item.URL)
			}
			if item.Type == "" {
				c.errorf("a file has no type")
			}
		}
	}
	const rare = "EffectEvidenceSynthesis"
	if c.count(rare) > 0 {
		c.lack("a type without resources")
	}
	if e := c.export(kickoff{query: "_type=" + rare}); len(e.manifest.Output) > 0 || !isArray(e.manifest.fields["output"]) {
		c.errorf("nothing was found, and output is not []")
	}
}

func isArray(value json.RawMessage) bool { return len(value) > 0 && value[0] == '[' }

func (c *check) oneTypeEach() {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		for _, item := range e.manifest.Output {
			f := e.files[item.URL]
			if len(f.lines) == 0 {
				c.errorf("a file of %s is empty", item.Type)
			}
			for _, line := range f.lines {
				if typ := typeOf(keyOf(line)); typ != item.Type {
					c.errorf("a file of %s holds %s", item.Type, typ)
				}
			}
		}
	}
}

func counts(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		for _, item := range e.manifest.all() {
			if item.Count != nil && *item.Count != len(e.files[item.URL].lines) {
				c.errorf("count of a file of %s is %d, it has %d lines", item.Type, *item.Count, len(e.files[item.URL].lines))
			}
		}
	}
	if c.system().manifest.Output[0].Count == nil {
		c.notOffered("no count")
	}
	e, err := c.organisedOnce()
	if err != nil || e.manifest == nil {
		return // other rows look at that
	}
	for _, item := range e.manifest.Output {
		resources := 0
		for _, b := range c.blocksOf(e.files[item.URL]) {
			resources += len(b.rows)
		}
		if item.Count != nil && *item.Count != resources {
			c.errorf("count of a file of organised output is %d, it has %d resources beside the headers", *item.Count, resources)
		}
	}
}

// deletions is an export since a moment after which a resource was deleted and another made, changed and deleted again.
func (c *check) deletions() *export {
	c.deletionsOnce.Do(func() {
		since := c.write("Basic/conformance-gone", `{"resourceType":"Basic","id":"conformance-gone","code":{"text":"goes"}}`).Meta.LastUpdated
		c.write("Basic/conformance-back", `{"resourceType":"Basic","id":"conformance-back","code":{"text":"goes, too"}}`)
		c.remove("Basic/conformance-gone")
		c.remove("Basic/conformance-back")
		c.write("Basic/conformance-back", `{"resourceType":"Basic","id":"conformance-back","code":{"text":"is back"}}`)
		defer c.remove("Basic/conformance-back")
		c.share("deletions", kickoff{query: query("_type", "Basic", "_since", since.Format(time.RFC3339Nano))})
	})
	if c.shared["deletions"] == nil {
		c.fatalf("the resources to delete could not be written")
	}
	return c.share("deletions", kickoff{})
}

// deletedURLs are what the lines of the deleted files name.
func (c *check) deletedURLs(e *export) []string {
	var urls []string
	for _, item := range e.manifest.Deleted {
		for _, line := range e.files[item.URL].lines {
			var b struct {
				ResourceType, Type string
				Entry              []struct {
					Request struct{ Method, URL string }
				}
			}
			if err := json.Unmarshal(line, &b); err != nil || b.ResourceType != "Bundle" || b.Type != "transaction" || len(b.Entry) == 0 {
				c.errorf("a line of a deleted file is not a transaction Bundle with entries")
			}
			for _, entry := range b.Entry {
				if entry.Request.Method != http.MethodDelete || strings.Count(entry.Request.URL, "/") != 1 {
					c.errorf("an entry of a deleted file is no DELETE of Type/id")
				}
				urls = append(urls, entry.Request.URL)
			}
		}
	}
	return urls
}

func deletedFiles(c *check) {
	e := c.deletions()
	if !isArray(e.manifest.fields["deleted"]) {
		c.notOffered("no deleted")
	}
	urls := c.deletedURLs(e)
	if !slices.Contains(urls, "Basic/conformance-gone") {
		c.errorf("a deletion after _since is not reported")
	}
	for _, key := range urls {
		if e.rows[key] != nil {
			c.errorf("a resource stands in deleted and in output")
		}
	}
	if e.rows["Basic/conformance-back"] == nil {
		c.errorf("a resource that was made again is missing")
	}
	if len(c.deletedURLs(c.system())) > 0 {
		c.errorf("deletions are reported without _since")
	}
}

func deletedLines(c *check) {
	e := c.deletions()
	if len(c.deletedURLs(e)) == 0 {
		c.notOffered("nothing in deleted")
	}
}

func errorField(c *check) {
	exports := []*export{c.system(), c.patients(), c.group()}
	if e, err := c.lenientOnce(); err == nil {
		exports = append(exports, c.complete(e))
	}
	outcomes := 0
	for _, e := range exports {
		if !isArray(e.manifest.fields["error"]) {
			c.errorf("error is not an array")
		}
		for _, item := range e.manifest.Error {
			if item.Type != "OperationOutcome" {
				c.errorf("the type of an error file is %q", item.Type)
			}
			for _, line := range e.files[item.URL].lines {
				outcomes++
				if _, err := parseOutcome(line); err != nil {
					c.errorf("a line of an error file is %v", err)
				}
			}
		}
	}
	if outcomes == 0 {
		c.lack("an export with something in error")
	}
}

func organizedBy(c *check) {
	if c.patients().manifest.fields["outputOrganizedBy"] != nil {
		c.errorf("outputOrganizedBy stands in a manifest that nobody wanted organised")
	}
	if got := c.organised().manifest.OutputOrganizedBy; got != "Patient" {
		c.errorf("outputOrganizedBy is %q, want Patient", got)
	}
	for _, item := range c.organised().manifest.Output {
		if item.Type != "" {
			c.errorf("a file of organised output has a type")
		}
	}
}

func extensionField(c *check) {
	none := true
	for _, e := range []*export{c.system(), c.patients()} {
		values := []json.RawMessage{e.manifest.fields["extension"]}
		for _, item := range e.manifest.all() {
			values = append(values, item.Extension)
		}
		for _, value := range values {
			none = none && value == nil
			if value != nil && value[0] != '{' && e.manifest.fields["manifestType"] == nil {
				c.errorf("extension is not a JSON object")
			}
		}
	}
	if none {
		c.notOffered("no extension")
	}
}

func linkField(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		if e.manifest.Link != nil {
			c.errorf("link stands in a manifest although allowPartialManifests was not given")
		}
	}
	c.nextPage()
}
