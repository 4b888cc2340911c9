package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// deadline is long enough for whatever must happen.
const deadline = 30 * time.Second

// rapidReset opens streams, some with a request, and takes them back at once (CVE-2023-44487).
func rapidReset(s *siege) {
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	request := everything("past.t")
	s.note = c.flood(s, deadline, s.times(5_000, 50_000), func(i int) error {
		id, err := c.open(subscribePath)
		if err == nil && i%2 == 1 {
			err = c.message(id, true, request)
		}
		if err != nil {
			return err
		}
		return c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
	})
	c.mustPong(s)
}

// mustPong checks that the server still serves the connection.
func (c *wire) mustPong(s *siege) {
	s.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(deadline))
	_ = c.fr.WritePing(false, [8]byte{'p'})
	if !c.flush() || !c.await(deadline, func(g *tally) bool { return g.pongs > 0 }) {
		s.Errorf("the connection does not answer any more: %v", c.seen())
	}
}

// madeYouReset makes the server reset the streams: the limit on open streams does not count those either (CVE-2025-8671).
func madeYouReset(s *siege) {
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	n := s.times(5_000, 50_000)
	s.note = c.flood(s, deadline, n, func(i int) error {
		id, err := c.open(sessionPath)
		if err != nil {
			return err
		}
		switch i % 4 {
		case 0: // no increment
			return c.fr.WriteWindowUpdate(id, 0)
		case 1: // data behind the end, and then no increment, since the stream may have ended well before
			_ = c.fr.WriteData(id, true, nil)
			_ = c.fr.WriteData(id, false, []byte("x"))
			return c.fr.WriteWindowUpdate(id, 0)
		case 2: // more than the window
			_ = c.data(id, false, make([]byte, 80<<10))
			return c.fr.WriteWindowUpdate(id, 0)
		default: // an increment that overflows, which grpc-go lets pass
			_ = c.fr.WriteWindowUpdate(id, 1<<31-1)
			_ = c.fr.WriteWindowUpdate(id, 1<<31-1)
			return c.fr.WriteWindowUpdate(id, 0)
		}
	})
	c.mustPong(s)
	if got := c.seen(); got.reset() < n {
		s.Errorf("of %d streams, %d were reset", n, got.reset())
	} else {
		s.note += fmt.Sprintf(", %d resets", got.reset())
	}
}

// floods throws frames at a server that can answer, and at one that cannot since nobody reads what it has written. Neither connection
// reads its answers.
func floods(s *siege, n int, frame func(c *wire) func(i int) error) (free, full *wire, ends [2]string) {
	free, full = connect(s.T, s.addr), connect(s.T, s.addr)
	s.after = append(s.after, free.close, full.close)
	if err := full.gorge(); err != nil {
		s.Fatal(err)
	}
	var group sync.WaitGroup
	for i, c := range []*wire{free, full} {
		group.Go(func() { ends[i] = c.flood(s, s.patience(), n, frame(c)) })
	}
	group.Wait()
	s.note = fmt.Sprintf("%s; full: %s", ends[0], ends[1])
	if s.long && ends[1] == held {
		begun := time.Now()
		if !full.cutWhileHeld(90 * time.Second) {
			s.Error("the connection that takes nothing is still open")
		}
		s.note += fmt.Sprintf(", and cut after %.0f s", time.Since(begun).Seconds())
	}
	return free, full, ends
}

// mustStall checks that a server that cannot answer has stopped to read, or has cut the connection.
func mustStall(s *siege, end string) {
	s.Helper()
	if end == swallowed {
		s.Error("the server went on to read, though nobody reads its answers")
	}
}

func pingFlood(s *siege) {
	free, _, ends := floods(s, s.times(400_000, 4_000_000), func(c *wire) func(int) error {
		return func(int) error { return c.fr.WritePing(false, [8]byte{'p'}) }
	})
	mustStall(s, ends[1])
	free.read()
	if !free.closed(deadline) {
		s.Error("the connection was not cut")
	}
	if got := free.seen(); len(got.goAway) != 1 || got.goAway[0] != http2.ErrCodeEnhanceYourCalm {
		s.Errorf("GOAWAY %v, want ENHANCE_YOUR_CALM", got.goAway)
	}
	s.note += "; ENHANCE_YOUR_CALM"
}

func settingsFlood(s *siege) {
	_, _, ends := floods(s, s.times(400_000, 4_000_000), func(c *wire) func(int) error {
		return func(i int) error {
			return c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
		}
	})
	mustStall(s, ends[1])
}

func windowUpdateFlood(s *siege) {
	_, _, ends := floods(s, s.times(400_000, 4_000_000), func(c *wire) func(int) error {
		return func(i int) error { return c.fr.WriteWindowUpdate(uint32(i%2), 1) }
	})
	mustStall(s, ends[1])
}

// emptyDataFlood also pretends to answer the pings by which grpc-go measures the connection: each of those allows another.
func emptyDataFlood(s *siege) {
	bandwidthPing := [8]byte{2, 4, 16, 16, 9, 14, 7, 7}
	floods(s, s.times(200_000, 4_000_000), func(c *wire) func(int) error {
		id, err := c.open(sessionPath)
		return func(i int) error {
			if err == nil && i%8 == 0 {
				err = c.fr.WritePing(true, bandwidthPing)
			}
			if err == nil {
				err = c.fr.WriteData(id, false, nil)
			}
			return err
		}
	})
}

func priorityFlood(s *siege) {
	floods(s, s.times(200_000, 4_000_000), func(c *wire) func(int) error {
		return func(i int) error {
			return c.fr.WritePriority(uint32(2*i+1), http2.PriorityParam{StreamDep: uint32(2*i + 3), Weight: 7})
		}
	})
}

