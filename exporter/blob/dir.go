package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	dirMode  = 0o700 // the files hold health data
	fileMode = 0o600

	copyBytes = 256 << 10

	// A file in the making stands beside its place as ".<name>.part". The name is
	// fixed, so that a Put after a crash finds what the first one left.
	partPrefix, partSuffix = ".", ".part"

	gzipSuffix = ".gz"
)

// Dir is a folder as a [Bucket]. Its objects are plain files, 0600 in folders of
// 0700; it keeps no content type, which follows from the file's name. What is
// compressed is the file "<name>.gz", as those who read the folder expect.
type Dir struct {
	root string

	// mu guards the folder tree against a Put and a Delete in the same folder at
	// once, and writing.
	mu      sync.Mutex
	writing map[string]bool // paths of the part files of running Puts
}

var _ Bucket = (*Dir)(nil)

// NewDir returns the folder at path as a bucket and makes it if need be. It fails
// when path cannot be made or is not a folder. A folder that goes away later is
// not made again: it may be a volume that is not mounted.
func NewDir(path string) (*Dir, error) {
	root, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("folder bucket: %w", withoutPath(err))
	}
	if err := os.MkdirAll(root, dirMode); err != nil {
		return nil, fmt.Errorf("folder bucket: %w", withoutPath(err))
	}
	return &Dir{root: root, writing: make(map[string]bool)}, nil
}

// Put writes body to a part file beside its place, syncs it, renames it and syncs
// the folder, so that a crash at any moment leaves the old file or the new one. A
// [Whole] body on the same file system is that file, by a second name.
// See [Bucket] for when it fails.
func (d *Dir) Put(ctx context.Context, name string, media Media, body io.ReadSeeker) error {
	path, err := d.path(name)
	other := path + gzipSuffix
	if media.Encoding == Gzip {
		path, other = other, path
	}
	if err == nil {
		err = d.put(ctx, path, body)
	}
	if err == nil {
		err = d.remove(other)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, withoutPath(err))
	}
	return nil
}

func (d *Dir) put(ctx context.Context, path string, body io.ReadSeeker) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	part, err := d.reserve(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.abandon(part))
		} else {
			d.release(part)
		}
	}()
	linked, err := link(part, body)
	if err == nil && !linked {
		err = write(ctx, part, body)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	if linked { // where both are names of the same file already, as after a crash, both are left
		if err := os.Remove(part); err != nil && !gone(err) {
			return err
		}
	}
	return syncFolder(filepath.Dir(path))
}

// link makes part a second name of the file that body is, where it is one and the
// file system can.
func link(part string, body io.ReadSeeker) (linked bool, err error) {
	whole, ok := body.(Whole)
	if !ok {
		return false, nil
	}
	file := whole.File()
	if file == nil || os.Link(file.Name(), part) != nil {
		return false, nil
	}
	return true, file.Sync()
}

// write makes part a copy of body.
func write(ctx context.Context, part string, body io.ReadSeeker) (err error) {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("rewind: %w", err)
	}
	file, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	// The file's own ReadFrom would copy in pieces of 32 KiB.
	if _, err := io.CopyBuffer(struct{ io.Writer }{file}, &contextReader{ctx: ctx, r: body}, make([]byte, copyBytes)); err != nil {
		return err
	}
	return file.Sync()
}

// reserve returns the part file of path for one Put, and makes the folders that
// lead to it. What a crash left there is removed, never written to: it may be a
// second name of a file that is still wanted.
func (d *Dir) reserve(path string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	part := filepath.Join(filepath.Dir(path), partPrefix+filepath.Base(path)+partSuffix)
	if d.writing[part] {
		return "", errors.New("the same file is being written")
	}
	if err := d.mkdirs(filepath.Dir(path)); err != nil {
		return "", err
	}
	if err := os.Remove(part); err != nil && !gone(err) {
		return "", err
	}
	d.writing[part] = true
	return part, nil
}

