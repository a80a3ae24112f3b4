package proxy

import (
	"net/http"
	"strings"
)

// route is what kind of request one is. It is all that logs, metrics and traces say of an address, which holds ids and values.
type route int

// Those that are forwarded come first, then our own.
const (
	routeOther route = iota
	routeRead
	routeSearch
	routeHistory
	routeOperation
	routeWrite
	routeBatch
	routeMetadata
	routeKickOff
	routeStatus
	routeFile
	routeAttachment
	routeCount
)

var routeNames = [routeCount]string{
	"other", "read", "search", "history", "operation", "write", "batch", "metadata", "kick-off", "status", "file", "attachment",
}

// String is the name in logs, metrics and traces.
func (r route) String() string { return routeNames[r] }

// routeOf tells the interactions of FHIR apart (http.html), by method and path.
func (p *Proxy) routeOf(r *http.Request) route {
	path, below := strings.CutPrefix(r.URL.Path, p.basePath)
	if path = strings.Trim(path, "/"); !below {
		return routeOther
	}
	if path[strings.LastIndexByte(path, '/')+1:] == "_search" {
		return routeSearch
	}
	if strings.HasPrefix(path, "$") || strings.Contains(path, "/$") {
		return routeOperation
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return routeOfRead(path)
	case http.MethodPost:
		if path == "" {
			return routeBatch
		}
		return routeWrite
	case http.MethodPut, http.MethodPatch, http.MethodDelete:
		return routeWrite
	}
	return routeOther
}

// routeOfRead is routeOf for what only reads, with the path below the base.
func routeOfRead(path string) route {
	switch {
	case path == "":
		return routeSearch
	case path == "metadata":
		return routeMetadata
	case path == "_history" || strings.HasSuffix(path, "/_history"):
		return routeHistory
	case path[0] < 'A' || path[0] > 'Z': // no type of FHIR
		return routeOther
	}
	switch strings.Count(path, "/") {
	case 0, 2: // a type, or one in a compartment
		return routeSearch
	case 1, 3: // a resource, or a version of it
		return routeRead
	}
	return routeOther
}

// methodOf is a method for logs and traces. One that HTTP does not have is the client's own word.
func methodOf(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return r.Method
	}
	return "other"
}
