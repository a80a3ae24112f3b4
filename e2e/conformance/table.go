package conformance

import (
	"fmt"
	"io"
)

// Print writes a line for each result.
func Print(w io.Writer, results []Result) {
	for _, r := range results {
		line := string(r.Outcome)
		if r.Reason != "" {
			line += ": " + r.Reason
		}
		fmt.Fprintf(w, "%-5s %-6s %-80s %s\n", r.ID, r.Level, r.Text, line)
	}
}
