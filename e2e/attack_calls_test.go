package e2e

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// zeroWindows asks 50 times for 50 MiB, allows the server to send nothing, and seems alive.
func zeroWindows(s *siege) {
	c := connect(s.T, s.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	defer c.close()
	c.read()
	for range 50 {
		if err := c.follow("past.t"); err != nil {
			s.Fatal(err)
		}
		s.thrown.Add(1)
	}
	c.mustPong(s)
	s.note = "held"
	if !s.long {
		c.closed(s.patience()) // what the server sends meanwhile is headers
		return
	}
	begun := time.Now()
	for range 20 {
		// As often as keepalive allows, so that it is not keepalive that ends the connection.
		if c.closed(6 * time.Second) {
			s.note = fmt.Sprintf("cut after %.0f s", time.Since(begun).Seconds())
			return
		}
		_ = c.fr.WritePing(false, [8]byte{'p'})
		_ = c.SetWriteDeadline(time.Now().Add(deadline))
		c.flush()
	}
	s.Errorf("streams that take nothing are still served after %v", time.Since(begun).Round(time.Second))
}

// stuckAndReset takes streams back while most of what they were sent waits for a window.
func stuckAndReset(s *siege) {
	const streams = 100
	c := connect(s.T, s.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	defer c.close()
	c.read()
	for round := range s.times(10, 500) {
		first := c.last + 2
		for range streams {
			if err := c.follow("past.t"); err != nil {
				s.Fatal(err)
			}
		}
		c.flush()
		if !c.await(deadline, func(g *tally) bool { return g.data >= streams*(round+1) }) {
			s.Fatalf("round %d: %v", round, c.seen())
		}
		for id := first; id <= c.last; id += 2 {
			_ = c.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			s.thrown.Add(1)
		}
		_ = c.SetWriteDeadline(time.Now().Add(deadline))
		c.flush()
	}
	c.mustPong(s)
}

// zeros is a stream of size MiB of zeros in deflate's format: the same compressed piece over and over.
func zeros(s *siege, mib int) []byte {
	const piece = 16 // MiB
	var one bytes.Buffer
	w, err := flate.NewWriter(&one, flate.BestCompression)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := w.Write(make([]byte, piece<<20)); err != nil {
		s.Fatal(err)
	}
	if err := w.Flush(); err != nil { // ends at a whole byte
		s.Fatal(err)
	}
	return bytes.Repeat(one.Bytes(), mib/piece)
}

// bomb publishes compressed messages and expects a refusal of each.
func bomb(s *siege, coding string, n int, message []byte) {
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	for i := range n {
		id, err := c.open(publishPath, hpack.HeaderField{Name: "grpc-encoding", Value: coding})
		if err == nil {
			err = c.fr.WriteData(id, false, prefix(true, uint32(len(message))))
		}
		if err != nil {
			s.Fatal(err)
		}
		c.flush()
		// The window grows once the server knows how long the message is.
		if len(message) > 60<<10 && !c.await(deadline, func(g *tally) bool { return g.windows[id] > 0 }) {
			s.Fatalf("no window for %d bytes: %v", len(message), c.seen())
		}
		_ = c.SetWriteDeadline(time.Now().Add(deadline))
		if err := c.data(id, true, message); err != nil || !c.flush() {
			s.Fatalf("the connection was cut: %v", err)
		}
		s.thrown.Add(1)
		if !c.await(deadline, func(g *tally) bool { return g.answered() > i }) {
			s.Fatalf("no answer to message %d: %v", i, c.seen())
		}
	}
	got := c.seen().statuses
	if got["0"] > 0 {
		s.Errorf("some were taken: %v", got)
	}
	s.note += fmt.Sprintf("%s: statuses %v; ", coding, got)
}

// gzipBombs become more than 1 GiB each.
func gzipBombs(s *siege) {
	header := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	bomb(s, "gzip", s.times(3, 50), append(header, zeros(s, 1040)...))
}

// zstdBombs are 1 MiB that become 32 GiB: blocks of 128 KiB that repeat one byte.
func zstdBombs(s *siege) {
	const window8M, repeats, block = 13 << 3, 1 << 1, 128 << 10
	message := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, window8M}
	header := uint32(block<<3 | repeats)
	message = append(message, bytes.Repeat([]byte{byte(header), byte(header >> 8), byte(header >> 16), 0}, 1<<18)...)
	bomb(s, "zstd", s.times(3, 50), message)
	message[5] = 21 << 3 // wants a window of 2 GiB
	bomb(s, "zstd", s.times(3, 50), message[:1<<10])
}

// messageLengths announces more than is allowed, and more than comes.
func messageLengths(s *siege) {
	n := s.times(200, 5_000)
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	for range n {
		id, err := c.open(publishPath)
		if err == nil {
			err = c.fr.WriteData(id, false, prefix(false, 1<<32-1))
		}
		if err != nil {
			s.Fatal(err)
		}
		s.thrown.Add(1)
	}
	c.flush()
	if !c.await(deadline, func(g *tally) bool { return g.statuses["8"]+g.resets[http2.ErrCodeRefusedStream] >= n }) {
		s.Errorf("of %d messages of 4 GiB, these were refused: %v", n, c.seen())
	}
	// As many streams as a connection may have, each with a message of 1 MiB that never comes.
	for range s.times(1, 20) {
		c := connect(s.T, s.addr)
		s.after = append(s.after, c.close)
		c.read()
		for range 1000 {
			id, err := c.open(publishPath)
			if err == nil {
				err = c.fr.WriteData(id, false, prefix(false, 1<<20))
			}
			if err != nil {
				s.Fatal(err)
			}
			s.thrown.Add(1)
		}
		c.mustPong(s)
	}
	s.note = "RESOURCE_EXHAUSTED; held"
}

// unfinishedMessages lack their last byte. Until that comes, nobody but grpc-go knows of them.
func unfinishedMessages(s *siege) {
	n := s.times(50, 1_000)
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	const size = 1 << 20
	for range n {
		id, err := c.open(publishPath)
		if err == nil {
			err = c.fr.WriteData(id, false, prefix(false, size))
		}
		if err != nil {
			s.Fatal(err)
		}
	}
	c.flush()
	if !c.await(deadline, func(g *tally) bool { return len(g.windows) >= n }) {
		s.Fatalf("no windows for %d messages: %v", n, c.seen())
	}
	_ = c.SetWriteDeadline(time.Now().Add(deadline))
	for id := uint32(1); id < uint32(2*n); id += 2 {
		if err := c.data(id, false, make([]byte, size-1)); err != nil {
			s.Fatal(err)
		}
		s.thrown.Add(1)
	}
	c.mustPong(s)
	s.note = "held"
	if !s.long {
		return
	}
	// What grpc-go holds of a message that is not complete counts in no budget: 1 GiB here. It ends with the time that a call's first
	// message may take, and goes with the garbage after that: its buffers are pooled, so that it takes two collections, of which Go makes one
	// every two minutes at least.
	s.most = 1500 << 20
	began := time.Now()
	if !c.await(time.Minute, func(g *tally) bool { return g.reset()+g.answered() >= n }) {
		s.Fatalf("calls that lack their last byte go on: %v", c.seen())
	}
	cut := time.Since(began)
	for s.resident() > mostResidentLong {
		if time.Since(began) > 5*time.Minute {
			s.Fatalf("the server holds %d MiB for calls that are over", s.resident()>>20)
		}
		time.Sleep(100 * time.Millisecond) // polling another process
	}
	s.note = fmt.Sprintf("cut after %v, collected after %v", cut.Round(time.Second), time.Since(began).Round(time.Second))
}

// brokenMessages are not what they should be.
func brokenMessages(s *siege) {
	good, err := proto.Marshal(&runnelv1.PublishRequest{Topic: "broken.t", Payload: make([]byte, 100), EventId: "id"})
	if err != nil {
		s.Fatal(err)
	}
	var groups, messages []byte
	for range 10_000 {
		groups = protowire.AppendTag(groups, 999, protowire.StartGroupType)
	}
	for range 10_000 {
		groups = protowire.AppendTag(groups, 999, protowire.EndGroupType)
	}
	for range 1_500 { // as deep as 10 KiB go
		messages = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), messages)
	}
	random := rand.NewChaCha8([32]byte{1})
	kinds := []func() []byte{
		func() []byte { return good[:rand.IntN(50)+11] }, // within the payload
		func() []byte { return groups },
		func() []byte { return messages },
		func() []byte {
			return protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "broken.\xff\xfe")
		},
		func() []byte {
			b := make([]byte, 1+rand.IntN(2000))
			_, _ = random.Read(b) // never fails
			return b
		},
	}
	c := connect(s.T, s.addr)
	defer c.close()
	c.read()
	n, sessions := s.times(1_000, 50_000), 0
	for i := range n {
		path := []string{publishPath, subscribePath, sessionPath}[i/len(kinds)%3]
		if path == sessionPath {
			sessions++
		}
		id, err := c.open(path)
		if err == nil {
			err = c.message(id, true, kinds[i%len(kinds)]())
		}
		if err != nil {
			s.Fatal(err)
		}
		s.thrown.Add(1)
		if i%100 == 99 { // below the most streams of a connection
			c.flush()
			if !c.await(deadline, func(g *tally) bool { return g.answered() > i }) {
				s.Fatalf("%d messages: %v", i+1, c.seen())
			}
		}
	}
	got := c.seen().statuses
	if got["0"] > sessions { // which may refuse the command alone, and end with OK
		s.Errorf("some were taken: %v", got)
	}
	s.note = fmt.Sprintf("statuses %v", got)
	api, conn, err := dialAPI(s.addr, insecure.NewCredentials())
	if err != nil {
		s.Fatal(err)
	}
	defer conn.Close()
	list, err := api.ListTopics(s.Context(), &runnelv1.ListTopicsRequest{Pattern: "broken.>"})
	if err == nil && len(list.GetTopics()) > 0 {
		s.Errorf("broken messages were published: %v", list)
	}
}

