package conformance

import (
	"fmt"
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
