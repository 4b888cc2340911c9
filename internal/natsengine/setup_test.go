package natsengine

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/wire"
)

// A server that says that it is older than what is needed.
func TestTooOld(t *testing.T) {
	t.Parallel()
	older := func(chunk []byte, _ net.Conn) []byte {
		return bytes.Replace(chunk, []byte(`"version":"2.15`), []byte(`"version":"2.13`), 1)
	}
	p := newProxy(t, natstest.New(t, 1).URL(0), func(p *proxy) {
		p.filter = func() (in, out func([]byte, net.Conn) []byte) {
			return func(chunk []byte, _ net.Conn) []byte { return chunk }, older
		}
	})
	_, err := Open(Options{URLs: []string{p.url()}, Logger: discard})
	if err == nil || !strings.Contains(err.Error(), "is version 2.13.") || !strings.Contains(err.Error(), "at least 2.14 is needed") {
		t.Errorf("%v", err)
	}
}

// Three replicas are asked of one server, and of a cluster of which one server is left.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	e := open(t, Options{URLs: natstest.New(t, 1).URLs()})
	_, err := e.Log("n")
	if err == nil || !strings.Contains(err.Error(), "3 replicas need as many NATS servers") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	_, err = open(t, Options{URLs: natstest.New(t, 3).URLs(), Replicas: 5}).Log("n")
	if err == nil || !strings.Contains(err.Error(), "5 replicas need as many NATS servers") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// What a user calls a header is none to NATS, whatever its name, and an id is not what the user chose.
func TestHeaders(t *testing.T) {
	t.Parallel()
	c := natstest.New(t, 1)
	l := logOf(t, open(t, Options{URLs: c.URLs(), Replicas: 1}), "n")
	users := map[string]string{"Nats-Rollup": "all", "Nats-Msg-Id": "x", "Nats-TTL": "1s", "Nats-Expected-Last-Sequence": "7", "Runnel-Append": "x"}
	for _, id := range []string{"1", "2", "2"} { // the first two are stored
		en := entry("n.a", id)
		en.Body = wire.AppendBody(nil, en.Topic, id, "p", &runnelv1.PublishRequest{Headers: users})
		put(t, l, en)
	}
	if head := l.State().Head; head != 2 {
		t.Fatalf("%d events are stored", head)
	}
	stream, err := jetStream(t, c).Stream(t.Context(), l.stream)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		headerID: true, headerStream: true, headerName: true,
		"Nats-Stream": true, "Nats-Subject": true, "Nats-Sequence": true, "Nats-Time-Stamp": true, // of the answer
	}
	for n, id := range []string{"1", "2"} {
		m, err := stream.GetMsg(t.Context(), uint64(n)+1)
		if err != nil {
			t.Fatal(err)
		}
		for key := range m.Header {
			if !allowed[key] {
				t.Errorf("a header of the message: %s", key)
			}
		}
		if got := nats.Header(m.Header).Get(headerID); got != hashID(entry("n.a", id).Topic, id) || got == hashID(entry("n.b", id).Topic, id) {
			t.Errorf("event %s has the id %q", id, got)
		}
	}
	for _, ev := range everything(t, l) {
		m := new(runnelv1.Event)
		unmarshal(t, ev.Wire, m)
		if len(m.GetHeaders()) != len(users) || m.GetHeaders()["Nats-Rollup"] != "all" {
			t.Errorf("a user's headers came back as %v", m.GetHeaders())
		}
	}
}
