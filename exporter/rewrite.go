package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"sidecar/state"
)

// kept is what the first rows that a slice has open are without those that were dropped since they were written: a part of
// the spool file itself, or a copy, which is the same each time that it is made. size and rows count the dropped ones, too.
func (r *run) kept(part *state.Slice, size, rows int64) (content, error) {
	whole := content{spoolPath(r.dir, part), part.SpoolFrom, size, rows}
	first := part.Written - part.SpoolRows
	if !anyDropped(part.Dropped, first, first+rows) {
		return whole, nil
	}
	file, err := os.Open(whole.path)
	if err != nil {
		return content{}, local(err)
	}
	copied, err := copyKept(whole.path+".kept", io.NewSectionReader(file, whole.from, size), first, part.Dropped)
	return copied, local(errors.Join(err, file.Close()))
}

// rewriteStored takes dropped rows out of files of some types that the bucket has already. No manifest lists them before, so
// that they can be put again under their names.
func (r *run) rewriteStored(ctx context.Context, all []state.Slice, types []string) error {
	files, err := r.Store.Files(ctx, r.job.ID)
	if err != nil {
		return err
	}
	for _, file := range files {
		if file.Kind != state.Output || file.Sealed || !slices.Contains(types, file.Type) {
			continue
		}
		n := slices.IndexFunc(all, func(s state.Slice) bool { return s.Seq == file.Slices[0] })
		if n < 0 || !anyDropped(all[n].Dropped, file.First, file.First+file.Count) {
			continue
		}
		if err := r.rewrite(ctx, file, all[n].Dropped); err != nil {
			return err
		}
	}
	return nil
}

// rewrite makes a local copy of a stored file without the dropped rows, announces it, and puts it. From the announcement
// on the copy is the content, also over a crash.
func (r *run) rewrite(ctx context.Context, file state.File, dropped []int64) error {
	var copied content
	err := r.bucketPace.do(ctx, func() error {
		object, err := r.openRows(ctx, file)
		if err != nil {
			return err
		}
		copied, err = copyKept(r.rewrittenPath(file), object, file.First, dropped)
		return errors.Join(err, object.Close())
	})
	if err != nil {
		return local(fmt.Errorf("rewrite file: %w", err))
	}
	file.Count, file.Bytes, file.Sealed, file.Rewritten, file.Stored = copied.rows, copied.size, true, true, false
	if err := r.Store.PutFile(ctx, r.job.ID, file); err != nil {
		return err
	}
	return r.putRewritten(ctx, file)
}

func (r *run) rewrittenPath(file state.File) string {
	return filepath.Join(r.dir, file.Name+".rewritten")
}

// putRewritten puts the local copy of a file in its place. Where no row is left, there is no file any more.
func (r *run) putRewritten(ctx context.Context, file state.File) error {
	if file.Count == 0 {
		if err := r.bucketPace.do(ctx, func() error { return r.Bucket.Delete(ctx, r.job.Folder+"/"+file.Name) }); err != nil {
			return local(fmt.Errorf("remove empty file: %w", err))
		}
		return r.Store.DropFile(ctx, r.job.ID, file.Name)
	}
	return r.putContent(ctx, file, []content{{path: r.rewrittenPath(file), size: file.Bytes}}, nil)
}

// anyDropped tells whether one of the rows [from, to) was dropped.
func anyDropped(dropped []int64, from, to int64) bool {
	n, _ := slices.BinarySearch(dropped, from)
	return n < len(dropped) && dropped[n] < to
}

// copyKept copies the lines of in whose numbers, counted from first, are not among dropped. A line may have any length. An
// error of the copy is a local one, which no repetition of a request to the bucket mends.
func copyKept(path string, in io.Reader, first int64, dropped []int64) (_ content, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return content{}, local(err)
	}
	defer func() { err = errors.Join(err, local(file.Close())) }()
	lines, out := bufio.NewReaderSize(in, 64<<10), bufio.NewWriterSize(file, 64<<10)
	c := content{path: path}
	for row := first; ; row++ {
		_, drop := slices.BinarySearch(dropped, row)
		size, err := copyLine(out, lines, drop)
		if errors.Is(err, io.EOF) {
			return c, local(errors.Join(out.Flush(), file.Sync()))
		}
		if err != nil {
			return content{}, err
		}
		if !drop {
			c.rows, c.size = c.rows+1, c.size+size
		}
	}
}

// copyLine copies one line with its end, or passes it over. It returns io.EOF behind the last one.
func copyLine(out *bufio.Writer, lines *bufio.Reader, drop bool) (size int64, err error) {
	for {
		part, err := lines.ReadSlice('\n')
		size += int64(len(part))
		if !drop {
			if _, err := out.Write(part); err != nil {
				return 0, local(err)
			}
		}
		switch {
		case err == nil:
			return size, nil
		case errors.Is(err, io.EOF) && size > 0:
			return 0, io.ErrUnexpectedEOF // each line of ours has an end
		case !errors.Is(err, bufio.ErrBufferFull):
			return 0, err
		}
	}
}
