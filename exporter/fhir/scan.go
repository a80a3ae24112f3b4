package fhir

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"sync"
	"unicode/utf8"
)

const (
	// scanBuffer is the size in bytes of the only buffer through which JSON is read, whatever its size. It bounds the
	// strings that are looked at: ids, links, references. Longer ones are passed on like everything else.
	scanBuffer = 64 << 10
	// word is how many bytes are looked at in one step.
	word = 8
	// maxDepth bounds how deep values are nested. Jackson, with which most servers write, has the same bound.
	maxDepth = 1000
)

// errJSON tells that what was read is not JSON. It says no more, since the place would be a quote.
var errJSON = errors.New("not JSON")

// scanner reads one JSON text: it checks the whole grammar and that strings are UTF-8 (names may come twice, and
// surrogates alone), keeps the bytes that it is told to keep, and holds nothing else than its buffer.
//
// A method that reads a value is called with pos at the value's first byte and returns with pos behind its last.
type scanner struct {
	src io.Reader
	// trouble is what ended src early, other than its end.
	trouble error

	// buf has a word more, so that a load may begin at the last byte. The byte at end is 0, which no text has outside of
	// strings: who looks at pos need not ask whether something is left.
	buf      [scanBuffer + word]byte
	pos, end int
	mark     int // bytes from here on stay in the buffer, -1 for none
	depth    int

	keep  bool
	start int // of what is to be kept and is not yet
	kept  line
	out   io.Writer // takes what is to be kept, where it is not nil, instead of kept

	scratch []byte // the last text with escapes
	at      int    // where the last text began, as long as nothing more was read

	// urls tells that a string may have been read that is "url". It saves a search of most resources for one.
	urls bool

	// anywhere holds what is looked for wherever it stands, beside what is on a path.
	anywhere *pathNode
	// found is told of each string that is looked for; node is where it stands. An error ends the reading.
	found func(node *pathNode, text []byte) error
}

var scanners = sync.Pool{New: func() any { return new(scanner) }}

// newScanner returns a scanner for src, to be given back by release.
func newScanner(src io.Reader) *scanner {
	s := scanners.Get().(*scanner)
	s.src, s.mark = src, -1
	return s
}

// release gives the scanner and its buffers back.
func (s *scanner) release() error {
	err := s.kept.close()
	s.src, s.trouble, s.pos, s.end, s.depth, s.keep, s.start = nil, nil, 0, 0, 0, false, 0
	s.out, s.anywhere, s.found, s.buf[0] = nil, nil, nil, 0
	scanners.Put(s)
	return err
}

// more reads on into the buffer. Bytes from pos or mark on stay in it and move to its front. It returns io.EOF at the
// end of src.
func (s *scanner) more() error {
	if s.mark == 0 && s.end == scanBuffer {
		s.mark = -1 // longer than the buffer: nobody looks at it
	}
	from := s.pos
	if s.mark >= 0 {
		from = s.mark
		s.mark = 0
	}
	if err := s.flushTo(from); err != nil {
		return err
	}
	copy(s.buf[:], s.buf[from:s.end])
	s.pos, s.end, s.start = s.pos-from, s.end-from, 0
	for range 100 {
		n, err := s.src.Read(s.buf[s.end:scanBuffer])
		s.end += n
		s.buf[s.end] = 0
		switch {
		case n > 0:
			return nil // an error comes again with the next read
		case err == nil:
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return err
		default:
			s.trouble = err
			return err
		}
	}
	s.trouble = io.ErrNoProgress
	return io.ErrNoProgress
}

// flush keeps what was read since the last time, up to pos.
func (s *scanner) flush() error { return s.flushTo(s.pos) }

// flushTo keeps what was read since the last time, up to the byte at. What stands behind it is kept later.
func (s *scanner) flushTo(at int) error {
	if s.keep && s.start < at {
		span := s.buf[s.start:at]
		s.start = at
		if s.out == nil {
			return s.kept.add(span)
		}
		_, err := s.out.Write(span)
		return err
	}
	s.start = at
	return nil
}

// token returns the next byte that is not white space and leaves it to be read.
func (s *scanner) token() (byte, error) {
	if c := s.buf[s.pos]; c > ' ' {
		return c, nil
	}
	return s.space()
}

// space drops white space.
func (s *scanner) space() (byte, error) {
	const spaces = 0x2020202020202020
	if err := s.flush(); err != nil {
		return 0, err
	}
	for {
		i := s.pos
		for {
			other := binary.LittleEndian.Uint64(s.buf[i:]) ^ spaces
			if other == 0 {
				i += word
				continue
			}
			i += bits.TrailingZeros64(other) / 8
			c := s.buf[i]
			if c == '\n' || c == '\r' || c == '\t' {
				i++
				continue
			}
			s.pos, s.start = i, i
			if i < s.end {
				return c, nil
			}
			break // at the 0 that stands behind the text
		}
		if err := s.more(); err != nil {
			return 0, err
		}
	}
}

