package proxy

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// isForwarding tells whether a field says for whom a proxy asks, and by which address it was asked. Servers write links from all of
// them: Spring's ForwardedHeaderFilter from -Prefix, -Port and -Ssl too. A client cannot have these taken away by naming them in
// Connection.
func isForwarding(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded-") || name == "Forwarded" || name == "X-Real-Ip"
}

// forwardedFields calls field with these fields as they go to the server: what came, behind it the client's address, and the host
// and scheme that the client used where no hop before has told them. Forwarded (RFC 7239, section 4) is continued, not begun; what
// only it tells, servers that know X-Forwarded-* alone are told in these. Where TrustedProxies tells whom to believe, what others
// send in them goes no further.
func (p *Proxy) forwardedFields(r *http.Request, field func(name, value string)) {
	came := r.Header
	if len(p.TrustedProxies) > 0 && !p.trusted(r.RemoteAddr) {
		came = nil
	}
	for name, values := range came {
		switch name {
		case "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto": // see below
		default:
			if isForwarding(name) {
				eachField(field, name, values)
			}
		}
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	forwarded := came["Forwarded"]
	if forwarded != nil {
		field("Forwarded", continued(forwarded, forwardedElement(client)))
	}
	if came["X-Forwarded-For"] != nil || came["X-Forwarded-Host"] != nil || came["X-Forwarded-Proto"] != nil {
		forwarded = nil // a hop that speaks these may have let pass what it does not know
	}
	clients, ok := came["X-Forwarded-For"]
	if !ok {
		clients = clientsOf(forwarded)
	}
	if all := continued(clients, client); all != "" {
		field("X-Forwarded-For", all)
	}
	proto, host := firstHop(forwarded)
	if hosts, ok := came["X-Forwarded-Host"]; ok {
		eachField(field, "X-Forwarded-Host", hosts)
	} else if host = orElse(host, r.Host); host != "" {
		field("X-Forwarded-Host", host)
	}
	if schemes, ok := came["X-Forwarded-Proto"]; ok {
		eachField(field, "X-Forwarded-Proto", schemes)
	} else {
		field("X-Forwarded-Proto", orElse(proto, scheme(r)))
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

// clientsOf are those whom Forwarded names, as X-Forwarded-For has them: addresses without ports and brackets, and "unknown" for who
// does not tell his.
func clientsOf(forwarded []string) (clients []string) {
	for _, line := range forwarded {
		for _, element := range splitQuoted(line, ",") {
			node := forwardedPart(element, "for")
			if node == "" {
				continue
			}
			if host, _, err := net.SplitHostPort(node); err == nil {
				node = host
			}
			client := "unknown"
			if address, err := netip.ParseAddr(strings.Trim(node, "[]")); err == nil {
				client = address.WithZone("").String()
			}
			clients = append(clients, client)
		}
	}
	return clients
}

// firstHop is what the first, public hop says in Forwarded of the client's request: its scheme and its host, each empty where that
// is none.
func firstHop(forwarded []string) (proto, host string) {
	if len(forwarded) == 0 {
		return "", ""
	}
	first := firstElement(forwarded[0])
	if proto = strings.ToLower(forwardedPart(first, "proto")); proto != "https" && proto != "http" {
		proto = ""
	}
	if host = forwardedPart(first, "host"); !isHost(host) {
		host = ""
	}
	return proto, host
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}
