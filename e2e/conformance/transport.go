package conformance

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

func transportRows() []Row {
	return section("Transport, authorization, scope of data",
		row("T-01", shall, "everything goes over TLS 1.2 or newer, and so do the addresses that are given out", overTLS, needsTLS),
		row("T-02", should, "without a token a kick-off is refused", tokenWanted),
		row("T-03", shall, "only what the client is authorised to see is exported", scoped, needsTokens),
		row("T-04", shall, "status and files are protected like the kick-off", protected, needsTokens),
		row("T-05", may, "status and files are for the client that began the export", owned, needsTokens),
		row("T-06", should, "who may not read the Group may not export it", groupReadable, needsTokens),
		row("T-07", shall, "access to particular Groups can be restricted", groupDenied, needsDenied),
		row("T-08", should, "a file is not deleted while it is downloaded, whatever the expiry", slowDownload, needsShortLived, needsWrites).alone(),
		row("T-09", should, "the number of exports is limited", limited).alone(),
		row("T-10", should, "individuals' wishes about sharing are honoured", untestable("the wishes reach the server by ways of its own; a sidecar exports what its account may read")),
		row("T-11", should, "an export of data outside of the scopes is refused", beyondScopes, needsTokens),
	)
}

func overTLS(c *check) {
	at, err := url.Parse(c.secure())
	c.must(err)
	host := at.Host
	if at.Port() == "" {
		host += ":443"
	}
	newer := false
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		dialer := tls.Dialer{Config: &tls.Config{MinVersion: version, MaxVersion: version, RootCAs: c.Roots}}
		connection, err := dialer.DialContext(c.ctx, "tcp", host)
		if err == nil {
			err = connection.Close()
		}
		switch {
		case version >= tls.VersionTLS12:
			newer = newer || err == nil
		case err == nil:
			c.errorf("%s is accepted", tls.VersionName(version))
		}
	}
	if !newer {
		c.errorf("neither TLS 1.2 nor 1.3 is accepted")
	}
	e := c.export(kickoff{base: c.secure(), query: "_type=Patient"})
	addresses := []string{e.status, e.manifest.Request}
	for _, item := range e.manifest.all() {
		addresses = append(addresses, item.URL)
	}
	for _, address := range addresses {
		if !strings.HasPrefix(address, "https://") {
			c.errorf("an address that is given out does not begin with https")
		}
	}
}

func tokenWanted(c *check) {
	c.refusedWith("a kick-off without a token", c.try(kickoff{query: "_type=Patient", token: noToken}), 401, 400)
}

// grant gives a token that is not the usual one.
func (c *check) grant(grant Grant) string {
	token := c.Token(grant)
	if token == "" {
		c.lack("tokens of several clients and scopes")
	}
	return token
}

// narrow is a token for Patients alone, with which they can be exported: a server that refuses every such token has shown nothing.
func (c *check) narrow() string {
	token := c.grant(Grant{Scopes: "system/Patient.rs"})
	if a := c.try(kickoff{query: "_type=Patient", token: token}); a.status != http.StatusAccepted {
		c.lack("a token of the scope system/Patient.rs with which Patients can be exported")
	}
	return token
}

// scoped asks for everything with a narrow token; where that is refused, for what the token is for.
func scoped(c *check) {
	k := kickoff{token: c.narrow()}
	e, err := c.runExport(c.ctx, k)
	if refused, ok := asRefusal(err); ok {
		c.rejected("an export of everything with a narrow token", refused.answer)
		k.query = "_type=Patient"
		e, err = c.runExport(c.ctx, k)
	}
	c.must(err)
	c.drop(e)
	for key := range c.complete(e).rows {
		if typeOf(key) != "Patient" {
			c.fatalf("the scope is Patient, and the export holds other types")
		}
	}
	if len(e.rows) == 0 {
		c.lack("an export with a narrow token that holds something")
	}
}

func protected(c *check) {
	narrow := c.narrow()
	for _, e := range []*export{c.patients(), c.tokenFiles()} {
		if e == nil {
			continue
		}
		for what, token := range map[string]string{"without a token": noToken, "with a narrower token": narrow} {
			c.refusedWith("a status request "+what, c.send(request{url: e.status, token: token}), 401, 403, 404)
			if e.manifest.RequiresAccessToken {
				c.refusedWith("a file "+what, c.send(request{url: e.manifest.Output[0].URL, token: token}), 401, 403, 404)
			}
		}
	}
}

