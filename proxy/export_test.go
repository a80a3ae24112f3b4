package proxy

import (
	"maps"
	"time"
)

// SupportAll reads every parameter as if exports could honour it, so that its reading can be tested before; the function
// that it returns ends that.
func SupportAll() (restore func()) {
	before := maps.Clone(parameters)
	for name, p := range parameters {
		p.refused = false
		parameters[name] = p
	}
	return func() { parameters = before }
}

// RetryAfter is the pause until the next poll of a job that has come this far in that time.
func RetryAfter(elapsed time.Duration, percent int64) int { return retryAfter(elapsed, percent) }
