package fhir

import (
	"net/url"
	"strings"
)

// rebase turns a next link into an address below the upstream's base, or fails with ErrForeignLink. Servers build links
// from hosts that we may not reach, so the link's own host is never dereferenced. self is the page's self link, by which
// the server shows the base that it believes to have.
func (c *Client) rebase(next, self string) (string, error) {
	base := strings.TrimRight(c.base.String(), "/")
	for _, known := range []string{baseOf(self), strings.TrimRight(c.publicBase, "/"), base} {
		if rest, ok := strings.CutPrefix(next, known); ok && known != "" && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return base + rest, nil
		}
	}
	link, err := url.Parse(next)
	if err != nil {
		return "", ErrForeignLink
	}
	if strings.Contains(link.RawQuery, "_getpages=") { // HAPI's link sits on the base, whatever it believes that to be
		return base + "?" + link.RawQuery, nil
	}
	if link.Scheme != "" || link.Host != "" {
		return "", ErrForeignLink
	}
	return c.resolveRelative(base, link)
}

// resolveRelative completes a link without a host: a path with or without the base path, or a query alone.
func (c *Client) resolveRelative(base string, link *url.URL) (string, error) {
	path := link.EscapedPath()
	query := ""
	if link.RawQuery != "" {
		query = "?" + link.RawQuery
	}
	if basePath := strings.TrimRight(c.base.EscapedPath(), "/"); basePath != "" && strings.HasPrefix(path, basePath+"/") {
		path = strings.TrimPrefix(path, basePath)
	}
	for _, segment := range strings.Split(path, "/") {
		if segment == ".." || segment == "." {
			return "", ErrForeignLink
		}
	}
	if path != "" && !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return base + path + query, nil
}

// baseOf cuts a self link such as "http://host/fhir/Patient?x=1" before its type.
func baseOf(self string) string {
	path, _, _ := strings.Cut(self, "?")
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' && i+1 < len(path) && path[i+1] >= 'A' && path[i+1] <= 'Z' {
			return path[:i]
		}
	}
	return ""
}