// commands sends n commands on one session, as fast as they are taken, and reads no answer for a while. It returns how the answers went,
// by what a client learns of them.
func commands(s *siege, n int, command func(i int) *runnelv1.StreamRequest) map[string]int {
	api, conn, err := dialAPI(s.addr, insecure.NewCredentials())
	if err != nil {
		s.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(s.Context(), 5*time.Minute)
	defer cancel()
	stream, err := api.EstablishStream(ctx)
	if err != nil {
		s.Fatal(err)
	}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() {
		for i := range n {
			r := command(i)
			r.RequestId = uint64(i + 1)
			if stream.Send(r) != nil {
				return // the receiver learns why
			}
			s.thrown.Add(1)
		}
	})
	time.Sleep(s.patience()) // nobody reads
	unread := s.thrown.Load()
	answers := map[string]int{}
	for next := uint64(1); next <= uint64(n); {
		m, err := stream.Recv()
		if err != nil {
			s.Fatalf("after %d answers: %v", next-1, err)
		}
		for _, c := range m.GetControls() {
			if c.GetRequestId() == 0 {
				continue
			}
			if c.GetRequestId() != next {
				s.Fatalf("the answer to %d in place of %d: %v", c.GetRequestId(), next, c)
			}
			next++
			answers[outcome(s, c)]++
		}
	}
	s.note = fmt.Sprintf("%d sent before the first answer was read; %v", unread, answers)
	return answers
}

