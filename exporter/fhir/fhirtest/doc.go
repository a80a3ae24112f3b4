// Package fhirtest is an in-memory FHIR R4 search server for the unit tests and the demo.
//
// A [Server] stores real resources and really filters, sorts, pages, counts and keeps their history; nothing is
// canned. A [Personality] makes it behave like one product where products differ in ways that an export notices:
// how pages are linked and how long the links live, what happens to unknown parameters, how fine lastUpdated is, how a
// deletion looks in a history. A [Fault] breaks chosen requests.
//
// Each habit is a switch that can be combined with any other; the constructors, which [All] lists, are the combinations
// that products have. Where searches lag or commits are late, [Server.CatchUp] ends the preparation of a test,
// [Server.PutLate] makes one commit as late as the test likes, and [Server.AsOf] is the truth to compare an export with.
//
// Resources keep their bytes: only the id and the meta members that a server owns are edited, in place, so numbers such
// as 1.10, escapes and the order of members come back as they were given.
//
// It is no validator: any JSON object with a resourceType is a resource. It keeps everything in memory, past versions
// included, and has no access control. The compartment table of package fhir names its reference parameters; beside
// these it knows _id, _lastUpdated, _has and the result parameters of the specification, and no token or text search.
package fhirtest
