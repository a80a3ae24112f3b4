package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

func fileRows() []Row {
	return slices.Concat(
		section("Files and organised output",
			row("F-01", shall, "a file is 200 with the media type of its format", fileType),
			row("F-02", shall, "each line of a file is one JSON resource", fileLines),
			row("F-03", shall, "an address that is no file's is 4xx or 5xx", noFile),
			row("F-04", shall, "only the newest version of a resource is exported, once", newestOnly, needsWrites),
			row("F-05", shall, "a file that is compressed says so in Content-Encoding", encodings),
			row("F-06", shall, "where requiresAccessToken is true, a file needs a valid token", tokenNeeded),
			row("F-07", shall, "where it is false, the address works by itself, and not longer than 300 s", tokenless),
			row("F-08", may, "the Accept of a request of a file may be ignored", acceptOfFile),
			row("F-09", shall, "a block is a header, its instance and what refers to that", blocks),
			row("F-10", should, "a block is not split; where it is, its header is repeated", split),
			row("F-11", may, "resources of no block are left out, repeated or put beside what they refer to", looseResources),
		),
		section("Attachments",
			row("A-01", should, "an Attachment has a contentType, and data or url", attachmentParts),
			row("A-02", shall, "an Attachment's url is absolute and can be read", attachmentURLs),
			row("A-03", shall, "it needs the token where requiresAccessToken is true, and none where it is false", attachmentTokens),
		),
	)
}

func fileType(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		for _, f := range e.files {
			if f.status != http.StatusOK || f.media() != ndjson {
				c.errorf("a file of %s: status %d and Content-Type %q", f.Type, f.status, f.header.Get("Content-Type"))
			}
		}
	}
}

func fileLines(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		for _, f := range e.files {
			if f.err != nil {
				c.errorf("a file of %s: %v", f.Type, f.err)
			}
			for _, line := range f.lines {
				if parseResource(line).ResourceType == "" {
					c.errorf("a line of a file of %s is no resource", f.Type)
				}
			}
		}
	}
}

func noFile(c *check) {
	own := c.patients().manifest.Output
	if a := c.read(c.patients(), own[0].URL+"x"); a.status < 400 {
		c.errorf("status %d, want 4xx or 5xx", a.status)
	}
	for _, other := range c.system().manifest.Output {
		if slices.ContainsFunc(own, func(item item) bool { return lastOf(item.URL) == lastOf(other.URL) }) {
			continue
		}
		// The name may be an address of the other file, but never one of something else.
		a := c.read(c.patients(), strings.Replace(own[0].URL, lastOf(own[0].URL), lastOf(other.URL), 1))
		if a.status < 400 && !bytes.Equal(a.body, c.system().files[other.URL].body) {
			c.errorf("the name of another export's file: status %d, want 4xx or 5xx", a.status)
		}
		break
	}
	if c.has(needsShortLived) {
		c.expiredFile()
	}
}

// lastOf is the last part of an address' path.
func lastOf(address string) string { return path.Base(before(address, "?")) }

// expiredFile reads a file until it has expired, and a little longer.
func (c *check) expiredFile() {
	e, err := c.begin(c.ctx, kickoff{base: c.ShortLived, query: "_type=Patient"})
	c.must(err)
	c.must(c.await(c.ctx, e, ""))
	file := c.complete(e).manifest.Output[0].URL
	if a := c.read(e, file); a.status != http.StatusOK {
		c.errorf("a file before it expires: status %d, want 200", a.status)
	}
	at, err := http.ParseTime(e.last.header.Get("Expires"))
	c.must(err)
	for late := false; !late; c.must(pause(c.ctx, 500*time.Millisecond)) {
		late = time.Now().After(at.Add(5 * time.Second)) // before it is read: that takes its time
		if a := c.read(e, file); a.status >= 400 {
			return
		}
	}
	c.errorf("a file can be read five seconds after it has expired")
}

func newestOnly(c *check) {
	const key = "Basic/conformance-versions"
	var newest resource
	for n := range 3 {
		newest = c.write(key, fmt.Sprintf(`{"resourceType":"Basic","id":"conformance-versions","code":{"text":"version %d"}}`, n))
	}
	defer c.remove(key)
	e := c.export(kickoff{query: "_type=Basic"})
	if got := parseResource(e.rows[key]); got.Meta.VersionID != newest.Meta.VersionID {
		c.errorf("version %q of a resource, want %q", got.Meta.VersionID, newest.Meta.VersionID)
	}
	for _, e := range []*export{e, c.system(), c.patients(), c.group()} {
		if len(e.twice) > 0 {
			c.errorf("%d resources came twice", len(e.twice))
		}
	}
}

