package conformance

func partialRows() []Row     { return nil }
func (c *check) nextPage()   { c.notOffered("no link") }
func fourthVersion(c *check) { c.notOffered("one version only") }
