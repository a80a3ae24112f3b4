package blob_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sidecar/exporter/blob"
)

// linked is a folder bucket whose links lead to a server of the test.
type linked struct {
	*blob.Dir
	link    string
	deleted []string
	delErr  error
}

func (l *linked) SignURL(_ context.Context, name string, ttl time.Duration) (string, time.Time, error) {
	return l.link + "/" + name + "?X-Amz-Signature=secret", time.Now().Add(ttl), nil
}

func (l *linked) Delete(ctx context.Context, name string) error {
	l.deleted = append(l.deleted, name)
	return errors.Join(l.Dir.Delete(ctx, name), l.delErr)
}

func TestCheckSaysWhichStepFailed(t *testing.T) {
	answers := func(status int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		})
	}
	for _, tt := range []struct {
		name    string
		handler http.Handler
		delErr  error
		want    string
	}{
		{"refused link", answers(http.StatusForbidden, "SignatureDoesNotMatch"), nil, "check bucket: read: signed link: the store answers 403 Forbidden"},
		{"other content", answers(http.StatusOK, "something else"), nil, "check bucket: read: the content is not what was written"},
		{"no answer", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), nil, "check bucket: read: signed link: "},
		{"refused delete", nil, errors.New("delete x: no permission"), "check bucket: delete: delete x: no permission"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, root := newDir(t)
			b := &linked{Dir: d, delErr: tt.delErr}
			handler := tt.handler
			if handler == nil {
				handler = http.FileServer(http.Dir(root))
			}
			server := httptest.NewServer(handler)
			t.Cleanup(server.Close)
			b.link = server.URL
			err := blob.Check(t.Context(), b, server.Client())
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if text := err.Error(); strings.Contains(text, "secret") || strings.Contains(text, "http://") {
				t.Errorf("error shows the link: %s", text)
			}
			if len(b.deleted) != 1 || !strings.HasPrefix(b.deleted[0], blob.CheckPrefix) {
				t.Errorf("deleted: got %q, want the object of the check", b.deleted)
			}
			wantEntries(t, root)
		})
	}
}

func TestCheckDeletesItsObjectAlsoAfterTheEndOfItsContext(t *testing.T) {
	d, root := newDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		cancel()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(server.Close)
	if err := blob.Check(ctx, &linked{Dir: d, link: server.URL}, server.Client()); err == nil {
		t.Error("got nil, want an error")
	}
	wantEntries(t, root)
}

func TestHideURL(t *testing.T) {
	cause := errors.New("cause")
	for _, tt := range []struct{ name, text, want string }{
		{"host stays", `Get "https://store.example/b/o?X-Amz-Signature=abc": refused`, `Get "store.example": refused`},
		{"user and port", `put http://key:secret@store:9000/x failed`, `put store:9000 failed`},
		{"lines become one", "a\n<html>\n b", "a <html> b"},
		{"nothing to hide", "access denied", "access denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := blob.HideURL(fmt.Errorf("%s%w", tt.text, wordless{cause}))
			if got := err.Error(); got != tt.want {
				t.Errorf("text: got %q, want %q", got, tt.want)
			}
			if !errors.Is(err, cause) {
				t.Error("the cause is lost")
			}
		})
	}
	if err := blob.HideURL(nil); err != nil {
		t.Errorf("of nil: got %v, want nil", err)
	}
	if got := len(blob.HideURL(errors.New(strings.Repeat("page ", 1000))).Error()); got > 600 {
		t.Errorf("length of a long text: got %d, want at most 600", got)
	}
}

// wordless wraps an error without adding to the text.
type wordless struct{ cause error }

func (w wordless) Error() string { return "" }

func (w wordless) Unwrap() error { return w.cause }

// Ensure an operator is told apart what does not answer, what does not let him in, and what is not there.
func TestAdviceFitsTheError(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	for _, test := range []struct {
		err  error
		want string
	}{
		{refused, "cannot be reached"},
		{&net.DNSError{Err: "no such host"}, "cannot be reached"},
		{context.DeadlineExceeded, "cannot be reached"},
		{fmt.Errorf("%w: 403", blob.ErrRefused), "check its credentials"},
		{fmt.Errorf("%w: %w", blob.ErrNoCredentials, refused), "give it credentials"}, // nobody was asked but the machine
		{blob.ErrNoBucket, "check its name"},
		{fs.ErrPermission, "the right to write in the folder (setting bucket.folder.path"},
		{errors.New("something else"), "name, region, credentials and rights"},
	} {
		if got := blob.Advice(blob.HideURL(fmt.Errorf("check bucket: write: put x: %w", test.err))); !strings.Contains(got, test.want) {
			t.Errorf("%v: got %q, want %q", test.err, got, test.want)
		}
	}
}
