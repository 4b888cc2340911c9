package server_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// toxic is a bad link in front of a server.
type toxic struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func badLink(t *testing.T, to string) *toxic {
	t.Helper()
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), t.Name(), "127.0.0.1:0", to)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return &toxic{t, p}
}

// add makes both directions bad.
func (x *toxic) add(kind, attributes string) {
	x.t.Helper()
	for _, direction := range []string{"upstream", "downstream"} {
		_, err := x.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"name":%q,"type":%q,"stream":%q,"attributes":{%s}}`, direction, kind, direction, attributes)))
		if err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *toxic) mend() { x.proxy.Toxics.ResetToxics(context.Background()) }

// However bad the link, every publish is acknowledged once it is better, and a follower gets every event, once and in order.
func TestBadLinks(t *testing.T) {
	for name, c := range map[string]struct {
		kind, attributes string
		mended           bool // when the client has noticed
	}{
		"late":          {"latency", `"latency":40,"jitter":30`, false},
		"one byte each": {"slicer", `"average_size":1,"size_variation":0,"delay":1`, false},
		"narrow":        {"bandwidth", `"rate":20`, false},
		"cut in frames": {"limit_data", `"bytes":9000`, false},
		"reset":         {"reset_peer", `"timeout":60`, true},
		"black hole":    {"timeout", `"timeout":0`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
			link := badLink(t, s.Addr)
			client, err := runnel.Dial(link.proxy.Listen, runnel.WithConnectTimeout(time.Minute), runnel.WithDialOptions(
				grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second, PermitWithoutStream: true})))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			noticed := make(chan struct{}, 100)
			// Few on their way at once: a link that is cut after so many bytes lets nothing through where more than that is sent before an answer.
			session, err := client.Session(t.Context(), runnel.PublishBuffer(16, 1<<20, runnel.BufferWait), runnel.OnState(func(s runnel.State) {
				if s == runnel.StateConnecting {
					noticed <- struct{}{}
				}
			}))
			if err != nil {
				t.Fatal(err)
			}
			<-noticed
			sub, err := session.Subscribe(t.Context(), "a.>", runnel.From(runnel.Earliest()))
			if err != nil {
				t.Fatal(err)
			}
			const events = 300
			var receipts []*runnel.Receipt
			var mending sync.WaitGroup
			defer mending.Wait()
			for i := range events {
				if i == 50 {
					link.add(c.kind, c.attributes)
					if c.mended {
						mending.Go(func() { <-noticed; link.mend() })
					}
				}
				r, err := session.Publish(t.Context(), "a.b", []byte(fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				receipts = append(receipts, r)
				if i%10 == 0 {
					time.Sleep(2 * time.Millisecond) // a stream, not a burst: the link has to be bad while it flows
				}
			}
			for i := range events {
				if _, err := receipts[i].Wait(t.Context()); err != nil {
					t.Fatalf("publish %d: %v", i, err)
				}
				if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(i) {
					t.Fatalf("event %d: %+v, %v", i, e, err)
				}
			}
			if c.kind == "limit_data" && len(noticed) == 0 {
				t.Error("the link was never cut")
			}
		})
	}
}
