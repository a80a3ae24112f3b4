//go:build unix

package upstream

import (
	"crypto/tls"
	"net"
	"syscall"
)

// probe looks whether anything has come over an idle connection: its end, or bytes that belong to no request. Either way it
// must not be used.
type probe struct {
	raw   syscall.RawConn
	look  func(fd uintptr) bool
	quiet bool
	one   [1]byte
}

func newProbe(conn net.Conn) *probe {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	at, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := at.SyscallConn()
	if err != nil {
		return nil
	}
	p := &probe{raw: raw}
	p.look = func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), p.one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.quiet = err == syscall.EAGAIN || err == syscall.EINTR
		return true
	}
	return p
}

// quiet tells whether the connection may be used.
func (c *conn) quiet() bool {
	if c.probe == nil {
		return true
	}
	c.probe.quiet = false
	err := c.probe.raw.Read(c.probe.look)
	return err == nil && c.probe.quiet
}
