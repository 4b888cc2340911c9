package natsengine

import (
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/runnelhq/runnel/internal/natsengine/natstest"
)

// packet is a message between a node and NATS.
type packet struct {
	op, subject, sid, reply string
	header, data            []byte
}

func (m *packet) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s ", m.op, m.subject)
	for _, s := range []string{m.sid, m.reply} {
		if s != "" {
			b.WriteString(s + " ")
		}
	}
	if strings.HasPrefix(m.op, "H") {
		fmt.Fprintf(&b, "%d ", len(m.header))
	}
	fmt.Fprintf(&b, "%d\r\n%s%s\r\n", len(m.header)+len(m.data), m.header, m.data)
	return b.Bytes()
}

// is reports whether a header has a value.
func (m *packet) is(key, value string) bool {
	return bytes.Contains(m.header, []byte(key+": "+value+"\r\n"))
}

// number is a header's value; 0 if there is none.
func (m *packet) number(key string) (n uint64) {
	_, value, _ := bytes.Cut(m.header, []byte(key+": "))
	value, _, _ = bytes.Cut(value, []byte("\r\n"))
	n, _ = strconv.ParseUint(string(value), 10, 64)
	return n
}

// packets cuts what goes one way over a connection into packets and lets a hook change each, or drop it: then it returns false.
type packets struct{ rest []byte }

func (p *packets) pass(chunk []byte, hook func(m *packet) bool) (out []byte) {
	p.rest = append(p.rest, chunk...)
	for {
		line, behind, ok := bytes.Cut(p.rest, []byte("\r\n"))
		if !ok {
			return out
		}
		words := strings.Fields(string(line))
		op := strings.ToUpper(words[0])
		if op != "PUB" && op != "HPUB" && op != "MSG" && op != "HMSG" {
			out = append(append(out, line...), "\r\n"...)
			p.rest = behind
			continue
		}
		size, _ := strconv.Atoi(words[len(words)-1])
		if len(behind) < size+2 {
			return out
		}
		m := &packet{op: op, subject: words[1]}
		args, head := words[2:len(words)-1], 0
		if strings.HasPrefix(op, "H") {
			head, _ = strconv.Atoi(args[len(args)-1])
			args = args[:len(args)-1]
		}
		if strings.HasSuffix(op, "MSG") {
			m.sid, args = args[0], args[1:]
		}
		if len(args) > 0 {
			m.reply = args[0]
		}
		m.header, m.data = bytes.Clone(behind[:head]), bytes.Clone(behind[head:size])
		p.rest = behind[size+2:]
		if hook == nil || hook(m) {
			out = append(out, m.encode()...)
		}
	}
}

// relay is a proxy that lets a test look at every message between a node and NATS.
type relay struct {
	*proxy
	t *testing.T

	hooks sync.Mutex
	// asked is told what a node sends, and answered what it gets. False: it goes no further.
	asked, answered func(m *packet) bool
}

func newRelay(t *testing.T, c *natstest.Cluster) *relay {
	t.Helper()
	r := &relay{t: t}
	hooked := func(hook *func(*packet) bool) func([]byte, net.Conn) []byte {
		var p packets
		return func(chunk []byte, _ net.Conn) []byte {
			r.hooks.Lock()
			f := *hook
			r.hooks.Unlock()
			return p.pass(chunk, f)
		}
	}
	r.proxy = newProxy(t, c.URL(0), func(p *proxy) {
		p.filter = func() (in, out func([]byte, net.Conn) []byte) { return hooked(&r.asked), hooked(&r.answered) }
	})
	return r
}

func (r *relay) set(asked, answered func(m *packet) bool) {
	r.hooks.Lock()
	defer r.hooks.Unlock()
	r.asked, r.answered = asked, answered
}

func (r *relay) open(replicas int) *log {
	return logOf(r.t, open(r.t, Options{URLs: []string{r.url()}, Replicas: replicas}), "n")
}
