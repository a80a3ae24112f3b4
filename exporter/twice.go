package exporter

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"sidecar/state"
)

// takeTwice makes changes of the resources that were written more than once, so that one version of each is left: a commit
// that showed while the type was read, and was stamped before the span of repairs, is in no history or search that was read
// for the repair. Such a row was met once more than the server counts, so that a type whose counts are equal has none. Of a
// filtered type the count may be that much less for another reason.
func (t *typeRepair) takeTwice() (err error) {
	equal := func(s *state.Slice) bool { return s.Verdict == state.Proved || s.Verdict == state.Paged }
	if len(t.filtersOf(t.typ)) == 0 && !slices.ContainsFunc(t.crawled, func(s *state.Slice) bool { return !equal(s) }) {
		return nil
	}
	maybe, err := t.maybeTwice()
	if err != nil {
		return err
	}
	rows := newSorter(t.dir, t.typ+".twice")
	defer func() { err = errors.Join(err, rows.close()) }()
	for _, part := range t.crawled {
		row := 0
		err := eachWritten(t.dir, part.Seq, part.IndexSize, func(id, _ string) error {
			if row++; !maybe(id) {
				return nil
			}
			return rows.add(fmt.Sprintf("%s\t%d.%d", id, part.Seq, row))
		})
		if err != nil {
			return err
		}
	}
	sorted, err := rows.sorted()
	if err != nil {
		return err
	}
	for last := ""; ; {
		line, more, err := sorted.next()
		if err != nil || !more {
			return err
		}
		id, _, _ := strings.Cut(line, "\t")
		if id == last {
			if err := t.log.add(id, twice); err != nil {
				return err
			}
		}
		last = id
	}
}

// maxTwiceBits bounds the memory of maybeTwice, to 4 MiB.
const maxTwiceBits = 16 << 20

// maybeTwice tells of an id whether it may have been written more than once: by its hash, which few others share. Only those
// have to be sorted.
func (t *typeRepair) maybeTwice() (func(id string) bool, error) {
	written := int64(0)
	for _, part := range t.crawled {
		written += part.Written
	}
	bits := uint64(max(64, min(16*written, maxTwiceBits)))
	once, again := make([]uint64, bits/64+1), make([]uint64, bits/64+1)
	place := func(id string) (word, bit uint64) {
		at := metKey(id) % bits
		return at / 64, 1 << (at % 64)
	}
	for _, part := range t.crawled {
		err := eachWritten(t.dir, part.Seq, part.IndexSize, func(id, _ string) error {
			word, bit := place(id)
			again[word] |= once[word] & bit
			once[word] |= bit
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return func(id string) bool {
		word, bit := place(id)
		return again[word]&bit != 0
	}, nil
}
