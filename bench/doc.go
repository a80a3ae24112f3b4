// Package bench measures the figures of docs/performance.md that take a whole process: exports of the built binary beside
// the bare download of the same pages, and the memory of an export of ten million resources. It holds only tests behind the
// build tag figures, so that a time never fails a build; `make bench` runs them with those of exporter/fhir.
package bench
