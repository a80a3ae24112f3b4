package proxy

import (
	"net"
	"net/http"
	"strings"
)

// isForwarding tells whether a field says for whom a proxy asks. A client cannot have these taken away by naming them in Connection.
func isForwarding(name string) bool {
	switch name {
	case "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto":
		return true
	}
	return false
}

// forwardedFields calls field with these fields as they go to the server: what came, behind it the client's address, and the host
// and scheme that the client used where no hop before has told them. Forwarded (RFC 7239, section 4) is continued, not begun. Where
// TrustedProxies tells whom to believe, what others send in them goes no further.
func (p *Proxy) forwardedFields(r *http.Request, field func(name, value string)) {
	came := r.Header
	if len(p.TrustedProxies) > 0 && !p.trusted(r.RemoteAddr) {
		came = nil
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	if all := continued(came["X-Forwarded-For"], client); all != "" {
		field("X-Forwarded-For", all)
	}
	if before := came["Forwarded"]; before != nil {
		field("Forwarded", continued(before, forwardedElement(client)))
	}
	if hosts, ok := came["X-Forwarded-Host"]; ok {
		eachField(field, "X-Forwarded-Host", hosts)
	} else if r.Host != "" {
		field("X-Forwarded-Host", r.Host)
	}
	if schemes, ok := came["X-Forwarded-Proto"]; ok {
		eachField(field, "X-Forwarded-Proto", schemes)
	} else {
		field("X-Forwarded-Proto", scheme(r))
	}
}

func eachField(field func(name, value string), name string, values []string) {
	for _, value := range values {
		field(name, value)
	}
}

// continued is the list of values with one more, which is empty where it is not known.
func continued(before []string, last string) string {
	switch {
	case len(before) == 0:
		return last
	case last == "":
		return strings.Join(before, ", ")
	}
	return strings.Join(before, ", ") + ", " + last
}

// forwardedElement names a client as Forwarded wants it: an IPv6 address in brackets and quotes (RFC 7239, section 6).
func forwardedElement(client string) string {
	switch {
	case client == "":
		return ""
	case strings.Contains(client, ":"):
		return `for="[` + client + `]"`
	}
	return "for=" + client
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}
