package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
)

// publicBase is the FHIR base as the client of this request sees it, without a slash at its end: as configured, else as
// a trusted hop reports it, else from the request itself.
func (p *Proxy) publicBase(r *http.Request) string {
	if p.PublicBase != nil {
		return strings.TrimRight(p.PublicBase.String(), "/")
	}
	proto, host, prefix := scheme(r), "", ""
	if p.trusted(r.RemoteAddr) {
		if forwarded := r.Header["Forwarded"]; len(forwarded) > 0 && firstElement(forwarded[0]) != "" {
			told, at := firstHop(forwarded)
			proto, host = orElse(told, proto), at
		} else {
			proto = orElse(firstElement(r.Header.Get("X-Forwarded-Proto")), proto)
			host = orElse(firstElement(r.Header.Get("X-Forwarded-Host")), r.Host)
			if port := firstElement(r.Header.Get("X-Forwarded-Port")); port != "" && !hasPort(host) && !isDefaultPort(proto, port) {
				host += ":" + port
			}
		}
		prefix = strings.TrimRight(firstElement(r.Header.Get("X-Forwarded-Prefix")), "/")
	}
	if proto = strings.ToLower(proto); proto != "https" {
		proto = "http"
	}
	if !isHost(host) { // none was forwarded, or what was makes no address
		host = r.Host
	}
	if !prefixForm.MatchString(prefix) {
		prefix = ""
	}
	return proto + "://" + host + prefix + p.basePath
}

// hostForm and prefixForm are what may become part of our links.
var (
	hostForm   = regexp.MustCompile(`^([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	prefixForm = regexp.MustCompile(`^(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+$`)
)

// isHost tells whether an address can be made with a host, which may have a port.
func isHost(host string) bool {
	if !hostForm.MatchString(host) {
		return false
	}
	literal, _, bracketed := strings.Cut(strings.TrimPrefix(host, "["), "]")
	if !bracketed {
		return true
	}
	address, err := netip.ParseAddr(literal)
	return err == nil && address.Is6()
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
func firstElement(list string) string { return strings.TrimSpace(splitQuoted(list, ",")[0]) }

// forwardedPart reads one parameter of an element of Forwarded (RFC 7239).
func forwardedPart(element, name string) string {
	for _, part := range splitQuoted(element, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if strings.EqualFold(key, name) {
			return unquote(value)
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
