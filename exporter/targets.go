package exporter

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"sort"
)

// targetBytes is the size of a name in a targets file: 128 bits of hash, of which two that are equal are less likely than a
// broken disk.
const targetBytes = 16

type targetKey [targetBytes]byte

// targets is a set of names on the disk, built once and then asked: it may hold more than fits into memory.
type targets struct {
	names *sorter  // the hexadecimal keys, until the set is built
	file  *os.File // the keys in order
	n     int64
}

func targetKeyOf(name string) (key targetKey) {
	a, b := metKey(name), metKey("\x00"+name)
	for i := range 8 {
		key[i], key[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	return key
}

// newTargets returns an empty set whose files are in a folder. It has to be closed, whatever happens to it.
func newTargets(dir string) (*targets, error) {
	file, err := os.OpenFile(filepath.Join(dir, "targets"), os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, local(err)
	}
	return &targets{names: newSorter(dir, "targets"), file: file}, nil
}

// add takes a name up, before build.
func (t *targets) add(name string) error {
	key := targetKeyOf(name)
	return t.names.add(hex.EncodeToString(key[:]))
}

// build writes the set into one sorted file.
func (t *targets) build() error {
	sorted, err := t.names.sorted()
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(t.file, 64<<10)
	for {
		line, more, err := sorted.next()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		key, err := hex.DecodeString(line)
		if err != nil {
			return local(err)
		}
		if _, err := out.Write(key); err != nil {
			return local(err)
		}
		t.n++
	}
	if err := out.Flush(); err != nil {
		return local(err)
	}
	names := t.names
	t.names = nil
	return names.close()
}

// has tells whether a name was added.
func (t *targets) has(name string) (bool, error) {
	want := targetKeyOf(name)
	var key targetKey
	var failed error
	at := func(i int) bool {
		if _, err := t.file.ReadAt(key[:], int64(i)*targetBytes); err != nil && failed == nil {
			failed = local(err)
		}
		return failed != nil || bytes.Compare(key[:], want[:]) >= 0
	}
	i := sort.Search(int(t.n), at)
	if failed != nil || int64(i) == t.n {
		return false, failed
	}
	at(i)
	return key == want, failed
}

// close removes the set. It may be called on nil.
func (t *targets) close() error {
	if t == nil {
		return nil
	}
	err := errors.Join(local(t.file.Close()), local(os.Remove(t.file.Name())))
	if t.names != nil {
		err = errors.Join(err, t.names.close())
	}
	return err
}
