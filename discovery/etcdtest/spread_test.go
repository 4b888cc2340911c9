package etcdtest

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/discovery/etcd"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// fleet is servers that list themselves in an etcd, and the sessions of clients that find them there.
type fleet struct {
	t       *testing.T
	c       *cluster
	age     time.Duration
	servers []*runneltest.Server
	admins  []*runnel.Client
	steps   strings.Builder
}

func (f *fleet) add() *runneltest.Server {
	f.t.Helper()
	client := f.c.client()
	s := runneltest.StartServer(f.t, server.Config{
		Namespaces: map[string]server.Namespace{"a": {History: "none"}}, MaxStreamAge: f.age, DrainNotice: 5 * time.Second,
		Announce: func(address string) func() {
			r, err := etcd.Register(context.Background(), client, "spread", address)
			if err != nil {
				f.t.Error(err)
				return func() {}
			}
			return r.Close
		},
	})
	f.servers = append(f.servers, s)
	f.admins = append(f.admins, s.Client())
	return s
}

// count counts the sessions of each server.
func (f *fleet) count() (each []int, sum int) {
	f.t.Helper()
	for _, a := range f.admins {
		res, err := runnel.Admin(f.t.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
			return s.ListSessions(ctx, &runnelv1.ListSessionsRequest{Limit: 10_000})
		})
		if err != nil {
			f.t.Fatal(err)
		}
		each = append(each, len(res.GetSessions()))
		sum += len(res.GetSessions())
	}
	return each, sum
}

// step notes how the sessions are spread.
func (f *fleet) step(name string) []int {
	f.t.Helper()
	each, sum := f.count()
	words := make([]string, 4)
	for i, n := range each {
		words[i] = strconv.Itoa(n)
	}
	fmt.Fprintf(&f.steps, "%s\t%s\t%d\n", name, strings.Join(words, "\t"), sum)
	return each
}

// even checks that servers have about as many sessions as they would by lot: four standard deviations, and what is between two places.
func (f *fleet) even(name string, each []int, sessions int) {
	f.t.Helper()
	share := float64(sessions) / float64(len(each))
	off := 4*math.Sqrt(share*(1-1/float64(len(each)))) + 0.05*share
	for i, n := range each {
		if d := math.Abs(float64(n) - share); d > off {
			f.t.Errorf("%s: server %d has %d sessions of %d; %.0f more or less would be by chance", name, i+1, n, sessions, off)
		}
	}
}

// Sessions of clients that each choose one server spread over all of them; when one stops its sessions go to the others, and when there is
// one more, or again, old sessions move there. No session ends, and no application sees a pause. RUNNEL_SPREAD=1000 makes it so many, and
// shows the numbers with -v.
func TestSpread(t *testing.T) {
	sessions, age := 150, 3*time.Second
	if n, err := strconv.Atoi(os.Getenv("RUNNEL_SPREAD")); err == nil {
		sessions, age = n, 10*time.Second
	}
	f := &fleet{t: t, c: newCluster(t), age: age}
	for range 3 {
		f.add()
	}
	directory := f.c.client()
	resolve(t, directory, "spread").waitFor(t, 3)
	var mu sync.Mutex
	changes := 0
	clients := make([]*runnel.Client, sessions)
	defer func() {
		var closing errgroup.Group
		for _, c := range clients {
			closing.Go(c.Close)
		}
		if err := closing.Wait(); err != nil {
			t.Error(err)
		}
	}()
	var opening errgroup.Group
	opening.SetLimit(32)
	began := time.Now()
	for i := range clients {
		c, err := runnel.Dial("etcd:///spread", runnel.WithResolver(etcd.NewResolver(directory)), runnel.WithConnectTimeout(30*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = c
		opening.Go(func() error {
			_, err := c.Session(t.Context(), runnel.OnState(func(runnel.State) {
				mu.Lock()
				changes++
				mu.Unlock()
			}))
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions opened in %v", sessions, time.Since(began).Round(time.Millisecond))
	f.even("opened", f.step("opened"), sessions)

	f.servers[0].Stop()
	f.admins = f.admins[1:]
	each, _ := f.count()
	fmt.Fprintf(&f.steps, "server 1 stopped\t-\t%d\t%d\t\t%d\n", each[0], each[1], each[0]+each[1])
	f.servers[0].Start()
	f.admins = append([]*runnel.Client{f.servers[0].Client()}, f.admins...)
	f.step("server 1 started again")
	// A quarter more than the age is the oldest that a session gets; and it moves within the notice.
	settle := age*5/4 + 3*time.Second
	time.Sleep(settle)
	f.even("one age later", f.step(fmt.Sprintf("%v later", settle)), sessions)
	f.add()
	f.step("server 4 added")
	time.Sleep(settle)
	f.even("with a fourth", f.step(fmt.Sprintf("%v later", settle)), sessions)

	mu.Lock()
	if changes != 2*sessions {
		t.Errorf("%d changes of state of %d sessions: more than connecting and live", changes, sessions)
	}
	mu.Unlock()
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\t1\t2\t3\t4\tsum\n%s", f.steps.String())
	w.Flush()
	t.Logf("sessions by server:\n%s", table.String())
}
