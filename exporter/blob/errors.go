package blob

import (
	"regexp"
	"strings"
)

// maxErrorText bounds what a store's answer may add to an error: a proxy in
// front of it answers with a whole HTML page.
const maxErrorText = 500

var urlPattern = regexp.MustCompile(`(?i)\bhttps?://(?:[^/@\s"']*@)?([^/?#\s"']+)[^\s"']*`)

// HideURL returns err with a text that is one line and holds no address beyond
// the host: the errors of HTTP clients quote whole links, and a signed link is a
// key to health data (design 6). The chain below stays as it is for errors.Is and
// errors.As. It returns nil for nil.
func HideURL(err error) error {
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(urlPattern.ReplaceAllString(err.Error(), "$1")), " ")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "..."
	}
	return &plainError{text: text, cause: err}
}

type plainError struct {
	text  string
	cause error
}

func (e *plainError) Error() string { return e.text }

func (e *plainError) Unwrap() error { return e.cause }
