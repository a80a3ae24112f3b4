package conformance

import "net/http"

// maxBurst is how many exports the suite begins at once in search of a limit.
const maxBurst = 12

// burstResult is what came of beginning one export after another.
type burstResult struct {
	began int
	// refusal is the answer to the first kick-off that was not accepted; zero where all were.
	refusal answer
	// next is the answer to a kick-off after one of the exports was deleted.
	next answer
}

// burst begins exports until one is refused. It is done once; the rows that look at it first run alone.
func (c *check) burst() burstResult {
	c.burstOnce.Do(func() {
		defer c.hold("Patient")() // none ends before the last one begins
		var running []*export
		for range maxBurst {
			e := &export{request: kickoff{}.request(c.Base)}
			e.accepted = c.send(e.request)
			e.status = e.accepted.header.Get("Content-Location")
			if e.accepted.status != http.StatusAccepted {
				c.theBurst.refusal = e.accepted
				break
			}
			running = append(running, e)
		}
		c.theBurst.began = len(running)
		for i, e := range running {
			c.drop(e)
			if i == 0 && c.theBurst.refusal.status != 0 {
				again := &export{request: e.request}
				again.accepted = c.send(again.request)
				again.status = again.accepted.header.Get("Content-Location")
				c.theBurst.next = again.accepted
				if again.status != "" {
					c.drop(again)
				}
			}
		}
	})
	return c.theBurst
}

func limited(c *check) {
	if b := c.burst(); b.refusal.status == 0 || b.began == 0 {
		c.errorf("%d exports at once were accepted, and no more were refused", b.began)
	}
}

func tooMany(c *check) {
	b := c.burst()
	if b.refusal.status == 0 || b.began == 0 {
		c.errorf("%d exports at once were accepted, and no more were refused", b.began)
		return
	}
	if b.refusal.status != http.StatusTooManyRequests {
		c.errorf("status %d, want 429", b.refusal.status)
	}
	if b.refusal.header.Get("Retry-After") == "" {
		c.errorf("no Retry-After")
	}
	c.refused("one export too many", b.refusal)
	if b.next.status != http.StatusAccepted {
		c.errorf("after a DELETE of one that ran: status %d, want 202", b.next.status)
	}
}
