package fhir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// References calls fn for each literal reference that resource, one JSON object of type typ, holds at the paths of
// typ's parameters: in the order of the resource, once for each parameter that shares a path. Contained resources and
// logical references (identifier only) are not on a path. Where a member name is repeated each value counts, as it is
// not known which of them the server took. Nothing is read for a type outside the compartment.
//
// It stops without an error, and without a look at the rest, when fn returns false. It fails with [ErrMalformed] when
// the resource is not one JSON object; references before the fault have been handed to fn by then. The error names the
// byte and no content.
func (c *Compartment) References(typ string, resource []byte, fn func(param, reference string) bool) error {
	return c.scan(typ, bytes.NewReader(resource), fn)
}

func (c *Compartment) scan(typ string, resource io.Reader, fn func(param, reference string) bool) error {
	root := c.tries[typ]
	if root == nil {
		return nil
	}
	return scanReferences(resource, root, false, func(node *pathNode, reference []byte) error {
		text := string(reference)
		for _, param := range node.params {
			if !fn(param, text) {
				return errEnough
			}
		}
		return nil
	})
}

// errEnough ends a reading whose caller has what it wants.
var errEnough = errors.New("enough")

// scanReferences reads one JSON object for the references below root and, where all is true, for any other.
func scanReferences(resource io.Reader, root *pathNode, all bool, found func(*pathNode, []byte) error) (err error) {
	s := newScanner(resource)
	defer func() { err = errors.Join(err, s.release()) }()
	if s.found = found; all {
		s.anywhere = allReferences
	}
	err = s.expect('{')
	if err == nil {
		err = s.object(root)
	}
	if err == nil {
		err = s.finish()
	}
	switch {
	case err == nil || errors.Is(err, errEnough):
		return nil
	case s.trouble != nil:
		return fmt.Errorf("read references: %w: %w", ErrSpill, s.trouble)
	}
	return fmt.Errorf("read references: %w", ErrMalformed)
}

// anyReference is what a "reference" that is on no path leads to.
var anyReference = &pathNode{name: "reference", end: true}

// allReferences looks for each string that is called "reference".
var allReferences = &pathNode{children: []*pathNode{anyReference}}

// child returns what is looked for in the member called name.
func (s *scanner) child(node *pathNode, name []byte) *pathNode {
	if node != nil {
		if child := node.child(name); child != nil {
			return child
		}
	}
	if s.anywhere != nil {
		return s.anywhere.child(name)
	}
	return nil
}

// isSought tells whether a string at node is looked for. On a path a "reference" may be the element of R5 that has another
// one in it: a string there is one of all references nevertheless.
func (s *scanner) isSought(node *pathNode) bool {
	return node.end || s.anywhere == allReferences && node.name == anyReference.name
}

// sought reads a string that is looked for. One longer than the buffer names nothing that a server has.
func (s *scanner) sought(node *pathNode) error {
	text, ok, err := s.text()
	if err != nil || !ok {
		return err
	}
	return s.found(node, text)
}

// collector holds the references of the resource that is being read.
type collector struct {
	root *pathNode // of the page's type, nil for none
	all  bool

	text  []byte
	found []collected
	// over tells that there were more than are held. They are read from the resource again then.
	over bool
}

// collected is one reference: it ends at end in the text, and begins where the one before ends.
type collected struct {
	node *pathNode
	end  int
}

func (c *collector) reset() { c.text, c.found, c.over = c.text[:0], c.found[:0], false }

// add holds one more reference, as long as they are within what a resource in memory could have.
func (c *collector) add(node *pathNode, reference []byte) error {
	if c.over = c.over || len(c.text)+len(reference) > longResource || len(c.found) == longResource/word; !c.over {
		c.text = append(c.text, reference...)
		c.found = append(c.found, collected{node, len(c.text)})
	}
	return nil
}

// each calls fn for each reference. All of them share one string.
func (c *collector) each(fn func(node *pathNode, reference string) bool) {
	text, from := string(c.text), 0
	for _, one := range c.found {
		if !fn(one.node, text[from:one.end]) {
			return
		}
		from = one.end
	}
}
