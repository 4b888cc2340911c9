package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// A publisher that was held up sends everything that was due, each counted from when it was: nothing is skipped, nothing hidden.
func TestPacerOmitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100
		begin := time.Now()
		p := NewPacer(rate)
		var r Recorder
		s := r.Shard()
		for i := range 500 {
			due, err := p.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := begin.Add(time.Duration(i) * time.Second / rate); due.Sub(want).Abs() > time.Microsecond {
				t.Fatalf("event %d was due at %v, want %v", i, due, want)
			}
			s.Record(time.Since(due))
			if i == 100 {
				time.Sleep(time.Second) // the system stalls
			}
		}
		if took := time.Since(begin); took != 499*time.Second/rate {
			t.Errorf("500 events took %v: the time of the stall was not made up", took)
		}
		var res Result
		r.Fill(&res)
		// A hundred events were due during the stall: a fifth of all was late, by half a second in the mean.
		if *res.Max < 985 || *res.P99 < 900 || *res.P50 > 1 {
			t.Errorf("p50 %v, p99 %v, max %v ms", *res.P50, *res.P99, *res.Max)
		}
	})
}

func TestPacerStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := NewPacer(0.001)
	for range 2 {
		if _, err := p.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
}

// The loop never lets more than its window on the way, and never stops as long as something is delivered.
func TestWindow(t *testing.T) {
	const size, subscribers, events = 16, 10, 5000
	w := NewWindow(size, subscribers)
	wire := make([]chan struct{}, subscribers)
	var group sync.WaitGroup
	var mu sync.Mutex
	published, delivered := 0, 0
	for i := range wire {
		wire[i] = make(chan struct{}, events)
		group.Go(func() {
			for range wire[i] {
				mu.Lock()
				delivered++
				mu.Unlock()
				w.Delivered(1)
			}
		})
	}
	for published < events {
		n, err := w.Room(t.Context(), 7)
		if err != nil || n < 1 || n > 7 {
			t.Fatal(n, err)
		}
		mu.Lock()
		published += n
		if inFlight := published*subscribers - delivered; inFlight > size*subscribers {
			t.Errorf("%d on the way, %d are allowed", inFlight, size*subscribers)
		}
		mu.Unlock()
		for range n {
			for _, c := range wire {
				c <- struct{}{}
			}
		}
	}
	for _, c := range wire {
		close(c)
	}
	group.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	full := NewWindow(1, 1)
	if n, err := full.Room(ctx, 5); n != 1 || err != nil {
		t.Error(n, err)
	}
	if _, err := full.Room(ctx, 5); !errors.Is(err, context.Canceled) {
		t.Error("waiting for room was not ended")
	}
}

func TestRecorder(t *testing.T) {
	var r Recorder
	var res Result
	r.Fill(&res)
	if res.P50 != nil {
		t.Error("percentiles of nothing")
	}
	var group sync.WaitGroup
	for range 4 {
		s := r.Shard()
		group.Go(func() {
			for i := range 1000 {
				s.Record(time.Duration(i+1)*time.Millisecond, -time.Second)
			}
		})
	}
	group.Wait()
	r.Fill(&res)
	if *res.Max < 999 || *res.Max > 1001 || *res.P99 < 975 || *res.P99 > 985 {
		t.Errorf("p99 %v, max %v", *res.P99, *res.Max)
	}
	r.Reset()
	res = Result{}
	if r.Fill(&res); res.Max != nil {
		t.Error("Reset has kept something")
	}
}

func TestProcess(t *testing.T) {
	if (Process{}).CPU() != nil || (Process{}).RSS() != nil || (Process{PID: 1 << 30}).CPU() != nil {
		t.Error("figures of no process")
	}
	if rss := Self().RSS(); rss == nil || *rss < 1<<20 {
		t.Errorf("this process has %v bytes", rss)
	}
	before := Self().CPU()
	for began := time.Now(); ; {
		if spent := Since(before, Self().CPU()); spent != nil && *spent > 0 {
			break
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("twenty seconds of work cost no CPU time")
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if p := Listener(l.Addr().String()); p.PID != os.Getpid() {
		t.Errorf("the listener of %v is process %d, want %d", l.Addr(), p.PID, os.Getpid())
	}
	for _, address := range []string{"192.0.2.1:80", "127.0.0.1:1", "nonsense", "127.0.0.1:http"} {
		if p := Listener(address); p.PID != 0 {
			t.Errorf("the listener of %s is process %d", address, p.PID)
		}
	}
}

func TestResultFields(t *testing.T) {
	var b strings.Builder
	if err := (&Result{System: "s"}).Write(&b); err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(b.String()), &m); err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields("system scenario subscribers window rate deliveries_per_s p50_ms p99_ms max_ms server_cpu_s_per_million client_cpu_s_per_million rss_bytes_per_client lost") {
		if _, ok := m[name]; !ok {
			t.Errorf("there is no %s in %s", name, b.String())
		}
	}
	if strings.Count(b.String(), "\n") != 1 {
		t.Error("it is not one line")
	}
}

func response(events int) []byte {
	m := &runnelv1.StreamResponse{
		Controls:   []*runnelv1.Control{{Control: &runnelv1.Control_Notice{Notice: &runnelv1.Notice{Count: 5}}}},
		Deliveries: []*runnelv1.Delivery{{Subscription: 1}, {Subscription: 2}},
	}
	for i := range events {
		d := m.Deliveries[i%2]
		d.Events = append(d.Events, &runnelv1.Event{EventId: "id", Payload: fmt.Append(nil, i), Topic: "a.b", Offset: 7})
	}
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func FuzzScan(f *testing.F) {
	f.Add(response(0))
	f.Add(response(9))
	f.Add(response(9)[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		var got tally
		payloads := 0
		err := got.scan(b, func([]byte) { payloads++ })
		m := new(runnelv1.StreamResponse)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		if err != nil {
			t.Fatalf("protobuf reads it: %v", err)
		}
		want := 0
		for _, d := range m.GetDeliveries() {
			want += len(d.GetEvents())
		}
		if got.events != want || payloads > want || len(got.controls) != len(m.GetControls()) {
			t.Errorf("%d events, %d payloads, %d controls; protobuf finds %d and %d", got.events, payloads, len(got.controls), want, len(m.GetControls()))
		}
	})
}

func TestCheck(t *testing.T) {
	chosen := func(names ...string) func(string) bool {
		return func(name string) bool { return strings.Contains(" "+strings.Join(names, " ")+" ", " "+name+" ") }
	}
	o := Options{Scenario: "fanout", Duration: time.Second, Payload: 100}
	if err := o.Check(chosen()); err != nil || o.Subscribers != 1000 || o.Window != 256 {
		t.Errorf("%+v, %v", o, err)
	}
	o = Options{Scenario: "fanout", Duration: time.Second, Payload: 100, Rate: 5}
	if err := o.Check(chosen("rate")); err != nil || o.Window != 0 || o.Rate != 5 {
		t.Errorf("%+v, %v", o, err)
	}
	o = Options{Scenario: "publish", Duration: time.Second, Payload: 100, Window: 5}
	if err := o.Check(chosen("window")); err == nil {
		t.Error("a window was accepted where each publisher waits")
	}
}
