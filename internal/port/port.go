// Package port finds ports for tests whose servers are to be started again where they were. They lie below those that systems give to outgoing
// connections: there a client that tries again and again to reach a server that is down would at last get the server's own port, and keep it.
package port

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// Where ports are taken from. Linux gives 32768 and above to outgoing connections, others 49152 and above.
const (
	lowest  = 10_000
	highest = 32_767
)

// Free returns n ports of 127.0.0.1 that nothing listens on. It is safe for concurrent use, also by several processes, though not certain: a
// port is free for all again when it returns.
func Free(n int) (ports []int, err error) {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners { // all at the end, so that each is another
			l.Close() // it has no connections
		}
	}()
	for tries := 0; len(ports) < n; tries++ {
		p := lowest + rand.IntN(highest-lowest+1)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err == nil {
			listeners, ports = append(listeners, l), append(ports, p)
		} else if tries > 100+10*n {
			return nil, errors.Join(errors.New("there are no free ports"), err)
		}
	}
	return ports, nil
}
