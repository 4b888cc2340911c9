package runnel_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/server"
)

// exampleServer runs a server for one example; in a test, runneltest.Start does it in one line.
func exampleServer() (addr string, stop func()) {
	dir, err := os.MkdirTemp("", "runnel-example-")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.New(server.Config{
		Listen: "127.0.0.1:0", Admin: "off", Data: dir, Dev: true, Defaults: server.Namespace{History: "memory"},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Run(ctx); err != nil {
			log.Print(err)
		}
	})
	return s.Addr().String(), func() {
		cancel()
		group.Wait()
		os.RemoveAll(dir)
	}
}

func exampleClient() (client *runnel.Client, stop func()) {
	addr, stopServer := exampleServer()
	client, err := runnel.Dial(addr)
	if err != nil {
		log.Fatal(err)
	}
	return client, func() {
		client.Close()
		stopServer()
	}
}

func ExampleDial() {
	addr, stop := exampleServer()
	defer stop()

	client, err := runnel.Dial(addr, runnel.WithClientID("ticker-7"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ack, err := client.Publish(context.Background(), "quotes.AAPL", []byte("187.20"))
	fmt.Println(ack.Position.Offset, err)
	// Output: 1 <nil>
}

func ExampleDial_list() {
	first, stopFirst := exampleServer()
	defer stopFirst()
	second, stopSecond := exampleServer()
	defer stopSecond()

	// One of them, at random. When it stops the client moves to the other.
	client, err := runnel.Dial(first + "," + second)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ack, err := client.Publish(context.Background(), "quotes.AAPL", []byte("187.20"))
	fmt.Println(ack.Position.Offset, err)
	// Output: 1 <nil>
}

func ExampleWithBalancing() {
	// A gateway that has many streams spreads them over all servers behind a name.
	client, err := runnel.Dial("dns:///runnel.example:50051", runnel.WithBalancing(runnel.LeastRequest))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleWithResolver() {
	// A resolver finds servers in a way of its own. This one, of grpc's, is for tests; package discovery/etcd has one for etcd.
	servers := manual.NewBuilderWithScheme("directory")
	servers.InitialState(resolver.State{Endpoints: []resolver.Endpoint{{Addresses: []resolver.Address{{Addr: "127.0.0.1:50051"}}}}})
	client, err := runnel.Dial("directory:///runnel", runnel.WithResolver(servers))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleClient_Publish() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	// The same id again, for example after a crash, is the same event.
	for range 2 {
		ack, err := client.Publish(ctx, "orders.7", []byte("buy"), runnel.ID("order-7"))
		fmt.Println(ack.Position.Offset, ack.Duplicate, err)
	}
	// Only if nobody was faster.
	_, err := client.Publish(ctx, "orders.7", []byte("sell"), runnel.Expect(0))
	fmt.Println(err)
	// Output:
	// 1 false <nil>
	// 1 true <nil>
	// OFFSET_CONFLICT: the topic's newest event is at offset 1
}

func ExampleClient_Publisher() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	p, err := client.Publisher(ctx)
	if err != nil {
		log.Fatal(err)
	}
	var last *runnel.Receipt
	for i := range 1000 {
		if last, err = p.Publish(ctx, "ticks.EURUSD", fmt.Append(nil, i)); err != nil {
			log.Fatal(err)
		}
	}
	ack, err := last.Wait(ctx)
	fmt.Println(ack.Position.Offset, err)
	fmt.Println(p.Close(ctx))
	// Output:
	// 1000 <nil>
	// <nil>
}

func ExampleClient_Upload() {
	client, stop := exampleClient()
	defer stop()

	up, err := client.Upload(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	for i := range 3 {
		if err := up.Send("logs.app", fmt.Appendf(nil, "line %d", i)); err != nil {
			log.Fatal(err)
		}
	}
	sum, err := up.Close()
	fmt.Println(sum.Accepted, sum.Last.Offset, err)
	// Output: 3 3 <nil>
}

func ExampleClient_Subscribe() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for _, price := range []string{"187.20", "187.25"} {
		if _, err := client.Publish(ctx, "quotes.AAPL", []byte(price)); err != nil {
			log.Fatal(err)
		}
	}

	sub, err := client.Subscribe(ctx, "quotes.>", runnel.From(runnel.Earliest()))
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	for event, err := range sub.Events(ctx) {
		fmt.Println(event.Topic, string(event.Payload), err)
		if sub.Position().Offset == 2 {
			break
		}
	}
	// Output:
	// quotes.AAPL 187.20 <nil>
	// quotes.AAPL 187.25 <nil>
}

// A position is text that another process can resume from.
func ExampleSubscription_Position() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for i := range 3 {
		if _, err := client.Publish(ctx, "jobs.build", fmt.Append(nil, i)); err != nil {
			log.Fatal(err)
		}
	}
	sub, err := client.Subscribe(ctx, "jobs.>", runnel.From(runnel.Earliest()))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := sub.Next(ctx); err != nil {
		log.Fatal(err)
	}
	saved := sub.Position().String()
	sub.Close()

	position, err := runnel.ParsePosition(saved)
	if err != nil {
		log.Fatal(err)
	}
	sub, err = client.Subscribe(ctx, "jobs.>", runnel.From(runnel.After(position)))
	if err != nil {
		log.Fatal(err)
	}
	defer sub.Close()
	event, err := sub.Next(ctx)
	fmt.Println(string(event.Payload), err)
	// Output: 1 <nil>
}

func ExampleClient_Session() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()

	s, err := client.Session(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	commands, err := s.Subscribe(ctx, "device.7.commands")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := s.Publish(ctx, "device.7.commands", []byte("reboot")); err != nil {
		log.Fatal(err)
	}
	event, err := commands.Next(ctx)
	fmt.Println(string(event.Payload), err)
	// Output: reboot <nil>
}

func ExampleClient_History() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for i := range 5 {
		if _, err := client.Publish(ctx, "logs.app", fmt.Appendf(nil, "line %d", i)); err != nil {
			log.Fatal(err)
		}
	}
	for event, err := range client.History(ctx, "logs.app", runnel.Begin(runnel.LastN(2))) {
		fmt.Println(event.Position.Offset, string(event.Payload), err)
	}
	// Output:
	// 4 line 3 <nil>
	// 5 line 4 <nil>
}

