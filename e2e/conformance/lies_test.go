package conformance

import (
	"slices"
	"testing"
)

// Ensure a row is met by a server that does what it says, and not by one that does not, or that gives nothing to see.
func TestRowsSeeWhatIsWrong(t *testing.T) {
	for id, lies := range map[string]map[string]Outcome{
		"T-03": {"scopes that are ignored": NotMet, "narrow tokens that are refused": Needs},
		"T-04": {"a status for narrower tokens": NotMet, "files for narrower tokens": NotMet, "files for everybody": NotMet},
		"T-05": {"exports for every client": NotOffered, "files for every client": NotOffered},
		"T-06": {"Groups for everybody": NotMet, "narrow tokens that are refused": Needs},
		"T-07": {"no Group that is denied": NotMet},
		"T-11": {"types beyond the scopes": NotMet, "narrow tokens that are refused": Needs},
		"K-11": {"Groups that hold everybody": NotMet},
		"H-01": {"parameters that are ignored": NotMet},
		"C-02": {"_since that is ignored": NotMet},
		"C-04": {"_type that is ignored": NotMet, "Conditions that are lost": NotMet},
		"C-06": {"elements that were asked for are left out": NotMet},
		"S-01": {"a separate status unasked": NotMet},
		"S-07": {"a poll says that the export is gone": NotMet, "polls that never fail": Needs},
		"S-11": {"a separate status that is forgotten": NotMet},
		"S-13": {"files that are not there": NotMet},
		"M-01": {"rows of the end of the export": NotMet},
		"M-03": {"requiresAccessToken that is wrong": NotMet, "files for everybody": NotMet},
		"D-03": {"deletions that are forgotten": NotMet},
		"F-03": {"files of any name": NotMet},
		"F-04": {"rows that come twice": NotMet},
		"F-05": {"gzip that nobody is told of": NotMet},
		"F-06": {"files for everybody": NotMet},
		"A-03": {"attachments for everybody": NotMet, "attachments that need a token": NotMet},
		"P-03": {"a file that changes": NotMet, "a file that is listed no more": NotMet, "another transactionTime at each look": NotMet},
		"P-04": {"another transactionTime on each page": NotMet},
		"P-07": {"a next manifest that is not found": NotMet, "a next manifest that is complete too early": NotMet},
	} {
		lies[""] = Met
		for lie, want := range lies {
			t.Run(id+" "+lie, func(t *testing.T) {
				t.Parallel()
				rows := slices.DeleteFunc(Rows(), func(row Row) bool { return row.ID != id })
				result := newSuite(t, startScripted(t, lie)).run(t.Context(), rows[0])
				if result.Outcome != want {
					t.Errorf("%s, want %s: %s", result.Outcome, want, result.Reason)
				}
			})
		}
	}
}
