package conformance

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

func statusRows() []Row {
	return section("Status request",
		row("S-01", shall, "while the export runs the status is 202", runningStatus),
		row("S-02", may, "X-Progress has less than 100 characters", progress),
		row("S-03", should, "Retry-After says when to ask again", retryAfterForm),
		row("S-04", should, "who asks far too often gets 429 with Retry-After", tooOften).alone(),
		row("S-05", shall, "the status of a failed export is 4xx or 5xx", failedStatus, needsFail).alone(),
		row("S-06", should, "a failure is an OperationOutcome as application/fhir+json", failedBody, needsFail).alone(),
		row("S-07", should, "a poll that fails while the export lives has a transient code", transient, needsFail).alone(),
		row("S-08", shall, "a complete export is 200 with the manifest as application/json", completeStatus),
		row("S-09", should, "Expires says until when the files can be read", expires),
		row("S-10", shall, "partial success is 200 with OperationOutcomes in error", partialSuccess, needsFail).alone(),
		row("S-11", shall, "with separate-export-status the status tells of the poll, X-Export-Status of the export", separateStatus).alone(),
		row("S-12", may, "a manifest that is read again may have new addresses and a new Expires", readAgain),
		row("S-13", shall, "all files that are listed can be read at their addresses", filesReadable),
	)
}

func deleteRows() []Row {
	return section("Delete request",
		row("D-01", shall, "DELETE of a running export is 202", deleteRunning),
		row("D-02", may, "DELETE of a complete export is 202 and may remove its files", deleteComplete),
		row("D-03", shall, "after a DELETE the status is 404 with an OperationOutcome", goneAfterDelete),
		row("D-04", shall, "a DELETE that is refused is 4xx or 5xx with an OperationOutcome", deleteRefused),
	)
}

// running are the answers to polls of exports that were under way.
func (c *check) running() []answer {
	var polls []answer
	for _, e := range []*export{c.system(), c.patients()} {
		polls = append(polls, e.polls...)
	}
	if c.Hold != nil {
		polls = append(polls, c.deleted().running)
	}
	if len(polls) == 0 {
		c.lack("an export that takes longer than the first poll")
	}
	return polls
}

func progress(c *check) {
	none := true
	for _, poll := range c.running() {
		value := poll.header.Get("X-Progress")
		none = none && value == ""
		if len(value) >= 100 {
			c.errorf("X-Progress has %d characters", len(value))
		}
	}
	if none {
		c.notOffered("no X-Progress")
	}
}

func tooOften(c *check) {
	e, err := c.begin(c.ctx, kickoff{})
	c.must(err)
	defer c.drop(e)
	r := request{url: e.status}
	if c.Token != nil {
		r.token = c.Token(Grant{})
	}
	c.send(r) // now the token is known
	var answers [200]answer
	var all sync.WaitGroup
	for i := range answers { // at once: one after another they may take as long as a patient client's
		all.Go(func() { answers[i], _ = c.suite.send(c.ctx, r) }) // one without an answer shows nothing
	}
	all.Wait()
	for _, a := range answers {
		if a.status == http.StatusTooManyRequests {
			if a.header.Get("Retry-After") == "" {
				c.errorf("429 without Retry-After")
			}
			return
		}
	}
	c.errorf("%d polls at once were answered", len(answers))
}

// failed is an export that fails because the server behind refuses to be read with 401. It is made once; the rows that look
// at it run alone.
func (c *check) failed(prefer string) *export {
	if e := c.failures[prefer]; e != nil {
		return e
	}
	mend := c.Fail("Condition", http.StatusUnauthorized)
	defer mend()
	e, err := c.runExport(c.ctx, kickoff{query: "_type=Condition", prefer: prefer})
	c.must(err)
	c.drop(e)
	if e.manifest != nil {
		c.fatalf("the export completed although the server behind refused to be read")
	}
	c.failures[prefer] = e
	return e
}

func partialSuccess(c *check) {
	mend := c.Fail("Condition", http.StatusForbidden)
	e := func() *export {
		defer mend()
		return c.export(kickoff{query: "_type=Patient,Condition"})
	}()
	if len(e.ofType("Patient")) == 0 {
		c.errorf("the Patients, who could be read, are missing")
	}
	outcomes := 0
	for _, item := range e.manifest.Error {
		f := e.files[item.URL]
		if f.err != nil {
			c.errorf("an error file: %v", f.err)
		}
		for _, line := range f.lines {
			if _, err := parseOutcome(line); err != nil {
				c.errorf("a line of an error file is %v", err)
			}
			outcomes++
		}
	}
	if outcomes == 0 {
		c.errorf("error is empty although Conditions could not be read")
	}
}

