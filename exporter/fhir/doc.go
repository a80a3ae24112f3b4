// Package fhir is the upstream: it searches a FHIR server over REST, reads the Bundle pages it answers as a stream, asks
// it what it can do, and knows which resource types and references make up a Patient compartment.
//
// A [Client] sends the requests, a [Query] is one search, a [Page] one answer, a [Profile] what the server was seen to
// be able to do, a [Compartment] the table of one FHIR release.
//
// Promises: a resource leaves this package as the bytes that the server sent, white space between tokens aside; a page
// is never held in memory as a whole; an answer that is not what was asked for is an error, never an empty result; no
// request goes to another host than the upstream's; errors name status and issue codes, and hold no resource content,
// search value, id, token or URL.
package fhir
