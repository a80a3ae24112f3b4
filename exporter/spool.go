package exporter

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sidecar/exporter/fhir"
	"sidecar/state"
	"sidecar/state/failpoint"
)

// errLocal marks an error of the local disk or of our own files, which no repetition of a request mends.
var errLocal = errors.New("spool")

func local(err error) error {
	if err == nil || errors.Is(err, errLocal) {
		return err
	}
	return fmt.Errorf("%w: %w", errLocal, err)
}

// spool is the open file of a slice, and beside it four files that run over the whole slice: the index of the ids written,
// one line "id<TAB>version" each, the rows met, also those that the filter kept out, as eight bytes of hash each, the
// resources that the rows written refer to, one line "Type/id" each, and where only the latest Provenance is wanted what each
// is about.
type spool struct {
	rows, index, met, refs, about sink
}

// sink is an append-only file that can go back to an earlier size.
type sink struct {
	path string
	file *os.File // nil while there is nothing in it
	buf  *bufio.Writer
	size int64 // what is buffered counts
	// changed tells that there is something to sync.
	changed bool
}

// openSpool opens the files of a slice and cuts them to the sizes of its last checkpoint.
func openSpool(dir string, slice *state.Slice) (*spool, error) {
	s := &spool{}
	for _, file := range []struct {
		sink *sink
		path string
		size int64
	}{
		{&s.rows, spoolPath(dir, slice), slice.SpoolSize},
		{&s.index, indexPath(dir, slice.Seq), slice.IndexSize},
		{&s.met, metPath(dir, slice.Seq), slice.MetSize},
		{&s.refs, refsPath(dir, slice.Seq), slice.RefsSize},
		{&s.about, aboutPath(dir, slice.Seq), slice.AboutSize},
	} {
		opened, err := openSink(file.path, file.size)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		*file.sink = opened
	}
	return s, nil
}

func spoolPath(dir string, slice *state.Slice) string {
	name := strconv.Itoa(slice.Seq)
	if slice.SpoolFile > 0 {
		name += "." + strconv.Itoa(slice.SpoolFile)
	}
	return filepath.Join(dir, name+".ndjson")
}

func indexPath(dir string, seq int) string { return filepath.Join(dir, strconv.Itoa(seq)+".ids") }

func metPath(dir string, seq int) string { return filepath.Join(dir, strconv.Itoa(seq)+".met") }

func refsPath(dir string, seq int) string { return filepath.Join(dir, strconv.Itoa(seq)+".refs") }

func aboutPath(dir string, seq int) string { return filepath.Join(dir, strconv.Itoa(seq)+".about") }

// openSink opens a file and cuts it to its durable size. One of size 0 is made with the first write: most slices need only
// some of their files.
func openSink(path string, size int64) (sink, error) {
	s := sink{path: path}
	if size == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return sink{}, local(err)
		}
		return s, nil
	}
	if err := s.open(); err != nil {
		return sink{}, local(err)
	}
	info, err := s.file.Stat()
	if err == nil && info.Size() < size {
		err = fmt.Errorf("%s is shorter than its checkpoint", filepath.Base(path))
	}
	if err == nil {
		err = s.cut(size)
	}
	if err != nil {
		return sink{}, local(errors.Join(err, s.file.Close()))
	}
	return s, nil
}

// open makes the file ready for writing, unless it is.
func (s *sink) open() error {
	if s.file != nil {
		return nil
	}
	var err error
	if s.file, err = os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	s.buf = bufio.NewWriterSize(s.file, 64<<10)
	return nil
}

