package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
)

func partialRows() []Row {
	return section("Partial manifests",
		row("P-01", may, "with allowPartialManifests a running export shows the files that are ready", partialManifest).alone(),
		row("P-02", shall, "a file that a partial manifest lists can be read at once", partialFiles),
		row("P-03", shall, "what a manifest has listed stays as it was", unchanged),
		row("P-04", shall, "the manifests of one export differ in their lists of files and in link alone", linkedFields),
		row("P-05", may, "the address of the next manifest answers with an error where the export fails", nextOfFailed).alone(),
		row("P-06", shall, "without allowPartialManifests there are neither link nor partial manifests", noPartial),
		row("P-07", should, "the address of the next manifest is 202 until that is ready", nextEarly),
	)
}

// seen is one answer with a manifest, and its files as they were read at once.
type seen struct {
	url   string
	early bool // the export was still running
	answer
	manifest *manifest
	files    []*file
}

// partialRun is one export with partial manifests.
type partialRun struct {
	err error
	// manifests are all that were seen, in their order.
	manifests []seen
	// early are the answers of the addresses of next manifests that were asked while the export was held back.
	early []answer
	// failed is what that address, or the status where there is none, said when the export had failed.
	failed answer
}

// earlyPolls bounds the wait for a partial manifest of an export that is held back.
const earlyPolls = 60

// partialExport begins an export of which the Patients are held back, where the suite can do that, until a partial manifest
// was seen. Then it lets the export end, or fail.
func (c *check) partialExport(fail bool) *partialRun {
	run := &partialRun{}
	release := c.hold("Patient")
	defer release()
	e, err := c.begin(c.ctx, kickoff{path: "Patient/$export", query: "_type=Condition,Immunization,Observation,Patient&allowPartialManifests=true"})
	if err == nil && e.accepted.status != http.StatusAccepted {
		err = &refusal{e.accepted}
	}
	if err != nil {
		run.err = err
		return run
	}
	defer c.drop(e)
	for range earlyPolls {
		a := c.look(run, e.status)
		if n := len(run.manifests); a.status != http.StatusAccepted || n > 0 && len(run.manifests[n-1].files) > 0 {
			break
		}
		c.must(pause(c.ctx, retryAfter(a)))
	}
	at := e.status
	for next := run.next(); next != "" && next != at; next = run.next() {
		at = next
		run.early = append(run.early, c.look(run, at))
	}
	if fail {
		defer c.Fail("Patient", http.StatusUnauthorized)()
	}
	release()
	for range 60 {
		a := c.look(run, at)
		switch next := run.next(); {
		case a.status < 300 && next != "" && next != at:
			at = next
			continue
		case a.status == http.StatusAccepted:
			c.must(pause(c.ctx, retryAfter(a)))
			continue
		case a.status >= 400:
			run.failed = a
		default:
			c.lookAgain(run)
		}
		return run
	}
	run.err = errors.New("the export with partial manifests does not end")
	return run
}

// lookAgain asks every address again that gave a manifest.
func (c *check) lookAgain(run *partialRun) {
	asked := map[string]bool{}
	for _, s := range run.manifests {
		if !asked[s.url] {
			asked[s.url] = true
			c.look(run, s.url)
		}
	}
}

// next is the address that the last manifest names.
func (r *partialRun) next() string {
	if len(r.manifests) == 0 {
		return ""
	}
	return r.manifests[len(r.manifests)-1].manifest.next()
}

// look asks an address, and keeps the manifest that it gives with its files.
func (c *check) look(run *partialRun, url string) answer {
	a := c.get(url)
	if a.status >= 400 || len(a.body) == 0 || !strings.HasPrefix(a.media(), "application/json") {
		return a
	}
	m, err := parseManifest(a.body)
	c.must(err)
	s := seen{url: url, early: a.status == http.StatusAccepted, answer: a, manifest: m}
	for _, item := range m.Output {
		f, err := c.fetch(c.ctx, item, m.RequiresAccessToken, "")
		c.must(err)
		s.files = append(s.files, f)
	}
	run.manifests = append(run.manifests, s)
	return a
}

// next is the address of the manifest that follows.
func (m *manifest) next() string {
	var links []struct{ Relation, URL string }
	// A link that cannot be read leads nowhere; M-12 looks at its form.
	_ = json.Unmarshal(m.Link, &links)
	for _, link := range links {
		if link.Relation == "next" {
			return link.URL
		}
	}
	return ""
}

