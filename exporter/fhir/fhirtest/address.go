package fhirtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

// The ports that FreeAddress gives are below those that systems give to outgoing connections.
const (
	firstPort = 20000
	ports     = 12000
)

var addresses atomic.Int64

// FreeAddress gives a local address at which nobody listens, each time another one. A server can be started there, stopped and
// started again: no outgoing connection takes the port in between, as happens to those that port 0 brings.
func FreeAddress(ctx context.Context) (string, error) {
	for range 100 {
		place := int64(os.Getpid())*101 + addresses.Add(1) // processes that run side by side do not try the same
		address := net.JoinHostPort("127.0.0.1", strconv.FormatInt(firstPort+place%ports, 10))
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			continue
		}
		return address, listener.Close()
	}
	return "", fmt.Errorf("no port from %d to %d is free", firstPort, firstPort+ports-1)
}