// mkdirs makes the folders between the root, which has to be there, and folder.
// Each new one is synced into its parent: a file in it is only as durable as that.
func (d *Dir) mkdirs(folder string) error {
	if folder == d.root {
		return nil
	}
	parent := filepath.Dir(folder)
	if err := d.mkdirs(parent); err != nil {
		return err
	}
	err := os.Mkdir(folder, dirMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncFolder(parent)
}

// abandon releases the part file of a Put that failed and removes it, and the
// folders that only it had filled. Its name may be gone already, when the rename
// was the last step that worked.
func (d *Dir) abandon(part string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.writing, part)
	if err := os.Remove(part); err != nil && !gone(err) {
		return err
	}
	return d.prune(filepath.Dir(part))
}

func (d *Dir) release(part string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.writing, part)
}

// Open opens an object's file; the stream is an *os.File, so that it can be
// served with Range. See [Bucket] for when it fails.
func (d *Dir) Open(ctx context.Context, name string, offset int64) (io.ReadCloser, error) {
	path, err := d.path(name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	f, err := os.Open(path)
	if gone(err) {
		f, err = os.Open(path + gzipSuffix)
	}
	if err != nil {
		if gone(err) {
			err = ErrNotExist
		}
		return nil, fmt.Errorf("open %s: %w", name, withoutPath(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotExist
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, errors.Join(err, f.Close()))
	}
	return f, nil
}

// SignURL always fails with errors.ErrUnsupported: a folder has no links of its
// own, the sidecar serves its files.
func (d *Dir) SignURL(_ context.Context, name string, _ time.Duration) (string, time.Time, error) {
	return "", time.Time{}, fmt.Errorf("sign %s: folder bucket: %w", name, errors.ErrUnsupported)
}

// Delete removes an object's file, what a crash left of writing it, and the
// folders above once they are empty, never the root. See [Bucket] for when it
// fails.
func (d *Dir) Delete(ctx context.Context, name string) error {
	path, err := d.path(name)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = errors.Join(d.remove(path), d.remove(path+gzipSuffix))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, withoutPath(err))
	}
	return nil
}

func (d *Dir) remove(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	part := filepath.Join(filepath.Dir(path), partPrefix+filepath.Base(path)+partSuffix)
	for _, p := range []string{path, part} {
		if d.writing[p] {
			continue
		}
		if err := os.Remove(p); err != nil && !gone(err) {
			return err
		}
	}
	return d.prune(filepath.Dir(path))
}

// prune removes folder and those above it while no Put runs in them and nothing is
// left but part files that nobody writes: a process that was killed left those, and
// no job remembers them.
func (d *Dir) prune(folder string) error {
	for ; folder != d.root && !d.busy(folder); folder = filepath.Dir(folder) {
		entries, err := os.ReadDir(folder)
		if gone(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if !isPart(entry) {
				return nil
			}
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	return nil
}

// busy tells whether a Put runs in folder or below: its part file may not be there yet.
func (d *Dir) busy(folder string) bool {
	for part := range d.writing {
		if strings.HasPrefix(part, folder+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

func isPart(entry fs.DirEntry) bool {
	name := entry.Name()
	return !entry.IsDir() && strings.HasPrefix(name, partPrefix) && strings.HasSuffix(name, partSuffix)
}

// path is the file of an object. A name of a part file is refused, so that no
// unfinished file can be read as an object.
func (d *Dir) path(name string) (string, error) {
	if err := ValidateName(name); err != nil {
		return "", err
	}
	local, err := filepath.Localize(name)
	if err != nil {
		return "", fmt.Errorf("object name %q: %w", name, err)
	}
	base := filepath.Base(local)
	if strings.HasPrefix(base, partPrefix) && strings.HasSuffix(base, partSuffix) {
		return "", fmt.Errorf("object name %q is kept for unfinished files", name)
	}
	return filepath.Join(d.root, local), nil
}

// withoutPath takes the server's own paths out of a file error: why a bucket
// fails is told to clients too, and the object's name is in the text already.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", pathErr.Op, pathErr.Err)
	}
	if linkErr, ok := errors.AsType[*os.LinkError](err); ok {
		return fmt.Errorf("%s: %w", linkErr.Op, linkErr.Err)
	}
	return err
}

// gone says whether err means that there is no such file. A plain file where a
// folder was expected (ENOTDIR) means the same, but has no portable error; it
// does not occur with the names of an export.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// contextReader ends a copy when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
