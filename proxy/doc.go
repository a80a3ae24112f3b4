// Package proxy is how the sidecar sounds over HTTP: it forwards every request to the FHIR server and back as it is, and
// answers the Bulk Data Export API itself, under the FHIR base path of the upstream.
//
// [New] returns the handler. Its parts are named after the guide's: kick-off, status request, manifest, output file,
// CapabilityStatement.
//
// Promises: what is forwarded keeps its method, raw path, raw query, headers (hop-by-hop ones aside), body, trailers and
// flushes; forwarding depends on nothing but the upstream; every refusal is a valid OperationOutcome; a job that was
// answered with 202 can be polled at once; nothing that a client sent or a resource holds is logged.
package proxy
