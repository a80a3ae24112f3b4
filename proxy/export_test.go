package proxy

import (
	"maps"
	"time"
)

// SupportAll reads every parameter as if exports could honour it, so that its reading can be tested before; the function
// that it returns ends that.
func SupportAll() (restore func()) {
	before, gzip := maps.Clone(parameters), gzipRefused
	for name, p := range parameters {
		p.refused = false
		parameters[name] = p
	}
	gzipRefused = false
	return func() { parameters, gzipRefused = before, gzip }
}

// Supports tells whether exports honour a parameter; for _outputFormat, its compressed forms.
func Supports(name string) bool {
	return !parameters[name].refused && (name != "_outputFormat" || !gzipRefused)
}

// RetryAfter is the pause until the next poll of a job that has come this far in that time.
func RetryAfter(elapsed time.Duration, percent int64) int { return retryAfter(elapsed, percent) }
