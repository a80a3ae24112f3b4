package proxy

import "time"

// RetryAfter is the pause until the next poll of a job that has come this far in that time.
func RetryAfter(elapsed time.Duration, percent int64) int { return retryAfter(elapsed, percent) }
