package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// troubles is how many rows docs/troubles.md has.
const troubles = 62

// openTroubles are the rows that nothing here holds yet. A row that is added to them is a decision.
var openTroubles []int

var (
	promiseRow = regexp.MustCompile(`(?m)^\| (\d+) \| ([^|]+) \| ([^|]+) \|$`)
	troubleRow = regexp.MustCompile(`(?m)^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`)
	testName   = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	testFunc   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(\w+ \*testing\.[TF]\)`)
	// reason is a sentence that stands for a test.
	reason = regexp.MustCompile(`^(cannot occur|not yet): (.{20,})$`)
)

// troubleFaults says what is wrong with the rows of docs/troubles.md: the last cell of each holds the tests of it, which
// have to exist, or a reason.
func troubleFaults(text string, tests map[string]bool) []string {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	rows := troubleRow.FindAllStringSubmatch(text, -1)
	if len(rows) != troubles {
		fault("%d rows, want %d", len(rows), troubles)
	}
	for i, row := range rows {
		names, why := testName.FindAllStringSubmatch(row[4], -1), reason.FindStringSubmatch(row[4])
		switch {
		case len(names) == 0 && why == nil:
			fault("row %s names no test and gives no reason", row[1])
		case (why != nil && why[1] == "not yet") != slices.Contains(openTroubles, i+1):
			fault("row %s ends %q, the open rows are %d", row[1], row[4], openTroubles)
		}
	}
	return append(faults, rowFaults(rows, tests)...)
}

// rowFaults says which rows of a table, whose first cell is a number and whose last one holds tests, are out of order or
// name a test that does not exist.
func rowFaults(rows [][]string, tests map[string]bool) (faults []string) {
	for i, row := range rows {
		if row[1] != fmt.Sprint(i+1) {
			faults = append(faults, fmt.Sprintf("row %d has the number %s", i+1, row[1]))
		}
		for _, name := range testName.FindAllStringSubmatch(row[len(row)-1], -1) {
			if !tests[name[1]] {
				faults = append(faults, fmt.Sprintf("row %s: there is no test %s", row[1], name[1]))
			}
		}
	}
	return faults
}

// promiseFaults says what is wrong with the promises of SECURITY.md: each has to name tests that exist.
func promiseFaults(text string, tests map[string]bool) []string {
	rows := promiseRow.FindAllStringSubmatch(text, -1)
	faults := rowFaults(rows, tests)
	if begun := strings.Count(text, "\n| ") - 1; len(rows) != begun || begun < 1 { // all but the head
		faults = append(faults, fmt.Sprintf("%d of %d rows can be read", len(rows), begun))
	}
	for _, row := range rows {
		if !testName.MatchString(row[3]) {
			faults = append(faults, fmt.Sprintf("row %s names no test", row[1]))
		}
	}
	return faults
}

// allTests are the names of the repository's tests, those of e2e among them.
func allTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, found := range testFunc.FindAllSubmatch(raw, -1) {
			tests[string(found[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// Ensure each trouble has its row, and that it names tests that exist or says why it needs none.
func TestTroublesAreHeldByTests(t *testing.T) {
	tests := allTests(t)
	for _, name := range []string{"TestTroublesAreHeldByTests", "TestSystemExport"} { // this one, and one of e2e
		if !tests[name] {
			t.Errorf("%s was not found among %d tests", name, len(tests))
		}
	}
	for _, fault := range troubleFaults(documents(t)[filepath.Join(top, "docs/troubles.md")], tests) {
		t.Errorf("docs/troubles.md: %s", fault)
	}
}

// Ensure that the check of the rows finds what it is there for.
func TestTroublesWithoutATestAreFound(t *testing.T) {
	text := documents(t)[filepath.Join(top, "docs/troubles.md")]
	first := troubleRow.FindStringSubmatch(text)
	if first == nil {
		t.Fatal("there is no row")
	}
	held := "| " + first[4] + " |"
	for name, test := range map[string]struct{ old, new, want string }{
		"a test that is gone":  {held, "| `TestOfNothing` |", "row 1: there is no test TestOfNothing"},
		"neither":              {held, "| see above |", "row 1 names no test and gives no reason"},
		"a reason without one": {held, "| cannot occur: |", "row 1 names no test and gives no reason"},
		"a new open row":       {held, "| not yet: somebody will look at it later |", `row 1 ends "not yet: `},
		"a row that is gone":   {"| 40 |", "| forty |", "61 rows, want 62"},
		"a number twice":       {"| 61 |", "| 60 |", "row 61 has the number 60"},
	} {
		t.Run(name, func(t *testing.T) {
			faults := troubleFaults(strings.Replace(text, test.old, test.new, 1), allTests(t))
			if !slices.ContainsFunc(faults, func(fault string) bool { return strings.HasPrefix(fault, test.want) }) {
				t.Errorf("faults %q, want one that says %q", faults, test.want)
			}
		})
	}
}

// Ensure each promise of SECURITY.md names tests that exist, and that the check of it finds those that do not.
func TestPromisesAreHeldByTests(t *testing.T) {
	text, tests := documents(t)[filepath.Join(top, "SECURITY.md")], allTests(t)
	for _, fault := range promiseFaults(text, tests) {
		t.Errorf("SECURITY.md: %s", fault)
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"a test that is gone":   {"`TestAccess`", "`TestOfNothing`", "row 14: there is no test TestOfNothing"},
		"a row without a test":  {"`TestAccess`", "the operator", "row 14 names no test"},
		"a row of a wrong form": {"| 14 |", "| fourteen |", "15 of 16 rows can be read"},
		"a number twice":        {"| 14 |", "| 13 |", "row 14 has the number 13"},
	} {
		if faults := promiseFaults(strings.Replace(text, test.old, test.new, 1), tests); !slices.Contains(faults, test.want) {
			t.Errorf("%s: faults %q, want %q", name, faults, test.want)
		}
	}
}
