package exporter

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"

	"sidecar/state"
)

// fileLimit is the size in bytes of rows that no output file passes, but one of a single row: that of the configuration, or a
// lower one that the client asks for.
func (r *run) fileLimit() int64 {
	if asked := r.job.Kickoff.MaxFileBytes; asked > 0 {
		return min(asked, r.MaxFileBytes)
	}
	return r.MaxFileBytes
}

// rollSize is how much a slice has open when a file leaves: what stays behind is to be enough for a file of the smallest size
// that the client wants.
func (r *run) rollSize() int64 { return r.fileLimit() + r.job.Kickoff.MinFileBytes }

// open is how many bytes of a slice's spool file are in no output file.
func open(slice *state.Slice) int64 { return slice.SpoolSize - slice.SpoolFrom }

// putFiles makes files of all that some slices have open: full ones and a last one, or, where the client wants a smallest size,
// files of about the same size, so that the last one is not smaller than need be.
func (r *run) putFiles(ctx context.Context, file state.File, parts []state.Slice) error {
	for {
		target, left := r.fileLimit(), int64(0)
		for i := range parts {
			left += open(&parts[i])
		}
		if r.job.Kickoff.MinFileBytes > 0 && left > 0 {
			files := (left + target - 1) / target
			target = (left + files - 1) / files
		}
		put, err := r.putFile(ctx, file, parts, target)
		if err != nil || !put {
			return err
		}
		for len(parts) > 0 && parts[0].SpoolRows == 0 {
			parts = parts[1:]
		}
	}
}

// putFile makes one file of what some slices have open, of the target size where there is so much, and takes its rows off
// them. It tells whether there was a row for it.
func (r *run) putFile(ctx context.Context, file state.File, parts []state.Slice, target int64) (bool, error) {
	err := r.fill(&file, parts, target)
	if err != nil || file.Count == 0 {
		return false, err
	}
	if file.Bytes > r.fileLimit() {
		if err := r.remarkTooLarge(ctx, file.Type); err != nil {
			return false, err
		}
	}
	if file, err = r.Store.Allot(ctx, r.job.ID, file); err != nil {
		return false, err
	}
	return true, r.upload(ctx, file, parts[:len(file.Slices)])
}

// remarkTooLarge says that a single resource is larger than the files that the client wants. The operator's own limit is none
// for it.
func (r *run) remarkTooLarge(ctx context.Context, typ string) error {
	if r.job.Kickoff.MaxFileBytes == 0 {
		return nil
	}
	return r.remark(ctx, state.Issue{
		Severity: "warning", Code: "too-long",
		Text: typ + ": a single resource is larger than _maximumFileSize; it has a file of its own, which exceeds that size",
	})
}

// fill chooses what a file takes of the rows that some slices have open: those before the target is reached, unless one does
// not fit any more. The first one always does.
func (r *run) fill(file *state.File, parts []state.Slice, target int64) error {
	for i := range parts {
		part := &parts[i]
		file.First = part.Written - part.SpoolRows
		if file.Bytes+open(part) <= target && !anyDropped(part.Dropped, file.First, part.Written) {
			file.Slices = append(file.Slices, part.Seq)
			file.Bytes, file.Count = file.Bytes+open(part), file.Count+part.SpoolRows
			continue
		}
		size, rows, err := r.fillFrom(file, part, target)
		if err != nil {
			return err
		}
		if rows > 0 {
			file.Slices = append(file.Slices, part.Seq)
		}
		if rows < part.SpoolRows {
			file.LastSize, file.LastRows = size, rows
			return nil
		}
	}
	return nil
}

// fillFrom is fill for one slice, row by row. It returns the size and number of the rows that were chosen, with those among
// them that were dropped.
func (r *run) fillFrom(file *state.File, part *state.Slice, target int64) (size, rows int64, err error) {
	spool, err := os.Open(spoolPath(r.dir, part))
	if err != nil {
		return 0, 0, local(err)
	}
	defer func() { err = errors.Join(err, local(spool.Close())) }()
	lines, first := bufio.NewReaderSize(io.NewSectionReader(spool, part.SpoolFrom, open(part)), 64<<10), part.Written-part.SpoolRows
	for ; rows < part.SpoolRows && file.Bytes < target; rows++ {
		line, err := copyLine(nil, lines, true)
		if err != nil {
			return 0, 0, local(err)
		}
		if !anyDropped(part.Dropped, first+rows, first+rows+1) {
			if file.Count > 0 && file.Bytes+line > r.fileLimit() {
				return size, rows, nil
			}
			file.Bytes, file.Count = file.Bytes+line, file.Count+1
		}
		size += line
	}
	return size, rows, nil
}

// upload puts an announced file and records that it is stored. It can be done again after a crash anywhere in it, with
// the same object as result: the spool files stay until the record is written.
func (r *run) upload(ctx context.Context, file state.File, parts []state.Slice) (err error) {
	contents := make([]content, len(parts))
	for i := range parts {
		part := &parts[i]
		size, rows := open(part), part.SpoolRows
		if i == len(parts)-1 && file.LastRows > 0 {
			size, rows = file.LastSize, file.LastRows
		}
		if contents[i], err = r.kept(part, size, rows); err != nil {
			return err
		}
		part.SpoolFrom, part.SpoolRows = part.SpoolFrom+size, part.SpoolRows-rows
		if part.SpoolRows == 0 {
			part.SpoolFrom, part.SpoolSize = 0, 0
		}
	}
	return r.putContent(ctx, file, contents, parts)
}