func transient(c *check) {
	release := c.Hold("Patient")
	defer release()
	e, err := c.begin(c.ctx, kickoff{query: "_type=Patient"})
	c.must(err)
	defer c.drop(e)
	mend := c.Fail("", http.StatusServiceUnavailable)
	defer mend()
	failed := 0
	for range 3 {
		a := c.get(e.status)
		if a.status < 400 {
			continue
		}
		failed++
		o := c.refused("a poll while the server behind is down", a)
		for _, issue := range o.Issue {
			switch issue.Code {
			case "transient", "throttled", "timeout", "lock-error", "no-store", "exception", "incomplete":
			default:
				c.errorf("the code %q is not a transient one", issue.Code)
			}
		}
	}
	mend()
	release()
	c.must(c.await(c.ctx, e, ""))
	if e.manifest == nil {
		c.errorf("the export did not outlive the trouble: status %d", e.last.status)
	}
	if failed == 0 {
		c.lack("a poll that fails while the server behind is down")
	}
}

const separateExportStatus = "respond-async, separate-export-status"

// separateKickoff has that preference.
func separateKickoff() kickoff { return kickoff{query: "_type=Patient", prefer: separateExportStatus} }

func (c *check) separate() *export {
	e := c.shareOptional("separate", "separate-export-status is refused", separateKickoff())
	if !strings.Contains(strings.Join(e.accepted.header.Values("Preference-Applied"), ","), "separate-export-status") {
		c.notOffered("separate-export-status is not applied")
	}
	return e
}

func separateStatus(c *check) {
	// Most rows after this one look at these.
	c.ahead((*check).system, (*check).patients, (*check).group, (*check).separate, (*check).repeated, (*check).organised, (*check).posted, (*check).lenientExport,
		(*check).tokenFiles)
	for _, e := range []*export{c.system(), c.patients()} {
		for _, a := range append(e.polls, e.last) {
			if a.header.Get("X-Export-Status") != "" {
				c.errorf("X-Export-Status stands in an answer although nobody asked for it")
			}
		}
	}
	e := c.separate()
	told := func(what string, a answer, want string) {
		if got := a.header.Get("X-Export-Status"); a.status != http.StatusOK || !strings.HasPrefix(got, want) {
			c.errorf("%s: status %d and X-Export-Status %q, want 200 and %s", what, a.status, got, want)
		}
	}
	polls := e.polls
	if c.Hold != nil {
		polls = append(polls, c.heldPoll(separateKickoff()))
	}
	for _, poll := range polls {
		told("running", poll, "202")
	}
	told("complete", e.last, "200")
	if len(polls) == 0 {
		c.lack("an export that takes longer than the first poll")
	}
	if !c.has(needsFail) {
		c.lack(needsFail)
	}
	a := c.failed(separateExportStatus).last
	if got := a.header.Get("X-Export-Status"); a.status != http.StatusOK || !strings.HasPrefix(got, "4") && !strings.HasPrefix(got, "5") {
		c.errorf("failed: status %d and X-Export-Status %q, want 200 and 4xx or 5xx", a.status, got)
	}
	if _, err := parseOutcome(a.body); err != nil {
		c.errorf("failed: the body is %v", err)
	}
}

// heldPoll is the answer to a poll of an export that cannot go on.
func (c *check) heldPoll(k kickoff) answer {
	defer c.Hold("Patient")()
	e, err := c.begin(c.ctx, k)
	c.must(err)
	defer c.drop(e)
	return c.get(e.status)
}