// resetFlood resets streams that were never opened.
func resetFlood(s *siege) {
	_, _, ends := floods(s, s.times(400_000, 4_000_000), func(c *wire) func(int) error {
		return func(i int) error { return c.fr.WriteRSTStream(uint32(2*i+101), http2.ErrCodeCancel) }
	})
	mustStall(s, ends[1])
}

// continuationBomb is a header that never ends: the server must not wait for its end (CVE-2024-27316).
func continuationBomb(s *siege) {
	for range s.times(20, 500) {
		c := connect(s.T, s.addr)
		c.read()
		_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: c.header(call(subscribePath)...)})
		field := hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 1000), Sensitive: true} // in no table
		s.note = c.flood(s, deadline, 10_000, func(int) error { return c.fr.WriteContinuation(c.last, false, c.header(field)) })
		if s.note == swallowed || !c.closed(deadline) {
			s.Errorf("the connection was not cut: %s", s.note)
		}
		c.close()
	}
}

// emptyContinuations cost the server nothing but time.
func emptyContinuations(s *siege) {
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: c.header(call(subscribePath)...)})
	s.note = c.flood(s, deadline, s.times(200_000, 4_000_000), func(int) error { return c.fr.WriteContinuation(c.last, false, nil) })
}

// headerBombs are headers beyond what the server allows: small on the wire and large behind it, many, and long.
func headerBombs(s *siege) {
	n := s.times(300, 20_000)
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	// One field fills the table; each byte after it stands for the whole field again: 16 KiB for 60 MiB.
	big := hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 3900)}
	seed := bytes.Clone(c.header(append(call(subscribePath), big)...))
	again := c.header(big)
	if len(again) != 1 {
		s.Fatalf("the field is not in the table: %x", again)
	}
	refs := bytes.Repeat(again, 15_000)
	_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: seed, EndHeaders: true, EndStream: true})
	s.note = c.flood(s, deadline, n, func(int) error {
		block := append(c.header(call(subscribePath)...), refs...)
		return c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: block, EndHeaders: true, EndStream: true})
	})
	if !c.await(deadline, func(g *tally) bool { return g.reset() >= n }) {
		s.Errorf("of %d calls with endless headers, %d were refused", n, c.seen().reset())
	}
	many := make([]hpack.HeaderField, 4_000)
	for i := range many {
		many[i] = hpack.HeaderField{Name: fmt.Sprint("x", i), Value: "y", Sensitive: true}
	}
	for what, fields := range map[string][]hpack.HeaderField{
		"many": many,
		"long": {{Name: "x", Value: strings.Repeat("\x7f", 64<<10), Sensitive: true}},
	} {
		for range s.times(20, 500) {
			c := connect(s.T, s.addr)
			c.read()
			block := c.header(append(call(subscribePath), fields...)...)
			first := block[:16<<10]
			_ = c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: first})
			_ = c.fr.WriteContinuation(c.last, true, block[len(first):min(len(block), 32<<10)])
			c.flush()
			s.thrown.Add(1)
			if !c.await(deadline, func(g *tally) bool { return g.reset() > 0 || g.over != nil }) {
				s.Errorf("%s headers were not refused: %v", what, c.seen())
			}
			c.close()
		}
	}
}

// stalledOpenings begin, and stop in the middle, or go on byte by byte.
func stalledOpenings(s *siege) {
	hello := connect(s.T, s.addr)
	defer hello.close()
	headers := hello.header(call(subscribePath)...)
	var whole bytes.Buffer
	whole.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&whole, nil)
	_ = fr.WriteSettings()
	shaken := whole.Len() // up to here the server waits 10 s; keepalive ends what stalls later
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers, EndHeaders: true})
	stall(s, whole.Bytes(), 0, len(http2.ClientPreface)/2, len(http2.ClientPreface), shaken+20)
}

// stalledHandshakes are those of TLS: nothing, half a ClientHello, byte by byte, and HTTP/2 without TLS.
func stalledHandshakes(s *siege) {
	ours, theirs := net.Pipe()
	var group sync.WaitGroup
	group.Go(func() {
		// It fails once the other end is closed.
		_ = tls.Client(ours, &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}}).Handshake()
	})
	hello := make([]byte, 16<<10)
	n, err := theirs.Read(hello)
	theirs.Close()
	group.Wait()
	if err != nil {
		s.Fatal(err)
	}
	stall(s, hello[:n], 0, 3, n/2, n)
	stall(s, []byte(http2.ClientPreface), 10, len(http2.ClientPreface))
}

// stall opens 500 connections that say the beginning of what they have to say, up to one of the places given, and no more; some go on
// byte by byte.
func stall(s *siege, whole []byte, places ...int) {
	var conns []*slow
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 500 {
		c := &slow{TCPConn: dialTCP(s.T, s.addr), rest: whole}
		conns = append(conns, c)
		if c.steps = i%(len(places)+1) == len(places); !c.steps {
			c.say(places[i%(len(places)+1)])
		}
		s.thrown.Add(1)
	}
	begun := time.Now()
	for range s.times(20, 60) {
		time.Sleep(time.Duration(s.times(20, 1000)) * time.Millisecond) // the pace of a slowloris
		for _, c := range conns {
			if c.steps {
				c.say(1)
			}
		}
	}
	if s.note = "held"; !s.long {
		return // there is no time to see the server cut them: they are closed here
	}
	for i, c := range conns {
		if !c.cut() {
			s.Errorf("connection of kind %d is open after %v", i%(len(places)+1), time.Since(begun).Round(time.Second))
		}
	}
	s.note = "all cut"
}
