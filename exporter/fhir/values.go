package fhir

import (
	"unicode/utf16"
	"unicode/utf8"
)

// value reads a value of whatever kind. node says what is looked for in it; nil stands for nothing on a path.
func (s *scanner) value(node *pathNode) error {
	c := s.buf[s.pos]
	if c <= ' ' {
		var err error
		if c, err = s.token(); err != nil {
			return err
		}
	}
	switch c {
	case '"':
		if node != nil && s.isSought(node) {
			return s.sought(node)
		}
		_, err := s.str()
		return err
	case '{':
		return s.object(node)
	case '[':
		return s.array(node)
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	if c == '-' || c >= '0' && c <= '9' {
		return s.number()
	}
	return errJSON
}

// object reads an object. It is the loop of members, without its call for each name: most of all bytes are read here.
func (s *scanner) object(node *pathNode) error {
	more, err := s.open('}')
	for more && err == nil {
		var child *pathNode
		if child, err = s.name(node); err != nil {
			return err
		}
		if err = s.value(child); err != nil {
			return err
		}
		more, err = s.close('}')
	}
	return err
}

// array reads an array, whose elements are looked at as the array itself is.
func (s *scanner) array(node *pathNode) error {
	more, err := s.open(']')
	for more && err == nil {
		if err = s.value(node); err != nil {
			return err
		}
		more, err = s.close(']')
	}
	return err
}

// members reads an object and calls fn with each name; fn reads the value. The name is valid until fn reads.
func (s *scanner) members(fn func(name []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	more, err := s.open('}')
	for more && err == nil {
		name, _, err := s.text()
		if err != nil {
			return err
		}
		s.scratch = append(s.scratch[:0], name...) // the colon may be in the next buffer
		if err := s.colon(); err != nil {
			return err
		}
		if err := fn(s.scratch); err != nil {
			return err
		}
		if more, err = s.close('}'); err != nil {
			return err
		}
	}
	return err
}

// elements reads an array and calls fn before each element; fn reads it.
func (s *scanner) elements(fn func() error) error {
	if err := s.expect('['); err != nil {
		return err
	}
	more, err := s.open(']')
	for more && err == nil {
		if err = fn(); err != nil {
			return err
		}
		more, err = s.close(']')
	}
	return err
}

// expect fails with errShape where the next value does not begin with c.
func (s *scanner) expect(c byte) error {
	got, err := s.token()
	if err == nil && got != c {
		err = errShape
	}
	return err
}

// open reads an opening bracket and tells whether something stands before the closing one.
func (s *scanner) open(closing byte) (more bool, err error) {
	if s.depth++; s.depth > maxDepth {
		return false, errJSON
	}
	s.pos++
	c := s.buf[s.pos]
	if c <= ' ' {
		if c, err = s.token(); err != nil {
			return false, err
		}
	}
	if c == closing {
		s.pos++
		s.depth--
		return false, nil
	}
	return true, nil
}

// close reads the comma or the closing bracket behind a value, and tells whether another value follows.
func (s *scanner) close(closing byte) (more bool, err error) {
	c := s.buf[s.pos]
	if c <= ' ' {
		if c, err = s.token(); err != nil {
			return false, err
		}
	}
	switch c {
	case ',':
		s.pos++
		return true, nil
	case closing:
		s.pos++
		s.depth--
		return false, nil
	}
	return false, errJSON
}

// colon reads the colon behind a name.
func (s *scanner) colon() error {
	if s.buf[s.pos] == ':' {
		s.pos++
		return nil
	}
	return s.spacedColon()
}

// spacedColon reads a colon with white space before it.
func (s *scanner) spacedColon() error {
	c, err := s.token()
	if err != nil {
		return err
	}
	if c != ':' {
		return errJSON
	}
	s.pos++
	return nil
}

// name reads a name and its colon, and returns what is looked for in its value.
func (s *scanner) name(node *pathNode) (child *pathNode, err error) {
	c := s.buf[s.pos]
	if c <= ' ' {
		if c, err = s.token(); err != nil {
			return nil, err
		}
	}
	if c != '"' {
		return nil, errJSON
	}
	if node == nil && s.anywhere == nil {
		if _, err = s.str(); err != nil {
			return nil, err
		}
		return nil, s.colon()
	}
	name, _, err := s.text()
	if err != nil {
		return nil, err
	}
	child = s.child(node, name)
	return child, s.colon()
}

// text reads a string and returns its text, valid until the next read. ok is false, and the text empty, where the string
// is longer than the buffer.
func (s *scanner) text() (text []byte, ok bool, err error) {
	if s.buf[s.pos] != '"' {
		c, err := s.token()
		if err != nil {
			return nil, false, err
		}
		if c != '"' {
			return nil, false, errShape
		}
	}
	s.mark = s.pos + 1
	escaped, err := s.str()
	mark := s.mark
	s.mark = -1
	switch {
	case err != nil:
		return nil, false, err
	case mark < 0:
		return nil, false, nil
	}
	if s.at = mark; escaped {
		s.scratch = appendText(s.scratch[:0], s.buf[mark:s.pos-1])
		return s.scratch, true, nil
	}
	return s.buf[mark : s.pos-1], true, nil
}

// field reads a string into dst, which keeps what it has where the value is null.
func (s *scanner) field(dst *[]byte) error {
	c, err := s.token()
	if err != nil {
		return err
	}
	if c == 'n' {
		return s.literal("null")
	}
	return s.required(dst)
}

// required reads a string into dst. It fails with errShape for another kind of value and for one longer than the buffer.
func (s *scanner) required(dst *[]byte) error {
	text, ok, err := s.text()
	if err == nil && !ok {
		err = errShape
	}
	if err == nil {
		*dst = append((*dst)[:0], text...)
	}
	return err
}

// orNull reads a value by read, or null.
func (s *scanner) orNull(read func() error) error {
	c, err := s.token()
	if err != nil {
		return err
	}
	if c == 'n' {
		return s.literal("null")
	}
	return read()
}

// appendText appends the text of a string that was checked. A surrogate without its other half becomes U+FFFD.
func appendText(dst, quoted []byte) []byte {
	for i := 0; i < len(quoted); {
		if quoted[i] != '\\' {
			dst = append(dst, quoted[i])
			i++
			continue
		}
		c := quoted[i+1]
		i += 2
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r := hexRune(quoted[i:])
			i += 4
			if utf16.IsSurrogate(r) && i+6 <= len(quoted) && quoted[i] == '\\' && quoted[i+1] == 'u' {
				if both := utf16.DecodeRune(r, hexRune(quoted[i+2:])); both != utf8.RuneError {
					r = both
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
	return dst
}

// hexRune reads four hexadecimal digits that were checked.
func hexRune(digits []byte) rune {
	var r rune
	for _, c := range digits[:4] {
		d, _ := hexDigit(c)
		r = r<<4 | rune(d)
	}
	return r
}

func hexDigit(c byte) (digit byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
