package conformance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Outcome is what a row's test has found.
type Outcome string

// The outcomes. Beside NotMet each of them conforms, as far as the suite could look.
const (
	// Met: the server does what the row says.
	Met Outcome = "met"
	// NotMet: it does not.
	NotMet Outcome = "not met"
	// NotOffered: it does without something that it may do without.
	NotOffered Outcome = "not offered"
	// Needs: the suite lacks an access or data.
	Needs Outcome = "needs"
	// NotTestable: no program can see it.
	NotTestable Outcome = "not testable"
)

// Row is one requirement.
type Row struct {
	// ID names it within Section, such as K-04.
	ID string
	// Section is the part of the guide.
	Section string
	// Level is how binding it is: SHALL, SHOULD or MAY.
	Level string
	// Text says it in a line.
	Text string

	// needs are the accesses without which there is no test.
	needs []string
	// serial tells that other rows would suffer beside this one.
	serial bool
	test   func(*check)
}

// The levels.
const (
	shall  = "SHALL"
	should = "SHOULD"
	may    = "MAY"
)

func row(id, level, text string, test func(*check), needs ...string) Row {
	return Row{ID: id, Level: level, Text: text, needs: needs, test: test}
}

func (r Row) alone() Row {
	r.serial = true
	return r
}

func section(name string, rows ...Row) []Row {
	for i := range rows {
		rows[i].Section = name
	}
	return rows
}

// Result is what came out of a Row.
type Result struct {
	Row
	Outcome Outcome
	// Reason says more, empty for Met.
	Reason string
}

// Rows are all requirements, in the order of the guide.
func Rows() []Row {
	return slices.Concat(
		transportRows(), kickoffRows(), parameterRows(), statusRows(), manifestRows(), deleteRows(), fileRows(), partialRows(),
		capabilityRows(), smartRows(),
	)
}

// Run tests a server: each row is a subtest of t that is named by its id. A row that is not met fails its subtest, unless
// expected names it with the reason; then one that is met does. One that lacks what it needs is skipped. When all are through, done gets the results in the order
// of Rows; they are fewer where -run chose some.
func Run(t *testing.T, server Server, expected map[string]string, done func([]Result)) {
	s := newSuite(t, server)
	var mu sync.Mutex
	results := map[string]Result{}
	rows := Rows()
	t.Cleanup(func() {
		var all []Result
		for _, row := range rows {
			if result, ok := results[row.ID]; ok {
				all = append(all, result)
			}
		}
		done(all)
	})
	var waiting []func()
	var begin sync.Once
	for _, row := range rows {
		t.Run(row.ID, func(t *testing.T) {
			came := make(chan Result, 1)
			run := func() { came <- s.run(t.Context(), row) }
			if row.serial {
				run()
			} else {
				waiting = append(waiting, run)
				t.Parallel()
				// From here on all rows that -run chose are known. They wait for the server more than they compute, so that all
				// of them go at once, however few tests may run in parallel.
				begin.Do(func() {
					for _, run := range waiting {
						go run()
					}
				})
			}
			result := <-came
			mu.Lock()
			results[row.ID] = result
			mu.Unlock()
			report(t, result, expected)
		})
	}
}

// report gives a result to the row's own test.
func report(t *testing.T, result Result, expected map[string]string) {
	t.Helper()
	reason, isExpected := expected[result.ID]
	switch {
	case result.Outcome == NotMet && !isExpected:
		t.Errorf("not met: %s\n%s", result.Text, result.Reason)
	case result.Outcome != NotMet && isExpected:
		t.Errorf("%s, but expected not to be met: %s", result.Outcome, reason)
	case result.Outcome == Needs:
		t.Skipf("needs %s", result.Reason)
	default:
		t.Logf("%s: %s", result.Outcome, result.Reason)
	}
}

// check is the test of one row while it runs.
type check struct {
	*suite
	ctx     context.Context
	outcome Outcome
	reasons []string
}

// ended unwinds a test that cannot go on.
type ended struct{}

func (s *suite) run(ctx context.Context, row Row) Result {
	c := &check{suite: s, ctx: ctx, outcome: Met}
	c.protect(func() {
		for _, access := range row.needs {
			if !s.has(access) {
				c.lack(access)
			}
		}
		row.test(c)
	})
	return Result{row, c.outcome, strings.Join(c.reasons, "; ")}
}

// protect runs a test until it ends itself, or breaks off at an answer of which nobody thought: no server may end the suite.
func (c *check) protect(test func()) {
	defer func() {
		r := recover()
		if _, isEnd := r.(ended); r != nil && !isEnd {
			c.errorf("the test broke off: %v", r)
		}
	}()
	test()
}

// errorf notes that the row is not met.
func (c *check) errorf(format string, args ...any) {
	c.outcome = NotMet
	if reason := fmt.Sprintf(format, args...); len(c.reasons) < 5 && !slices.Contains(c.reasons, reason) {
		c.reasons = append(c.reasons, reason)
	}
}

// fatalf notes it and ends the test.
func (c *check) fatalf(format string, args ...any) {
	c.errorf(format, args...)
	panic(ended{})
}

// must ends the test where something went wrong on the way.
func (c *check) must(err error) {
	if err != nil {
		c.fatalf("%v", err)
	}
}

// lack ends the test because the suite has not what it needs. What was found wrong before stays.
func (c *check) lack(what string) { c.end(Needs, what) }

// notOffered ends the test because the server does without.
func (c *check) notOffered(why string) { c.end(NotOffered, why) }

func (c *check) end(outcome Outcome, reason string) {
	if c.outcome != NotMet {
		c.outcome, c.reasons = outcome, []string{reason}
	}
	panic(ended{})
}

// untestable is the test of a row that no program can see.
func untestable(why string) func(*check) {
	return func(c *check) { c.end(NotTestable, why) }
}
