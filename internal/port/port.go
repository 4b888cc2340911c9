// Package port finds ports for tests whose servers are to be started again where they were. They lie below those that systems give to outgoing
// connections: there a client that tries again and again to reach a server that is down would at last get the server's own port, and keep it.
package port

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// Where ports are taken from. Linux gives 32768 and above to outgoing connections, others 49152 and above.
const lowest, count = 12_000, 20_000

// turn is the port that is looked at next. Processes begin at different places.
var turn atomic.Int64

func init() { turn.Store(int64(os.Getpid()) * 199 % count) }

// Free returns n ports of 127.0.0.1 that nothing listens on. No process gets one twice, before it has had them all. It is safe for concurrent
// use.
func Free(n int) (ports []int, err error) {
	for range count {
		if len(ports) == n {
			return ports, nil
		}
		p := lowest + int(turn.Add(1)%count)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p)); err == nil {
			l.Close() // it has no connections
			ports = append(ports, p)
		}
	}
	return nil, errors.New("there are not enough free ports")
}