// outcome is what a control says of a command: its kind, or the reason of the error.
func outcome(s *siege, c *runnelv1.Control) string {
	switch {
	case c.GetSubscribed() != nil:
		return "subscribed"
	case c.GetPublished() != nil:
		return "published"
	}
	for _, d := range c.GetCommandError().GetStatus().GetDetails() {
		m, err := d.UnmarshalNew()
		if err != nil {
			s.Fatal(err)
		}
		if info, ok := m.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return fmt.Sprint(c)
}

func subscribeCommands(s *siege) {
	n := s.times(10_000, 100_000)
	got := commands(s, n, func(i int) *runnelv1.StreamRequest {
		return &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: &runnelv1.Subscription{Pattern: fmt.Sprintf("quiet.t%d", i)}}}
	})
	if got["subscribed"] != 100 || got["TOO_MANY_SUBSCRIPTIONS"] != n-100 {
		s.Errorf("of %d subscribe commands: %v", n, got)
	}
}

func unsubscribeCommands(s *siege) {
	n := s.times(10_000, 100_000)
	got := commands(s, n, func(i int) *runnelv1.StreamRequest {
		return &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Unsubscribe{Unsubscribe: &runnelv1.Unsubscribe{Subscription: uint32(i)}}}
	})
	if got["UNKNOWN_SUBSCRIPTION"] != n {
		s.Errorf("of %d unsubscribe commands: %v", n, got)
	}
}

func publishStorm(s *siege) {
	n := s.times(10_000, 200_000)
	payload := make([]byte, 1<<10)
	got := commands(s, n, func(int) *runnelv1.StreamRequest {
		return &runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Publish{Publish: &runnelv1.PublishRequest{Topic: "storm.t", Payload: payload}}}
	})
	if got["published"] != n {
		s.Errorf("of %d publishes: %v", n, got)
	}
}

// connectAndCancel goes away at every stage of a call.
func connectAndCancel(s *siege) {
	const attackers = 8
	n := int64(s.times(1_000, 100_000))
	var next atomic.Int64
	var group sync.WaitGroup
	for range attackers {
		group.Go(func() {
			for i := next.Add(1); i <= n && !s.Failed(); i = next.Add(1) {
				if err := cancelAt(s, i%5); err != nil {
					s.Errorf("stage %d: %v", i%5, err)
				}
				s.thrown.Add(1)
			}
		})
	}
	group.Wait()
}

func cancelAt(s *siege, stage int64) error {
	if stage == 0 {
		return dialTCP(s.T, s.addr).Close()
	}
	c := connect(s.T, s.addr)
	defer c.close()
	if stage == 1 {
		return nil
	}
	id, err := c.open(subscribePath)
	if err == nil && stage > 2 {
		err = c.message(id, true, everything("past.t"))
	}
	if err == nil {
		err = c.w.Flush()
	}
	if err != nil || stage < 4 {
		return err
	}
	c.read()
	if !c.await(deadline, func(g *tally) bool { return g.data > 0 }) {
		return fmt.Errorf("no answer: %v", c.seen())
	}
	return nil
}