func readAgain(c *check) {
	e := c.patients()
	if answered, err := http.ParseTime(e.last.header.Get("Date")); err == nil { // an address may hold a time in whole seconds
		c.must(pause(c.ctx, time.Until(answered.Add(2*time.Second))))
	}
	a := c.get(e.status)
	again, err := parseManifest(a.body)
	c.must(err)
	if a.status != http.StatusOK || len(again.Output) != len(e.manifest.Output) {
		c.fatalf("status %d and %d files, want the manifest as it was", a.status, len(again.Output))
	}
	for i, item := range again.Output {
		if item.URL == e.manifest.Output[i].URL {
			continue
		}
		if f := c.read(e, item.URL); f.status != http.StatusOK {
			c.errorf("a file at its new address: status %d, want 200", f.status)
		}
		before, err := http.ParseTime(e.last.header.Get("Expires"))
		if after, errAfter := http.ParseTime(a.header.Get("Expires")); err == nil && (errAfter != nil || after.Before(before)) {
			c.errorf("Expires is earlier than that of the addresses before")
		}
		return
	}
	c.notOffered("the same addresses, which live as long")
}

// deletion is what the requests around a DELETE of a running export gave.
type deletion struct{ running, first, get, second answer }

func (c *check) deleted() deletion {
	c.deletedOnce.Do(func() {
		c.slots <- struct{}{}
		defer func() { <-c.slots }()
		defer c.hold("Patient")()
		e, err := c.begin(c.ctx, kickoff{})
		c.must(err)
		c.theDeletion = deletion{c.get(e.status), c.drop(e), c.get(e.status), c.drop(e)}
	})
	return c.theDeletion
}

func deleteComplete(c *check) {
	e, err := c.runExport(c.ctx, kickoff{query: "_type=Patient"})
	c.must(err)
	if a := c.drop(e); a.status != http.StatusAccepted {
		c.errorf("status %d, want 202", a.status)
	}
	a := c.get(e.status)
	c.refused("GET after DELETE", a)
	c.refusedWith("GET after DELETE", a, http.StatusNotFound)
	for _, item := range e.manifest.Output {
		if a := c.read(e, item.URL); a.status < 400 {
			c.notOffered("the files stay")
		}
	}
	if len(e.manifest.Output) == 0 {
		c.lack("a Patient")
	}
}

func runningStatus(c *check) {
	for _, poll := range c.running() {
		if poll.status != http.StatusAccepted {
			c.errorf("status %d, want 202", poll.status)
		}
	}
}

func retryAfterForm(c *check) {
	for _, poll := range c.running() {
		value := poll.header.Get("Retry-After")
		seconds, err := strconv.Atoi(value)
		if _, notDate := http.ParseTime(value); notDate != nil && (err != nil || seconds < 1) {
			c.errorf("Retry-After %q is neither whole seconds nor a date", value)
		}
	}
}

func failedStatus(c *check) {
	if a := c.failed("").last; a.status < 400 {
		c.errorf("status %d, want 4xx or 5xx", a.status)
	}
}

func failedBody(c *check) {
	a := c.failed("").last
	c.refused("the failed export", a)
	if a.media() != fhirJSON {
		c.errorf("Content-Type %q, want %s", a.header.Get("Content-Type"), fhirJSON)
	}
}

func completeStatus(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		if e.last.status != http.StatusOK || e.last.media() != "application/json" {
			c.errorf("status %d and Content-Type %q, want 200 and application/json", e.last.status, e.last.header.Get("Content-Type"))
		}
	}
}

func expires(c *check) {
	for _, e := range []*export{c.system(), c.patients()} {
		value := e.last.header.Get("Expires")
		if at, err := http.ParseTime(value); err != nil || !at.After(time.Now()) {
			c.errorf("Expires %q is not a date in the future", value)
		}
	}
}

func filesReadable(c *check) {
	for _, e := range []*export{c.system(), c.patients(), c.group()} {
		for _, f := range e.files {
			if f.status != http.StatusOK {
				c.errorf("a file of %s: status %d, want 200", f.Type, f.status)
			}
		}
	}
}

func deleteRunning(c *check) {
	if a := c.deleted().running; a.status != http.StatusAccepted {
		c.lack("an export that takes longer than the first poll")
	}
	if a := c.deleted().first; a.status != http.StatusAccepted {
		c.errorf("status %d, want 202", a.status)
	}
}

func goneAfterDelete(c *check) {
	c.refused("GET after DELETE", c.deleted().get)
	c.refusedWith("GET after DELETE", c.deleted().get, http.StatusNotFound)
}

func deleteRefused(c *check) {
	c.refused("a second DELETE", c.deleted().second)
	c.refused("DELETE of an unknown export", c.send(request{method: http.MethodDelete, url: c.unknownStatus()}))
}
