package exporter

import "sidecar/exporter/fhir"

// maxStalePages bounds how many pages in a row may bring nothing new. Some servers give empty pages, and pages that shift under
// writes show rows again; but links need not repeat to have no end.
const maxStalePages = 1000

// chain are the next links of one search or history as they are followed.
type chain struct {
	followed map[string]bool
	stale    int
	// shown are the versions on this page, before those on the page before it.
	shown, before map[string]struct{}
}

// begin is called before a page is read, or read again.
func (c *chain) begin() { c.shown = map[string]struct{}{} }

// saw takes note of a row of the page.
func (c *chain) saw(row *fhir.Entry) { c.shown[row.Type+"/"+row.ID+"/"+row.Version] = struct{}{} }

// fresh tells whether the page has a row that the page before it had not, behind which this one becomes the page before.
func (c *chain) fresh() bool {
	fresh := false
	for row := range c.shown {
		if _, known := c.before[row]; !known {
			fresh = true
		}
	}
	c.before = c.shown
	return fresh
}

// goesOn tells whether to follow a link, by whether its page brought something new. It says no of a chain without an end.
func (c *chain) goesOn(next string, fresh bool) bool {
	if c.stale++; fresh {
		c.stale = 0
	}
	if c.followed == nil {
		c.followed = map[string]bool{}
	}
	if c.followed[next] || c.stale > maxStalePages {
		return false
	}
	c.followed[next] = true
	return true
}