func (s *sink) write(parts ...string) error {
	if err := s.open(); err != nil {
		return err
	}
	s.changed = true
	for _, part := range parts {
		n, err := s.buf.WriteString(part)
		s.size += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// cut goes back to an earlier size. The file then holds all that the sink does.
func (s *sink) cut(size int64) error {
	if s.file == nil {
		return nil
	}
	if err := s.buf.Flush(); err != nil || size == s.size {
		return err
	}
	s.changed = true
	if err := s.file.Truncate(size); err != nil {
		return err
	}
	s.size = size
	_, err := s.file.Seek(size, io.SeekStart)
	return err
}

func (s *sink) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

func (s *sink) sync() error {
	if !s.changed {
		return nil
	}
	s.changed = false
	if err := s.buf.Flush(); err != nil {
		return err
	}
	return s.file.Sync()
}

// write appends one resource as output has it; nil is as it is.
func (s *spool) write(row *fhir.Entry, output *fhir.Output) error {
	if err := s.rows.open(); err != nil {
		return local(err)
	}
	n, err := output.Write(s.rows.buf, row)
	s.rows.size += n
	return local(errors.Join(
		err,
		s.rows.write("\n"),
		s.note(row),
	))
}

// note appends the id of a resource to the index alone.
func (s *spool) note(row *fhir.Entry) error {
	return local(s.index.write(row.ID, "\t", row.Version, "\n"))
}

// meet notes that a row was met.
func (s *spool) meet(id string) error {
	var key [metBytes]byte
	binary.LittleEndian.PutUint64(key[:], metKey(id))
	return local(s.met.write(string(key[:])))
}

// cut goes back to what a slice was, as after a page that broke off.
func (s *spool) cut(before *state.Slice) error {
	return local(errors.Join(
		s.rows.cut(before.SpoolSize), s.index.cut(before.IndexSize), s.met.cut(before.MetSize), s.refs.cut(before.RefsSize), s.about.cut(before.AboutSize),
	))
}

// measure sets the sizes of a slice to those of its files.
func (s *spool) measure(slice *state.Slice) {
	slice.SpoolSize, slice.IndexSize, slice.MetSize, slice.RefsSize = s.rows.size, s.index.size, s.met.size, s.refs.size
	slice.AboutSize = s.about.size
}

// renew leaves the rows that no output file has in a file of their own, so that the others take no room any more. The old
// file is returned: it is the open one until the slice is stored.
func (s *spool) renew(dir string, slice *state.Slice) (old sink, err error) {
	if err := s.rows.sync(); err != nil {
		return sink{}, local(err)
	}
	after := *slice
	after.SpoolFile++
	after.SpoolFrom, after.SpoolSize = 0, slice.SpoolSize-slice.SpoolFrom
	file, err := openSink(spoolPath(dir, &after), 0)
	if err != nil {
		return sink{}, err
	}
	if err := file.open(); err != nil {
		return sink{}, local(err)
	}
	file.size, err = io.Copy(file.buf, io.NewSectionReader(s.rows.file, slice.SpoolFrom, after.SpoolSize))
	if err == nil && file.size != after.SpoolSize {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return sink{}, local(errors.Join(err, file.close()))
	}
	file.changed = true
	old, s.rows, *slice = s.rows, file, after
	return old, nil
}

// sync makes all that was written durable.
func (s *spool) sync() error {
	failpoint.Pass("before sync")
	err := errors.Join(s.rows.sync(), s.index.sync(), s.met.sync(), s.refs.sync(), s.about.sync())
	failpoint.Pass("after sync")
	return local(err)
}

func (s *spool) close() error {
	return local(errors.Join(s.rows.close(), s.index.close(), s.met.close(), s.refs.close(), s.about.close()))
}

// remove closes the files and deletes them.
func (s *spool) remove() error {
	err := s.close()
	for _, file := range []*sink{&s.rows, &s.index, &s.met, &s.refs, &s.about} {
		if file.file != nil {
			err = errors.Join(err, local(os.Remove(file.path)))
		}
	}
	return err
}

// metBytes is the size of a row in the file of met rows.
const metBytes = 8

// metKey is a hash of an id that is the same in every process (FNV-1a). Only the ids that the history names are looked
// up by it, some thousands, so that a false hit is less likely than a broken disk.
func metKey(id string) uint64 {
	key := uint64(14695981039346656037)
	for i := range len(id) {
		key = (key ^ uint64(id[i])) * 1099511628211
	}
	return key
}

// laterThanT is what a row is noted as that was met in a version newer than T. No id has a space.
func laterThanT(id string) string { return id + " " }

// eachMet reads the first size bytes of a slice's met rows.
func eachMet(dir string, seq int, size int64, fn func(key uint64)) (err error) {
	if size == 0 {
		return nil
	}
	file, err := os.Open(metPath(dir, seq))
	if err != nil {
		return local(err)
	}
	defer func() { err = errors.Join(err, local(file.Close())) }()
	in := bufio.NewReaderSize(io.LimitReader(file, size), 64<<10)
	var key [metBytes]byte
	for {
		switch _, err := io.ReadFull(in, key[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return local(err)
		}
		fn(binary.LittleEndian.Uint64(key[:]))
	}
}

// eachWritten reads the first size bytes of a slice's index.
func eachWritten(dir string, seq int, size int64, fn func(id, version string) error) (err error) {
	if size == 0 {
		return nil
	}
	file, err := os.Open(indexPath(dir, seq))
	if err != nil {
		return local(err)
	}
	defer func() { err = errors.Join(err, local(file.Close())) }()
	lines := bufio.NewScanner(io.LimitReader(file, size))
	for lines.Scan() {
		id, version, _ := strings.Cut(lines.Text(), "\t")
		if err := fn(id, version); err != nil {
			return err
		}
	}
	return local(lines.Err())
}

// idSet remembers ids by 128 bits of hash each: a few dozen bytes an id whatever its length, and two ids that collide
// are less likely than a broken disk.
type idSet struct {
	seeds [2]maphash.Seed
	seen  map[[2]uint64]struct{}
}

func newIDSet() *idSet {
	return &idSet{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, seen: map[[2]uint64]struct{}{}}
}

// add tells whether the id is new, and remembers it.
func (s *idSet) add(id string) bool {
	key := [2]uint64{maphash.String(s.seeds[0], id), maphash.String(s.seeds[1], id)}
	if _, known := s.seen[key]; known {
		return false
	}
	s.seen[key] = struct{}{}
	return true
}

// content is a part of a local file that holds whole rows.
type content struct {
	path             string
	from, size, rows int64
}

// multiFile reads several contents one after another, and again from the start: the body of an output file that is made of
// several spool files.
type multiFile struct {
	files    []*os.File
	contents []content
	at       int64
}

func openMulti(contents []content) (*multiFile, error) {
	m := &multiFile{contents: contents}
	for _, one := range contents {
		file, err := os.Open(one.path)
		if err != nil {
			return nil, local(errors.Join(err, m.close()))
		}
		m.files = append(m.files, file)
	}
	return m, nil
}

// Read reads on at the current offset.
func (m *multiFile) Read(p []byte) (int, error) {
	offset := m.at
	for i, one := range m.contents {
		if offset < one.size {
			n, err := m.files[i].ReadAt(p[:min(int64(len(p)), one.size-offset)], one.from+offset)
			m.at += int64(n)
			switch {
			case n > 0:
				return n, nil
			case errors.Is(err, io.EOF): // the file lost bytes: the object must not be published without them
				return 0, local(io.ErrUnexpectedEOF)
			}
			return 0, err
		}
		offset -= one.size
	}
	return 0, io.EOF
}

// Seek sets the offset as io.Seeker says.
func (m *multiFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += m.at
	case io.SeekEnd:
		for _, one := range m.contents {
			offset += one.size
		}
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	m.at = offset
	return offset, nil
}

func (m *multiFile) close() error {
	var errs []error
	for _, file := range m.files {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
