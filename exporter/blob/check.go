package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// CheckPrefix begins the names of the objects that Check writes.
	CheckPrefix = ".sidecar-check-"

	checkLinkLifetime  = 5 * time.Minute
	checkDeleteTimeout = 10 * time.Second
)

// Check proves that the bucket works: it writes a small object, reads it back as
// a client would, through a signed link with client (http.DefaultClient for nil),
// or through Open where the bucket has no links, and deletes it. It fails when one
// step fails; the error says which one and why, without the link or a secret. The
// object is deleted also when reading it failed or ctx ended.
func Check(ctx context.Context, b Bucket, client *http.Client) error {
	name := CheckPrefix + strings.ToLower(rand.Text())
	content := []byte("written by the sidecar to see that the bucket works\n")
	if err := b.Put(ctx, name, Media{Type: "text/plain"}, bytes.NewReader(content)); err != nil {
		return fmt.Errorf("check bucket: write: %w", err)
	}
	readErr := checkRead(ctx, b, client, name, content)
	deleteCtx := ctx
	if readErr != nil || ctx.Err() != nil {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkDeleteTimeout)
		defer cancel()
		deleteCtx = detached
	}
	deleteErr := b.Delete(deleteCtx, name)
	if readErr != nil {
		return fmt.Errorf("check bucket: read: %w", readErr)
	}
	if deleteErr != nil {
		return fmt.Errorf("check bucket: delete: %w", deleteErr)
	}
	return nil
}

func checkRead(ctx context.Context, b Bucket, client *http.Client, name string, want []byte) error {
	body, err := openLikeClient(ctx, b, client, name)
	if err != nil {
		return err
	}
	// One byte more than was written is enough to see a difference.
	got, err := io.ReadAll(io.LimitReader(body, int64(len(want))+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return HideURL(err)
	}
	if !bytes.Equal(got, want) {
		return errors.New("the content is not what was written")
	}
	return nil
}

func openLikeClient(ctx context.Context, b Bucket, client *http.Client, name string) (io.ReadCloser, error) {
	link, _, err := b.SignURL(ctx, name, checkLinkLifetime)
	if errors.Is(err, errors.ErrUnsupported) {
		return b.Open(ctx, name, 0)
	}
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return nil, HideURL(err)
	}
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, HideURL(fmt.Errorf("signed link: %w", err))
	}
	if resp.StatusCode != http.StatusOK {
		// What the body says is left out: stores repeat the link's query in it.
		err := fmt.Errorf("signed link: the store answers %s", resp.Status)
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp.Body, nil
}
