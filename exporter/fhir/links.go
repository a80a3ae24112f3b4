package fhir

import (
	"net/url"
	"strings"
)

// rebase turns a next link into an address below the upstream's base, or fails with ErrForeignLink. Servers build links
// from hosts that we may not reach, so the link's own host is never dereferenced. self is the page's self link, by which
// the server shows the base that it believes to have, and typ the type that was asked for.
func (c *Client) rebase(next, self, typ string) (string, error) {
	rest, err := c.belowBase(next, baseOf(self, typ))
	if err != nil {
		return "", err
	}
	if path, _, _ := strings.Cut(rest, "?"); climbs(path) {
		return "", ErrForeignLink
	}
	return strings.TrimRight(c.base.String(), "/") + strings.ReplaceAll(rest, " ", "%20"), nil
}

// belowBase returns what of a link stands behind the FHIR base: a path that begins with a slash, a query, or both.
func (c *Client) belowBase(next, seen string) (string, error) {
	for _, known := range []string{seen, strings.TrimRight(c.publicBase, "/"), strings.TrimRight(c.base.String(), "/")} {
		if rest, ok := strings.CutPrefix(next, known); ok && known != "" && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return rest, nil
		}
	}
	link, err := url.Parse(next)
	if err != nil {
		return "", ErrForeignLink
	}
	if strings.Contains(link.RawQuery, "_getpages=") { // HAPI's link sits on the base, whatever it believes that to be
		return "?" + link.RawQuery, nil
	}
	if link.Scheme != "" || link.Host != "" || link.Opaque != "" {
		return "", ErrForeignLink
	}
	return c.relative(link), nil
}

// relative reads a link without a host: a path with or without the base path, or a query alone.
func (c *Client) relative(link *url.URL) string {
	path := link.EscapedPath()
	basePath := strings.TrimRight(c.base.EscapedPath(), "/")
	if rest, ok := strings.CutPrefix(path, basePath); ok && basePath != "" && (rest == "" || rest[0] == '/') {
		path = rest
	}
	if path != "" && !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if link.RawQuery != "" {
		path += "?" + link.RawQuery
	}
	return path
}

// climbs tells whether a path has dot segments, with which it would leave the base: also escaped ones, those of a
// backslash, and "..;", which some servers read as "..".
func climbs(path string) bool {
	plain, err := url.PathUnescape(path)
	if err != nil {
		return true
	}
	for _, segment := range strings.FieldsFunc(plain, func(r rune) bool { return r == '/' || r == '\\' }) {
		name, _, _ := strings.Cut(segment, ";")
		if name == ".." || name == "." {
			return true
		}
	}
	return false
}

// baseOf cuts a self link such as "http://host/fhir/Patient?x=1" before its type. Only the type itself will do: a base
// path, an id or the token of a page may begin with a capital too.
func baseOf(self, typ string) string {
	path, _, _ := strings.Cut(self, "?")
	for i := 1; i < len(path); i++ {
		if rest, ok := strings.CutPrefix(path[i:], "/"+typ); ok && (rest == "" || rest[0] == '/') {
			return cutCompartment(path[:i])
		}
	}
	return ""
}

// cutCompartment takes "/Patient/{id}" off the end: the base of a compartment search is not the compartment, and a next
// link that were moved from there would lead out of it, to the rows of all patients.
func cutCompartment(path string) string {
	compartment := path[:max(0, strings.LastIndexByte(path, '/'))]
	if base, ok := strings.CutSuffix(compartment, "/Patient"); ok {
		return base
	}
	return path
}
