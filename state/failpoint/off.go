//go:build !failpoints

package failpoint

// Pass marks a moment, such as "before commit". It does nothing.
func Pass(string) {}