func ExampleClient_Topics() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	for _, name := range []string{"quotes.MSFT", "quotes.AAPL"} {
		if _, err := client.Publish(ctx, name, []byte("1")); err != nil {
			log.Fatal(err)
		}
	}
	for topic, err := range client.Topics(ctx, "quotes.*") {
		fmt.Println(topic.Name, topic.Newest, err)
	}
	one, err := client.Topic(ctx, "quotes.MSFT")
	fmt.Println(string(one.Last.Payload), err)
	// Output:
	// quotes.AAPL 2 <nil>
	// quotes.MSFT 1 <nil>
	// 1 <nil>
}

// A session that lives longer than a token: the source is asked for the next one in good time, and no stream is interrupted.
func ExampleWithTokenSource() {
	fetch := func(context.Context) (value string, lifetime time.Duration, err error) {
		return "token from an identity provider", time.Hour, nil
	}
	client, err := runnel.Dial("runnel.example.com:50051",
		runnel.WithTransportCredentials(credentials.NewTLS(&tls.Config{})),
		runnel.WithTokenSource(func(ctx context.Context) (runnel.Token, error) {
			value, lifetime, err := fetch(ctx)
			return runnel.Token{Value: value, Expires: time.Now().Add(lifetime)}, err
		}))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

// An operator throws somebody out, everywhere at once.
func ExampleClient_Revoke() {
	client, err := runnel.Dial("runnel.example.com:50051", runnel.WithToken("of an administrator"))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, cut, err := client.Revoke(context.Background(), runnel.RevokedSubject, "mallory", time.Time{})
	fmt.Println(cut, err)
}

// Operators' calls beyond those of Client, with the generated client.
func ExampleAdmin() {
	client, err := runnel.Dial("127.0.0.1:50051")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	list, err := runnel.Admin(context.Background(), client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
		return s.ListSessions(ctx, &runnelv1.ListSessionsRequest{Order: runnelv1.SessionOrder_SESSION_ORDER_LAG, Limit: 10})
	})
	fmt.Println(list.GetMatched(), err)
}