// next returns the next byte, of whatever kind, and leaves it to be read.
func (s *scanner) next() (byte, error) {
	if s.pos == s.end {
		if err := s.more(); err != nil {
			return 0, err
		}
	}
	return s.buf[s.pos], nil
}

// finish checks that nothing but white space is left.
func (s *scanner) finish() error {
	_, err := s.token()
	switch {
	case err == nil:
		return errJSON
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// str reads a string.
func (s *scanner) str() (escaped bool, err error) {
	i := s.pos + 1
	for {
		if i = plainEnd(&s.buf, i, s.end); i >= s.end {
			s.pos, s.urls = s.end, true // the letters before are gone
			if err := s.more(); err != nil {
				return false, err
			}
			i = s.pos
			continue
		}
		s.pos = i
		switch c := s.buf[i]; {
		case c == '"':
			s.pos++
			if i >= 3 && binary.LittleEndian.Uint32(s.buf[i-3:]) == urlEnd {
				s.urls = true
			}
			return escaped, nil
		case c == '\\':
			escaped = true
			err = s.escape()
		case c < ' ':
			err = errJSON
		default:
			err = s.runes()
		}
		if err != nil {
			return false, err
		}
		i = s.pos
	}
}

// urlEnd is how a string ends that may be "url".
const urlEnd = 'u' | 'r'<<8 | 'l'<<16 | '"'<<24

// plainEnd returns where the first byte at or behind i is that means something in a string: a quote, a backslash, a
// control character, or one outside of ASCII. It is end or more where there is none.
//
// Eight bytes are looked at in one step: x-c has the high bit of the first byte set that is below c, which of x^c holds
// for c itself. Behind such a byte others may be set by the borrow, so only the first counts.
func plainEnd(buf *[scanBuffer + word]byte, i, end int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for i < end {
		x := binary.LittleEndian.Uint64(buf[i:])
		special := (((x ^ '"'*ones) - ones) | ((x ^ '\\'*ones) - ones) | (x - ' '*ones) | x) & highs
		if special != 0 {
			return i + bits.TrailingZeros64(special)/8
		}
		i += word
	}
	return i
}

// runes reads characters outside of ASCII.
func (s *scanner) runes() error {
	for s.pos < s.end && s.buf[s.pos] >= utf8.RuneSelf {
		r, size := utf8.DecodeRune(s.buf[s.pos:s.end])
		if r != utf8.RuneError || size > 1 {
			s.pos += size
			continue
		}
		if utf8.FullRune(s.buf[s.pos:s.end]) {
			return errJSON
		}
		if err := s.more(); err != nil {
			return err
		}
	}
	return nil
}

// escape reads a backslash and what belongs to it.
func (s *scanner) escape() error {
	s.pos++
	c, err := s.next()
	if err != nil {
		return err
	}
	s.pos++
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		s.urls = true // any letter may be written so
		for range 4 {
			c, err := s.next()
			if err != nil {
				return err
			}
			if _, ok := hexDigit(c); !ok {
				return errJSON
			}
			s.pos++
		}
		return nil
	}
	return errJSON
}

// number reads a number by the grammar of RFC 8259, section 6.
func (s *scanner) number() error {
	c := s.buf[s.pos]
	var err error
	if c == '-' {
		s.pos++
		if c, err = s.next(); err != nil {
			return err
		}
	}
	if c == '0' {
		s.pos++
	} else if err := s.digits(); err != nil {
		return err
	}
	if c, err = s.next(); err != nil {
		return err
	}
	if c == '.' {
		s.pos++
		if err := s.digits(); err != nil {
			return err
		}
		if c, err = s.next(); err != nil {
			return err
		}
	}
	if c != 'e' && c != 'E' {
		return nil
	}
	s.pos++
	if c, err = s.next(); err != nil {
		return err
	}
	if c == '+' || c == '-' {
		s.pos++
	}
	return s.digits()
}

// digits reads one digit or more.
func (s *scanner) digits() error {
	for n := 0; ; n++ {
		c, err := s.next()
		if err != nil {
			return err
		}
		if c < '0' || c > '9' {
			if n == 0 {
				return errJSON
			}
			return nil
		}
		s.pos++
	}
}

// literal reads true, false or null.
func (s *scanner) literal(want string) error {
	for i := range len(want) {
		c, err := s.next()
		if err != nil {
			return err
		}
		if c != want[i] {
			return errJSON
		}
		s.pos++
	}
	return nil
}
