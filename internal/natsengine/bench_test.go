package natsengine

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/natsengine/natstest"
	"github.com/runnelhq/runnel/internal/topic"
	"github.com/runnelhq/runnel/internal/wire"
)

// benchEntry is an event of 200 bytes on one of 100 topics.
func benchEntry(n uint64) engine.Entry {
	name := topic.Stored(fmt.Sprintf("n.%d", n%100))
	id := fmt.Sprint(n)
	return engine.Entry{Topic: name, ID: id, Body: wire.AppendBody(nil, name, id, "p", &runnelv1.PublishRequest{Payload: make([]byte, 200)})}
}

// appendsAtOnce is how many events are on their way at a time, here and with a bare client.
const appendsAtOnce = 256

// each runs a benchmark on a log, and what a bare client does in its place, on a stream with the same settings of the same servers.
func each(b *testing.B, ours func(b *testing.B, l *log), bare func(b *testing.B, js jetstream.JetStream, stream string)) {
	for _, servers := range []int{1, 3} {
		c := natstest.New(b, servers)
		b.Run(fmt.Sprintf("servers=%d/runnel", servers), func(b *testing.B) {
			l := logOf(b, open(b, Options{URLs: c.URLs(), Replicas: servers, Prefix: newEpoch()}), "n")
			b.ResetTimer()
			ours(b, l)
		})
		if bare == nil {
			continue
		}
		b.Run(fmt.Sprintf("servers=%d/bare", servers), func(b *testing.B) {
			js, name := bareStream(b, c, servers)
			b.ResetTimer()
			bare(b, js, name)
		})
	}
}

func bareStream(b *testing.B, c *natstest.Cluster, replicas int) (js jetstream.JetStream, name string) {
	b.Helper()
	nc, err := nats.Connect(strings.Join(c.URLs(), ","))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	if js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(appendsAtOnce)); err != nil {
		b.Fatal(err)
	}
	o := Options{Prefix: newEpoch(), Replicas: replicas}
	cfg := o.settings("n", engine.Config{History: engine.HistoryDisk})
	cfg.Name = o.Prefix
	if _, err := js.CreateStream(b.Context(), cfg); err != nil {
		b.Fatal(err)
	}
	return js, cfg.Name
}

// publish publishes as fast as a bare client can, and waits for the last acknowledgement.
func publish(b *testing.B, js jetstream.JetStream, prefix string, n int) {
	for i := range n {
		en := benchEntry(uint64(i))
		if _, err := js.PublishMsgAsync(&nats.Msg{Subject: prefix + "." + en.Topic.String(), Data: en.Body}, jetstream.WithRetryAttempts(50)); err != nil {
			b.Error(err)
			return
		}
	}
	<-js.PublishAsyncComplete()
}

// 256 publishers, each waiting for its own event.
func BenchmarkAppend(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		var n atomic.Uint64
		b.SetParallelism(appendsAtOnce / 2)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := l.Append(b.Context(), []engine.Entry{benchEntry(n.Add(1))}, engine.AppendEach); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}, func(b *testing.B, js jetstream.JetStream, stream string) { publish(b, js, stream, b.N) })
}

// One publisher, ordered appends of 500 events.
func BenchmarkAppendOrdered(b *testing.B) {
	each(b, func(b *testing.B, l *log) { fill(b, l, b.N) }, nil)
}

func fill(b *testing.B, l *log, n int) {
	for done := 0; done < n; {
		entries := make([]engine.Entry, min(500, n-done))
		for i := range entries {
			entries[i] = benchEntry(uint64(done + i))
		}
		put(b, l, entries...)
		done += len(entries)
	}
}

// A tail that follows while a bare client publishes; beside it an ordered consumer.
func BenchmarkTail(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		js, err := jetstream.New(l.e.write.nc, jetstream.WithPublishAsyncMaxPending(appendsAtOnce))
		if err != nil {
			b.Fatal(err)
		}
		tail, err := l.Tail(0)
		if err != nil {
			b.Fatal(err)
		}
		defer tail.Close()
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { publish(b, js, l.e.o.Prefix, b.N) })
		for got := 0; got < b.N; {
			page, err := tail.Next(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			got += len(page.Events)
		}
	}, func(b *testing.B, js jetstream.JetStream, stream string) {
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { publish(b, js, stream, b.N) })
		consume(b, js, stream)
	})
}

// A tail from the beginning of a log of which nothing is in memory; beside it an ordered consumer.
func BenchmarkTailHistory(b *testing.B) {
	each(b, func(b *testing.B, l *log) {
		fill(b, l, b.N)
		l.forget()
		b.ResetTimer()
		tail, err := l.Tail(0)
		if err != nil {
			b.Fatal(err)
		}
		defer tail.Close()
		for got := 0; got < b.N; {
			page, err := tail.Next(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			got += len(page.Events)
		}
	}, func(b *testing.B, js jetstream.JetStream, stream string) {
		publish(b, js, stream, b.N)
		b.ResetTimer()
		consume(b, js, stream)
	})
}

// consume waits until an ordered consumer has brought all events.
func consume(b *testing.B, js jetstream.JetStream, stream string) {
	c, err := js.OrderedConsumer(b.Context(), stream, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	got := 0
	cc, err := c.Consume(func(jetstream.Msg) {
		if got++; got == b.N {
			close(done)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	<-done
	cc.Stop()
	<-cc.Closed()
}
