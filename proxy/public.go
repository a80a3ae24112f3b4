package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// publicBase is the FHIR base as the client of this request sees it, without a slash at its end: as configured, else as
// a trusted hop reports it, else from the request itself.
func (p *Proxy) publicBase(r *http.Request) string {
	if p.PublicBase != nil {
		return strings.TrimRight(p.PublicBase.String(), "/")
	}
	proto, host, prefix := scheme(r), r.Host, ""
	if p.trusted(r.RemoteAddr) {
		if forwarded := firstElement(r.Header.Get("Forwarded")); forwarded != "" {
			proto = orElse(forwardedPart(forwarded, "proto"), proto)
			host = orElse(forwardedPart(forwarded, "host"), host)
		} else {
			proto = orElse(firstElement(r.Header.Get("X-Forwarded-Proto")), proto)
			host = orElse(firstElement(r.Header.Get("X-Forwarded-Host")), host)
			if port := firstElement(r.Header.Get("X-Forwarded-Port")); port != "" && !hasPort(host) && !isDefaultPort(proto, port) {
				host += ":" + port
			}
		}
		prefix = strings.TrimRight(firstElement(r.Header.Get("X-Forwarded-Prefix")), "/")
	}
	if proto = strings.ToLower(proto); proto != "https" {
		proto = "http"
	}
	return proto + "://" + host + prefix + p.basePath
}

// hasPort looks behind the last bracket, because the colons of an IPv6 address stand within.
func hasPort(host string) bool {
	return strings.Contains(host[strings.LastIndexByte(host, ']')+1:], ":")
}

func isDefaultPort(proto, port string) bool {
	return strings.EqualFold(proto, "https") && port == "443" || strings.EqualFold(proto, "http") && port == "80"
}

// trusted tells whether the headers of the next hop are believed.
func (p *Proxy) trusted(remote string) bool {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		return false
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	for _, prefix := range p.TrustedProxies {
		if prefix.Contains(address.Unmap()) {
			return true
		}
	}
	return false
}

// firstElement is what the first, public hop said.
func firstElement(list string) string {
	first, _, _ := strings.Cut(list, ",")
	return strings.TrimSpace(first)
}

// forwardedPart reads one parameter of an element of Forwarded (RFC 7239).
func forwardedPart(element, name string) string {
	for part := range strings.SplitSeq(element, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if strings.EqualFold(key, name) {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

func orElse(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}
