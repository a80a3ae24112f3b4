// Package conformance asks a server for everything that the Bulk Data Export guide wants of it, requirement by
// requirement.
//
// A [Row] is one requirement with its test; [Run] runs them as subtests named by the rows' ids against a [Server], which
// is an address and whatever else the suite may use there: tokens, the right to write, a hand on the server behind it.
// A row that lacks what it needs says so, it is never "met". The data are those that the server has.
//
//	CONFORMANCE_URL=https://fhir.example.org/fhir go test -count=1 -v ./conformance
//
// The suite makes some sixty exports, at most Server.Parallel at once, and deletes them when it has read them.
package conformance
