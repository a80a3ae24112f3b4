package conformance

import (
	"fmt"
	"slices"
	"strings"
)

// Table gives a line for each result.
func Table(results []Result) string {
	var table strings.Builder
	for _, r := range results {
		line := string(r.Outcome)
		if r.Reason != "" {
			line += ": " + r.Reason
		}
		fmt.Fprintf(&table, "%-5s %-6s %-90s %s\n", r.ID, r.Level, r.Text, line)
	}
	return table.String()
}

// Column is what came out of one server.
type Column struct {
	Name    string
	Results []Result
}

// Page writes the results as Markdown: a table for each section with a column for each server, and why rows are not met, not
// offered or not testable. expected are the reasons of those that are not met, as in Run. Every column has all rows.
func Page(expected map[string]string, columns ...Column) string {
	var page strings.Builder
	for i, row := range columns[0].Results {
		if i == 0 || columns[0].Results[i-1].Section != row.Section {
			fmt.Fprintf(&page, "\n## %s\n\n| | | requirement |", row.Section)
			for _, column := range columns {
				fmt.Fprintf(&page, " %s |", column.Name)
			}
			fmt.Fprintf(&page, "\n|%s\n", strings.Repeat("---|", 3+len(columns)))
		}
		fmt.Fprintf(&page, "| %s | %s | %s |", row.ID, row.Level, row.Text)
		for _, column := range columns {
			outcome := string(column.Results[i].Outcome)
			if column.Results[i].Outcome == NotMet {
				outcome = "**" + outcome + "**"
			}
			fmt.Fprintf(&page, " %s |", outcome)
		}
		page.WriteString("\n")
	}
	for _, outcome := range []Outcome{NotMet, NotOffered, Needs, NotTestable} {
		if lines := reasons(outcome, expected, columns); len(lines) > 0 {
			fmt.Fprintf(&page, "\n## What is %s\n\n%s\n", outcome, strings.Join(lines, "\n"))
		}
	}
	return page.String()
}

// reasons are a line for each row with an outcome, and for each reason that servers differ in.
func reasons(outcome Outcome, expected map[string]string, columns []Column) []string {
	var lines []string
	for i := range columns[0].Results {
		for _, column := range columns {
			result := column.Results[i]
			if result.Outcome != outcome {
				continue
			}
			reason := result.Reason
			if outcome == NotMet {
				reason = expected[result.ID]
			}
			if line := fmt.Sprintf("* %s: %s.", result.ID, reason); !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}
