package fidelity

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
)

// message is a request or an answer as it stood on the line.
type message struct {
	first   string   // the request line or the status line
	fields  []string // "name: value" each, in the order of the line
	body    string   // without the framing
	trailer []string
}

// wire turns the line ends of a head into those of HTTP. Behind the empty line bytes stay as they are.
func wire(text string) string {
	var b strings.Builder
	for { // interim answers are heads of their own
		head, rest, found := strings.Cut(text, "\n\n")
		if !found {
			return b.String() + text
		}
		b.WriteString(strings.ReplaceAll(head, "\n", "\r\n") + "\r\n\r\n")
		if text = rest; !strings.HasPrefix(head, "HTTP/1.1 1") {
			return b.String() + text
		}
	}
}

// readHead reads up to the empty line.
func readHead(r *bufio.Reader) (*message, error) {
	m := &message{}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if line != "" || m.first != "" {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		switch {
		case m.first == "":
			m.first = line
		case line == "":
			return m, nil
		default:
			m.fields = append(m.fields, line)
		}
	}
}

// values are those of a field, by its name in small letters.
func (m *message) values(name string) []string {
	var values []string
	for _, field := range m.fields {
		if n, value, _ := strings.Cut(field, ":"); strings.EqualFold(n, name) {
			values = append(values, strings.Trim(value, " \t"))
		}
	}
	return values
}

func (m *message) has(name, token string) bool {
	for _, value := range m.values(name) {
		for _, one := range strings.Split(value, ",") {
			if strings.EqualFold(strings.TrimSpace(one), token) {
				return true
			}
		}
	}
	return false
}

// status is that of an answer.
func (m *message) status() int {
	_, rest, _ := strings.Cut(m.first, " ")
	text, _, _ := strings.Cut(rest, " ")
	status, err := strconv.Atoi(text)
	if err != nil || !strings.HasPrefix(m.first, "HTTP/1.") {
		return 0
	}
	return status
}

// body is how the rest of a message is read.
func (m *message) bodyOf(r *bufio.Reader, method string) (io.Reader, error) {
	status, lengths := m.status(), m.values("Content-Length")
	chunked := m.has("Transfer-Encoding", "chunked")
	slices.Sort(lengths)
	switch {
	case len(slices.Compact(lengths)) > 1, chunked && len(lengths) > 0:
		return nil, errors.New("the head tells more than one length")
	case status != 0 && (method == "HEAD" || status < 200 || status == 204 || status == 304):
		return strings.NewReader(""), nil
	case chunked:
		return &chunks{r: r, m: m}, nil
	case len(lengths) > 0:
		length, err := strconv.ParseInt(lengths[0], 10, 64)
		return &exactly{r: r, left: length}, err
	case status != 0:
		return r, nil // up to the end of the connection
	}
	return strings.NewReader(""), nil
}

// readMessage reads a message to its end. A broken body is an error beside what could be read.
func readMessage(r *bufio.Reader, method string) (*message, error) {
	m, err := readHead(r)
	if err != nil {
		return nil, err
	}
	body, err := m.bodyOf(r, method)
	if err != nil {
		return m, err
	}
	all, err := io.ReadAll(body)
	m.body = string(all)
	return m, err
}

// exactly reads a body of known length; an early end is an error.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// chunks reads a chunked body and its trailer.
type chunks struct {
	r    *bufio.Reader
	m    *message
	left int64 // of the present chunk
	end  bool
}

func (c *chunks) Read(p []byte) (int, error) {
	if c.end {
		return 0, io.EOF
	}
	if c.left == 0 {
		if err := c.next(); err != nil {
			return 0, unexpected(err)
		}
		if c.end {
			return 0, io.EOF
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == nil && c.left == 0 {
		var end string
		if end, err = c.r.ReadString('\n'); err == nil && end != "\r\n" {
			err = fmt.Errorf("a chunk ends with %q", end)
		}
	}
	return n, unexpected(err)
}

// next reads the size of the next chunk, behind the last one the trailer.
func (c *chunks) next() error {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	size, _, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ";")
	if c.left, err = strconv.ParseInt(size, 16, 64); err != nil || c.left > 0 {
		return err
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return err
		}
		if line == "\r\n" {
			c.end = true
			return nil
		}
		c.m.trailer = append(c.m.trailer, strings.TrimSuffix(line, "\r\n"))
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// addedToRequests and addedToAnswers are the fields that a proxy may add, and hop those that belong to one connection.
var (
	addedToRequests = []string{"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}
	addedToAnswers  = []string{"date"}
	hop             = []string{"connection", "keep-alive"}
)

// difference tells in what a message differs from the one that was expected, where HTTP does not leave it to a proxy: the order
// and the case of names, white space around values, the words behind a status.
func (s *script) difference(got, want *message) string {
	var lines []string
	first, added := got.first, slices.Concat(addedToRequests, s.subject.AddsToRequests)
	wanted := want.first
	if got.status() != 0 {
		first, added = strconv.Itoa(got.status()), slices.Concat(addedToAnswers, s.subject.AddsToAnswers)
		wanted = strconv.Itoa(want.status())
	}
	if first != wanted {
		lines = append(lines, fmt.Sprintf("  begins with %q, want %q", got.first, want.first))
	}
	fields, wantedFields := normal(got.fields), normal(want.fields)
	if got.status() == 0 {
		for _, name := range s.subject.AddsToRequests { // in the place of the client's
			delete(wantedFields, name)
		}
		if _, ok := wantedFields["cache-control"]; !ok && slices.Equal(wantedFields["pragma"], []string{"no-cache"}) {
			delete(fields, "cache-control") // net/http adds what it means (RFC 9111, section 5.4)
		}
	}
	lines = append(lines, fieldDifference("field", fields, wantedFields, added)...)
	lines = append(lines, fieldDifference("trailer", normal(got.trailer), normal(want.trailer), nil)...)
	if got.body != want.body {
		lines = append(lines, fmt.Sprintf("  body of %d bytes %.60q, want %d %.60q", len(got.body), got.body, len(want.body), want.body))
	}
	return strings.Join(lines, "\n")
}

// fieldDifference compares fields, of which some may have been added.
func fieldDifference(what string, got, want map[string][]string, added []string) []string {
	var lines []string
	for name, values := range want {
		if !slices.Equal(got[name], values) {
			lines = append(lines, fmt.Sprintf("  %s %s: got %.200q, want %.200q", what, name, got[name], values))
		}
	}
	for name, values := range got {
		if want[name] == nil && !slices.Contains(added, name) {
			lines = append(lines, fmt.Sprintf("  %s that nobody sent: %s: %.200q", what, name, values))
		}
	}
	slices.Sort(lines)
	return lines
}

// normal are the values of fields in their order, by the names in small letters.
func normal(fields []string) map[string][]string {
	values := map[string][]string{}
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ":")
		name = strings.ToLower(name)
		value = textproto.TrimString(value)
		switch {
		case slices.Contains(hop, name):
			continue
		case name == "trailer": // the order of names in it means nothing
			names := strings.Split(strings.ReplaceAll(value, " ", ""), ",")
			slices.Sort(names)
			value = strings.ToLower(strings.Join(names, ","))
		}
		values[name] = append(values[name], value)
	}
	return values
}