func encodings(c *check) {
	for _, e := range c.bothKinds() {
		c.codings(e)
	}
}

func (c *check) codings(e *export) {
	item := e.manifest.Output[0]
	for _, coding := range []string{"", "identity", "gzip", "br, gzip;q=0.5"} {
		r := e.fileRequest(item.URL)
		if coding != "" {
			r.header = http.Header{"Accept-Encoding": {coding}}
		}
		a := c.send(r)
		body, err := a.decoded()
		if err != nil {
			c.errorf("Accept-Encoding %q: %v", coding, err)
			continue
		}
		lines, err := splitLines(body)
		if err != nil || !slices.EqualFunc(lines, e.files[item.URL].lines, func(a, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			c.errorf("Accept-Encoding %q: status %d, and not the same lines as without", coding, a.status)
		}
	}
}

func tokenNeeded(c *check) {
	e := c.tokenFiles()
	if e == nil {
		c.notOffered("requiresAccessToken is false")
	}
	tokens := []string{noToken, "no-such-token"}
	if c.has(needsTokens) {
		tokens = append(tokens, c.Token(Grant{Expired: true})) // empty where there is none, which sends the usual one
	}
	for _, item := range e.manifest.Output {
		for _, token := range tokens {
			if token != "" {
				c.refusedWith("a file without a valid token", c.send(request{url: item.URL, token: token}), 400, 401)
			}
		}
		if f := e.files[item.URL]; f.status != http.StatusOK {
			c.errorf("a file with a valid token: status %d, want 200", f.status)
		}
	}
}

func tokenless(c *check) {
	e := c.openFiles()
	if e == nil {
		c.notOffered("requiresAccessToken is true")
	}
	if a := c.send(request{url: e.manifest.Output[0].URL, token: noToken}); a.status != http.StatusOK {
		c.errorf("status %d without a token, want 200", a.status)
	}
	at, err := http.ParseTime(e.last.header.Get("Expires"))
	answered, _ := http.ParseTime(e.last.header.Get("Date"))
	if err != nil || at.Sub(answered) > 300*time.Second {
		c.errorf("the addresses work for longer than 300 s")
	}
}

func acceptOfFile(c *check) {
	for _, accept := range []string{ndjson, "*/*", "application/json"} {
		r := c.patients().fileRequest(c.patients().manifest.Output[0].URL)
		r.header = http.Header{"Accept": {accept}}
		a := c.send(r)
		if a.status != http.StatusOK && a.status != http.StatusNotAcceptable {
			c.errorf("Accept %s: status %d, want 200 or 406", accept, a.status)
		}
	}
}

// block is one instance with what stands below its header.
type block struct {
	of   string
	rows []json.RawMessage
}

// blocksOf reads the blocks of a file of organised output.
func (c *check) blocksOf(f *file) []block {
	var found []block
	for i, line := range f.lines {
		if of := headerOf(line); of != "" {
			found = append(found, block{of: of})
			continue
		}
		if i == 0 {
			c.fatalf("a file of organised output does not begin with a header")
		}
		last := &found[len(found)-1]
		last.rows = append(last.rows, line)
	}
	return found
}

// headerOf gives the instance that a header names, nothing for any other line.
func headerOf(line []byte) string {
	var p struct {
		ResourceType string `json:"resourceType"`
		Parameter    []struct {
			Name           string `json:"name"`
			ValueReference struct {
				Reference string `json:"reference"`
			} `json:"valueReference"`
		} `json:"parameter"`
	}
	if json.Unmarshal(line, &p) != nil || p.ResourceType != "Parameters" || len(p.Parameter) == 0 || p.Parameter[0].Name != "header" {
		return ""
	}
	return localKey(p.Parameter[0].ValueReference.Reference)
}

func blocks(c *check) {
	e := c.organised()
	met := map[string]bool{}
	for _, item := range e.manifest.Output {
		for _, b := range c.blocksOf(e.files[item.URL]) {
			met[b.of] = true
			if len(b.rows) == 0 || keyOf(b.rows[0]) != b.of {
				c.errorf("the instance does not follow its header")
				continue
			}
			for _, line := range b.rows[1:] {
				if !refersTo(line, b.of) {
					c.errorf("%s stands in the block of a Patient to whom it does not refer", typeOf(keyOf(line)))
				}
			}
		}
	}
	if got, want := len(met), len(c.repeated().ofType("Patient")); got != want {
		c.errorf("there are blocks of %d Patients, want %d", got, want)
	}
}

// looseResources compares what the blocks hold with the export that is not organised.
func looseResources(c *check) {
	held := map[string]json.RawMessage{}
	e := c.organised()
	for _, f := range e.files {
		for _, line := range f.lines {
			if typ := typeOf(keyOf(line)); typ == "Condition" || typ == "Patient" {
				held[keyOf(line)] = line
			}
		}
	}
	c.sameKeys("what the blocks hold together", held, c.repeated().rows)
}

// small is organised output in files that are too small for most blocks.
func (c *check) small() *export {
	return c.shareOptional("small", "_maximumFileSize is refused", kickoff{
		path: "Patient/$export", query: "organizeOutputBy=Patient&_type=Patient,Condition,Observation&_maximumFileSize=1500",
	})
}

func split(c *check) {
	all := c.organised()
	in := map[string]int{}
	for _, item := range all.manifest.Output {
		for _, b := range c.blocksOf(all.files[item.URL]) {
			in[b.of]++
		}
	}
	for _, n := range in {
		if n > 1 {
			c.errorf("a block is split although a file has room for it")
		}
	}
	// blocksOf wants a header at the head of each file.
	for _, item := range c.small().manifest.Output {
		c.blocksOf(c.small().files[item.URL])
	}
}

func continues(c *check) {
	e := c.small()
	links := 0
	for _, item := range e.manifest.Output {
		found := c.blocksOf(e.files[item.URL])
		last := found[len(found)-1].of
		if item.ContinuesInFile == "" {
			continue
		}
		links++
		next := e.files[item.ContinuesInFile]
		if next == nil {
			c.fatalf("continuesInFile is no file of the manifest")
		}
		if got := c.blocksOf(next)[0].of; got != last {
			c.errorf("the file of continuesInFile begins with another block")
		}
	}
	ends := map[string]int{}
	for _, item := range e.manifest.Output {
		for _, b := range c.blocksOf(e.files[item.URL]) {
			ends[b.of]++
		}
	}
	wanted := 0
	for _, n := range ends {
		wanted += n - 1
	}
	if links != wanted {
		c.errorf("%d files name the one in which their last block goes on, want %d", links, wanted)
	}
	if wanted == 0 {
		c.lack("blocks that are larger than a file")
	}
}

// attachment is an Attachment of a resource.
type attachment struct {
	ContentType string `json:"contentType"`
	Data        string `json:"data"`
	URL         string `json:"url"`
}

// attachments are those of the DocumentReferences of an export.
func (c *check) attachments(e *export) []attachment {
	var found []attachment
	for _, line := range e.ofType("DocumentReference") {
		var d struct {
			Content []struct {
				Attachment attachment `json:"attachment"`
			} `json:"content"`
		}
		c.must(json.Unmarshal(line, &d))
		for _, content := range d.Content {
			found = append(found, content.Attachment)
		}
	}
	if len(found) == 0 {
		c.lack("a DocumentReference")
	}
	return found
}

func attachmentParts(c *check) {
	for _, a := range c.attachments(c.patients()) {
		if a.ContentType == "" || a.Data == "" && a.URL == "" {
			c.errorf("an Attachment lacks contentType, or data and url")
		}
	}
}

// attachmentLinks are the urls of an export's attachments that stand on the server.
func (c *check) attachmentLinks(e *export) []string {
	var links []string
	for _, a := range c.attachments(e) {
		if at, err := url.Parse(a.URL); a.Data == "" && (err != nil || !at.IsAbs()) {
			c.errorf("the url of an Attachment is not absolute")
		}
		if strings.HasPrefix(a.URL, e.base) {
			links = append(links, a.URL)
		}
	}
	if len(links) == 0 {
		c.lack("an Attachment with a url on the server")
	}
	return links
}

func attachmentURLs(c *check) {
	for _, e := range c.bothKinds() {
		for _, link := range c.attachmentLinks(e) {
			if a := c.read(e, link); a.status != http.StatusOK || len(a.body) == 0 {
				c.errorf("an Attachment: status %d and %d bytes, want 200 and its content", a.status, len(a.body))
			}
		}
	}
}

func attachmentTokens(c *check) {
	for _, e := range c.bothKinds() {
		needs := e.manifest.RequiresAccessToken
		for _, link := range c.attachmentLinks(e) {
			switch a := c.send(request{url: link, token: noToken}); {
			case needs && a.status < 400:
				c.errorf("an Attachment without the token: status %d, want a refusal", a.status)
			case !needs && a.status != http.StatusOK:
				c.errorf("an Attachment without a token: status %d, want 200", a.status)
			}
			if a := c.get(link); needs && a.status != http.StatusOK {
				c.errorf("an Attachment with the token: status %d, want 200", a.status)
			}
		}
	}
}