func owned(c *check) {
	other := c.grant(Grant{Other: true})
	if a := c.try(kickoff{query: "_type=Patient", token: other}); a.status != http.StatusAccepted {
		c.lack("a second client that may export")
	}
	addresses := map[string]string{"the status": c.patients().status}
	if e := c.tokenFiles(); e != nil {
		addresses["a file"] = e.manifest.Output[0].URL
	}
	for what, address := range addresses {
		a := c.send(request{url: address, token: other})
		if a.status < 400 {
			c.notOffered("a second client may read " + what)
		}
		c.rejected(what+" for a second client", a)
	}
}

func groupReadable(c *check) {
	token := c.grant(Grant{Scopes: "system/Patient.rs system/Condition.rs"})
	if a := c.try(kickoff{path: "Patient/$export", query: "_type=Patient", token: token}); a.status != http.StatusAccepted {
		c.lack("a token for Patients, and not for Groups, with which Patients can be exported")
	}
	a := c.try(kickoff{path: "Group/" + c.groupID() + "/$export", query: "_type=Patient", token: token})
	c.refused("an export of a Group that may not be read", a)
	c.refusedWith("an export of a Group that may not be read", a, 401, 403, 404)
}

func groupDenied(c *check) {
	if a := c.get(c.Base + "/Group/" + c.DeniedGroup); a.status == http.StatusNotFound {
		c.lack("the Group that is denied on the server")
	}
	c.group() // another one can be exported
	a := c.try(kickoff{path: "Group/" + c.DeniedGroup + "/$export"})
	c.refused("an export of the Group that is denied", a)
	c.refusedWith("an export of the Group that is denied", a, 401, 403, 404)
}

func beyondScopes(c *check) {
	c.rejected("_type=Condition with a token for Patient", c.try(kickoff{query: "_type=Condition", token: c.narrow()}))
}

// largeBytes is more than the buffers between two processes hold.
const largeBytes = 6 << 20

// slowDownload reads the beginning of a file, waits until it has expired, and reads the rest.
func slowDownload(c *check) {
	const key = "DocumentReference/conformance-large"
	data := base64.StdEncoding.EncodeToString(make([]byte, largeBytes))
	c.write(key, `{"resourceType":"DocumentReference","id":"conformance-large","status":"current","content":[{"attachment":{"contentType":"text/plain","data":"`+data+`"}}]}`)
	defer c.remove(key)
	e, err := c.begin(c.ctx, kickoff{base: c.ShortLived, query: "_type=DocumentReference"})
	c.must(err)
	if e.accepted.status != http.StatusAccepted {
		c.fatalf("kick-off: status %d, want 202", e.accepted.status)
	}
	c.must(c.await(c.ctx, e, ""))
	file := c.complete(e).manifest.Output[0].URL

	client := newClient(c.Server)
	client.Transport = &http.Transport{DialContext: smallBuffers, DisableCompression: true}
	defer client.CloseIdleConnections()
	get, err := http.NewRequestWithContext(c.ctx, http.MethodGet, file, nil)
	c.must(err)
	if e.manifest.RequiresAccessToken && c.Token != nil {
		get.Header.Set("Authorization", "Bearer "+c.Token(Grant{}))
	}
	in, err := client.Do(get)
	c.must(err)
	defer in.Body.Close()
	_, err = io.ReadFull(in.Body, make([]byte, 1000))
	c.must(err)
	for range 60 {
		if a := c.read(e, file); a.status >= 400 {
			break
		}
		c.must(pause(c.ctx, 500*time.Millisecond))
	}
	if a := c.read(e, file); a.status < 400 {
		c.lack("a file that expires within half a minute")
	}
	rest, err := io.ReadAll(in.Body)
	if got, want := int64(len(rest))+1000, in.ContentLength; err != nil || want > 0 && got != want || len(rest) < largeBytes {
		c.errorf("the download was cut off when the file had expired: %v", err)
	}
}

// smallBuffers dials so that the server cannot send much ahead of what is read.
func smallBuffers(ctx context.Context, network, address string) (net.Conn, error) {
	connection, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if tcp, ok := connection.(*net.TCPConn); ok {
		err = tcp.SetReadBuffer(64 << 10)
	}
	return connection, err
}