// partial is the export that all rows but one look at. Where there was no manifest before the end, they are not offered.
func (c *check) partial() *partialRun {
	c.partialOnce.Do(func() { c.thePartial = c.partialExport(false) })
	if c.thePartial == nil {
		c.fatalf("the export with partial manifests broke off")
	}
	c.orNotOffered(c.thePartial.err, "allowPartialManifests is refused")
	if len(c.thePartial.manifests) == 0 {
		c.fatalf("the export with partial manifests gave none: status %d", c.thePartial.failed.status)
	}
	return c.thePartial
}

func (c *check) early() *partialRun {
	run := c.partial()
	if !run.manifests[0].early && run.manifests[0].manifest.next() == "" {
		c.notOffered("no manifest before the end of an export as small as this one")
	}
	return run
}

func partialManifest(c *check) {
	for _, s := range c.early().manifests {
		if s.early && s.media() != "application/json" {
			c.errorf("Content-Type %q, want application/json", s.header.Get("Content-Type"))
		}
	}
}

func partialFiles(c *check) {
	early := 0
	for _, s := range c.early().manifests {
		for _, f := range s.files {
			if s.early {
				early++
			}
			if f.status != http.StatusOK || f.err != nil {
				c.errorf("a file of %s: status %d, %v", f.Type, f.status, f.err)
			}
		}
	}
	if early == 0 {
		c.lack("a file that is listed while the export runs")
	}
}

func unchanged(c *check) {
	last := map[string]seen{}
	twice := 0
	for _, s := range c.early().manifests {
		before, again := last[s.url]
		last[s.url] = s
		if !again {
			continue
		}
		if before.early && len(before.files) > 0 {
			twice++
		}
		c.sameFields(before.manifest, s.manifest, "output", "link")
		if len(s.files) != len(before.files) {
			c.errorf("a manifest lists %d files, and %d later", len(before.files), len(s.files))
			continue
		}
		for i, f := range before.files {
			if !bytes.Equal(f.body, s.files[i].body) || f.Type != s.files[i].Type {
				c.errorf("a file of %s is another one later", f.Type)
			}
		}
	}
	if twice == 0 {
		c.lack("a manifest with files that is read while the export runs, and once more")
	}
}

// sameFields checks that two manifests of one export are alike but for some fields.
func (c *check) sameFields(one, other *manifest, but ...string) {
	names := slices.AppendSeq(slices.Collect(maps.Keys(one.fields)), maps.Keys(other.fields))
	for _, name := range names {
		if !slices.Contains(but, name) && !bytes.Equal(one.fields[name], other.fields[name]) {
			c.errorf("%s differs between the manifests of one export", name)
		}
	}
}

func linkedFields(c *check) {
	run := c.early()
	pages := map[string]bool{}
	for _, s := range run.manifests {
		pages[s.url] = true
		c.sameFields(run.manifests[0].manifest, s.manifest, "output", "deleted", "link")
	}
	if len(pages) < 2 {
		c.lack("an export with two manifests")
	}
}

func nextOfFailed(c *check) {
	c.early()
	if !c.has(needsFail) {
		c.lack(needsFail)
	}
	run := c.partialExport(true)
	c.must(run.err)
	c.refused("the next manifest of a failed export", run.failed)
}

func noPartial(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		if e.manifest.Link != nil {
			c.errorf("link stands in a manifest")
		}
	}
	if slices.ContainsFunc(c.running(), func(a answer) bool { return bytes.Contains(a.body, []byte(`"output"`)) }) {
		c.errorf("a poll gave a partial manifest")
	}
}

func nextEarly(c *check) {
	run := c.early()
	if len(run.early) == 0 {
		c.lack("the address of a next manifest before the end of the export")
	}
	for i, a := range run.early {
		// What is ready may be 200 where another manifest follows. The last one that is named cannot be the end of an export that
		// is held back.
		last := c.Hold != nil && i == len(run.early)-1
		if a.status != http.StatusAccepted && (a.status != http.StatusOK || last) {
			c.errorf("status %d, want 202", a.status)
		}
	}
}

// nextPage checks the form of link where there is one.
func (c *check) nextPage() {
	found := false
	for _, s := range c.partial().manifests {
		if s.manifest.Link == nil {
			continue
		}
		found = true
		if s.manifest.next() == "" || !strings.HasPrefix(s.manifest.next(), "http") {
			c.errorf("link is not an array with an object of relation next and an absolute url")
		}
	}
	if !found {
		c.notOffered("no link")
	}
}
