package natstest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// routes are what the servers of a cluster hear each other through: one door in front of each, which other servers are told to use.
type routes struct {
	group sync.WaitGroup
	doors []*door

	mu    sync.Mutex
	alone map[int]bool // servers that nobody reaches, and that reach nobody
	ids   map[string]int
}

// door passes connections on to a server's port for routes.
type door struct {
	r        *routes
	server   int
	to       string
	listener net.Listener
	conns    map[net.Conn]*passage // guarded by r.mu
}

// passage is a connection through a door.
type passage struct {
	in, out net.Conn
	from    int // the server that opened it; -1 while it has not said so
}

// NewIsolable is New, with servers that can be cut off from each other. Clients still reach them then.
func NewIsolable(t TB, n int, change ...Option) *Cluster {
	t.Helper()
	r := &routes{alone: map[int]bool{}, ids: map[string]int{}}
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("listen: %v", err)
		}
		r.doors = append(r.doors, &door{r: r, server: i, listener: l, conns: map[net.Conn]*passage{}})
	}
	t.Cleanup(r.close) // after that of New, which comes later
	next := 0
	through := func(o *server.Options) {
		d := r.doors[next]
		d.to = fmt.Sprintf("127.0.0.1:%d", o.Cluster.Port)
		o.Cluster.Advertise = d.listener.Addr().String()
		o.Routes = nil
		for i, other := range r.doors {
			if i != next {
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: other.listener.Addr().String()})
			}
		}
		next++
		if next == n { // all are known, and none runs
			for _, d := range r.doors {
				r.group.Go(d.accept)
			}
		}
	}
	return newCluster(t, n, r, append([]Option{through}, change...))
}

// Isolate cuts a server off from the others, until Heal.
func (c *Cluster) Isolate(i int) {
	r := c.routes
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alone[i] = true
	for _, d := range r.doors {
		for _, p := range d.conns {
			if d.server == i || p.from == i || p.from < 0 {
				p.close()
			}
		}
	}
}

// Heal lets all servers reach each other again.
func (c *Cluster) Heal() {
	c.routes.mu.Lock()
	defer c.routes.mu.Unlock()
	clear(c.routes.alone)
}

// runs notes which server has an id. It may be on nobody's mind.
func (r *routes) runs(i int, id string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[id] = i
}

func (r *routes) close() {
	for _, d := range r.doors {
		d.listener.Close()
	}
	r.mu.Lock()
	for _, d := range r.doors {
		for _, p := range d.conns {
			p.close()
		}
	}
	r.mu.Unlock()
	r.group.Wait()
}

func (p *passage) close() {
	p.in.Close()
	p.out.Close()
}

func (d *door) accept() {
	for {
		in, err := d.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", d.to)
		if err != nil {
			in.Close()
			continue
		}
		p := &passage{in, out, -1}
		d.r.mu.Lock()
		d.conns[in] = p
		if d.r.alone[d.server] {
			p.close()
		}
		d.r.mu.Unlock()
		d.r.group.Go(func() {
			_, _ = io.Copy(in, out)
			p.close()
		})
		d.r.group.Go(func() {
			d.forward(p)
			p.close()
			d.r.mu.Lock()
			delete(d.conns, in)
			d.r.mu.Unlock()
		})
	}
}

// forward copies what comes in, as soon as it is known from whom. A server says so in the first line it sends.
func (d *door) forward(p *passage) {
	var begin []byte
	for buf := make([]byte, 4096); p.from < 0; {
		n, err := p.in.Read(buf)
		if err != nil {
			return
		}
		begin = append(begin, buf[:n]...)
		if !d.recognise(p, begin) {
			return
		}
	}
	if _, err := p.out.Write(begin); err == nil {
		_, _ = io.Copy(p.out, p.in)
	}
}

// recognise looks for who it is that connects; false if that one is alone.
func (d *door) recognise(p *passage, begin []byte) bool {
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	for id, i := range d.r.ids {
		if bytes.Contains(begin, []byte(`"`+id+`"`)) {
			p.from = i
			return !d.r.alone[i]
		}
	}
	return true
}
