package blob

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"regexp"
	"strings"
)

var (
	// ErrRefused is in the errors of a bucket whose store does not take the
	// credentials, or gives them no right to what was asked.
	ErrRefused = errors.New("the store refuses the credentials")
	// ErrNoCredentials is in the errors of a bucket for which none were found.
	ErrNoCredentials = errors.New("there are no credentials for the store")
	// ErrNoBucket is in the errors of a bucket that the store does not have.
	ErrNoBucket = errors.New("the store has no such bucket")
)

// Advice says what an operator looks at first after an error of a bucket.
func Advice(err error) string {
	_, dialled := errors.AsType[*net.OpError](err)
	_, named := errors.AsType[*net.DNSError](err)
	switch {
	case errors.Is(err, ErrNoCredentials):
		return "give it credentials, by the settings of the bucket or by the environment of the process"
	case errors.Is(err, ErrRefused):
		return "check its credentials, and that they may put, get and delete objects"
	case errors.Is(err, ErrNoBucket):
		return "check its name, region and account"
	case dialled, named, errors.Is(err, context.DeadlineExceeded):
		return "it cannot be reached: check its endpoint and region, name resolution, and what stands between"
	case errors.Is(err, fs.ErrPermission):
		return "give the process the right to write in the folder (setting bucket.folder.path, by default within data)"
	}
	return "check its name, region, credentials and rights (put, get, delete)"
}

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
