// Package failpoint marks the moments between which a crash must make no difference, so that a test can end the process
// at each of them. Only a binary built with the tag failpoints knows how; in every other one [Pass] is an empty function.
package failpoint
