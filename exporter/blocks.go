package exporter

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"sidecar/exporter/fhir"
	"sidecar/state"
	"sidecar/state/failpoint"
)

// blocks writes the blocks one after another into files. A block that does not fit behind others moves to a file of its own;
// one that is longer than a file goes on in the next, behind its header again (Bulk Data guide, section "Bulk Data Output
// File Organization").
type blocks struct {
	*organizer
	output *fhir.Output
	// stored is how many files there are.
	stored int

	file *os.File // nil while nothing is in it
	out  *bufio.Writer
	// size and rows are what is in the file.
	size, rows int64
	// id is the instance of the block that is being written. It begins in the file at begin, behind before rows of others.
	id            string
	begin, before int64
	// written is what was written since the last file left, by type, for the metrics.
	written map[string]content
}

// write puts the files, and goes on behind those that the bucket has from before a crash: a spot is a row, so that their
// counts tell how many spots they took.
func (o *organizer) write(ctx context.Context) error {
	files, err := o.Store.Files(ctx, o.job.ID)
	if err != nil {
		return err
	}
	b := &blocks{organizer: o, written: map[string]content{}}
	if b.output, err = o.newOutput(o.job.Kickoff.Elements); err != nil {
		return err
	}
	done := int64(0)
	for _, file := range files {
		if file.Kind == state.Output {
			b.stored, done = b.stored+1, done+file.Count
		}
	}
	sorted, err := o.places.sorted()
	if err != nil {
		return err
	}
	for {
		line, more, err := sorted.next()
		if err == nil && !more {
			return b.end(ctx)
		}
		var at spot
		if err == nil {
			at, err = decodeSpot(line)
		}
		if err == nil && done <= 0 {
			err = b.row(ctx, at)
		}
		if err != nil {
			return errors.Join(err, b.abandon())
		}
		b.id, done = at.id, done-1
	}
}

// row writes a row to the block of its instance.
func (b *blocks) row(ctx context.Context, at spot) error {
	if at.id != b.id || b.file == nil {
		if err := b.head(at.id); err != nil {
			return err
		}
	}
	size, err := b.copy(at)
	if err != nil {
		return err
	}
	sum := b.written[b.types[at.seq]]
	b.written[b.types[at.seq]] = content{rows: sum.rows + 1, size: sum.size + size}
	if b.size > b.fileLimit() && b.begin > 0 {
		if err := b.move(ctx); err != nil {
			return err
		}
	}
	switch {
	case b.size <= b.fileLimit():
		return ctx.Err()
	case b.rows == 1: // it fits into no file
		return b.remarkTooLarge(ctx, b.types[at.seq])
	}
	return b.goOn(ctx, at, size)
}

// copy writes a row behind what is in the file, and returns its size.
func (b *blocks) copy(at spot) (size int64, err error) {
	resource, err := fhir.EntryAt(b.types[at.seq], "", b.spools[at.seq], at.at, at.size)
	if err != nil {
		return 0, local(err)
	}
	size, err = b.output.Write(b.out, resource)
	if err = errors.Join(err, b.out.WriteByte('\n')); err != nil {
		return 0, local(err)
	}
	size++
	b.size, b.rows = b.size+size, b.rows+1
	return size, nil
}

// goOn takes the last row back from a file that it does not fit into, puts the file, and goes on with the block in the next.
func (b *blocks) goOn(ctx context.Context, at spot, size int64) error {
	if err := b.out.Flush(); err != nil {
		return local(err)
	}
	if err := b.file.Truncate(b.size - size); err != nil {
		return local(err)
	}
	b.size, b.rows = b.size-size, b.rows-1
	if err := b.put(ctx, true); err != nil {
		return err
	}
	if err := b.head(at.id); err != nil {
		return err
	}
	_, err := b.copy(at)
	if err == nil && b.size > b.fileLimit() {
		err = b.remarkTooLarge(ctx, b.types[at.seq])
	}
	return errors.Join(err, ctx.Err())
}

// head begins a block, or goes on with it in a new file.
func (b *blocks) head(id string) error {
	if b.file == nil {
		if err := b.open(b.organizedPath()); err != nil {
			return err
		}
	}
	b.begin, b.before = b.size, b.rows
	reference, err := json.Marshal(b.by + "/" + id)
	if err != nil {
		return err
	}
	n, err := fmt.Fprintf(b.out, `{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":%s}}]}`+"\n", reference)
	b.size += int64(n)
	return local(err)
}

func (b *blocks) open(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return local(err)
	}
	b.file, b.out = file, bufio.NewWriterSize(file, 64<<10)
	return nil
}

// move puts what is before the block, and leaves the block as the beginning of the next file.
func (b *blocks) move(ctx context.Context) (err error) {
	if err := b.out.Flush(); err != nil {
		return local(err)
	}
	path := b.organizedPath() + ".next"
	next, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return local(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, local(next.Close()))
		}
	}()
	if _, err := io.Copy(next, io.NewSectionReader(b.file, b.begin, b.size-b.begin)); err != nil {
		return local(err)
	}
	if err := b.file.Truncate(b.begin); err != nil {
		return local(err)
	}
	size, rows := b.size-b.begin, b.rows-b.before
	b.size, b.rows = b.begin, b.before
	if err := b.put(ctx, false); err != nil {
		return err
	}
	failpoint.Pass("before rename")
	if err := os.Rename(path, b.organizedPath()); err != nil {
		return local(err)
	}
	failpoint.Pass("after rename")
	b.file, b.out = next, bufio.NewWriterSize(next, 64<<10)
	b.size, b.rows, b.begin, b.before = size, rows, 0, 0
	return nil
}

// put puts the file. continues tells that its last block goes on in the next one.
func (b *blocks) put(ctx context.Context, continues bool) error {
	err := errors.Join(b.out.Flush(), b.file.Sync(), b.file.Close())
	b.file = nil
	if err != nil {
		return local(err)
	}
	b.stored++
	file := state.File{Kind: state.Output, Type: b.by, Count: b.rows, Bytes: b.size, Sealed: true}
	if continues {
		file.ContinuesIn = state.FileName(b.by, b.stored+1)
	}
	if file, err = b.Store.Allot(ctx, b.job.ID, file); err != nil {
		return err
	}
	if err := b.putOrganized(ctx, file); err != nil {
		return err
	}
	b.size, b.rows, b.begin, b.before = 0, 0, 0, 0
	for typ, sum := range b.written {
		b.Metrics.resources.WithLabelValues(typ).Add(float64(sum.rows))
		b.Metrics.bytes.WithLabelValues(typ).Add(float64(sum.size))
	}
	clear(b.written)
	return nil
}

// end puts the last file.
func (b *blocks) end(ctx context.Context) error {
	if b.file == nil {
		return nil
	}
	return b.put(ctx, false)
}

// abandon closes the file that is not finished.
func (b *blocks) abandon() error {
	if b.file == nil {
		return nil
	}
	return local(b.file.Close())
}
