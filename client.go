package runnel

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/compress"
	"github.com/runnelhq/runnel/internal/id"
)

// Client talks to one of the servers that its target leads to, or as WithBalancing says, over connections that it keeps up, of which it has
// more where it has many streams. A server that stops may send it to another.
type Client struct {
	target  string
	dialing []grpc.DialOption
	o       options
	ids     *id.Source
	// tokens is nil without a source.
	tokens  *tokens
	retries retryBudget
	counts  counts

	mu         sync.Mutex
	link       *link
	perChannel int           // streams
	endpoints  []string      // where else a server has said that clients may go
	spread     time.Duration // over which clients of a server that is gone go elsewhere
	sessions   map[*Session]State

	ctx  context.Context
	stop context.CancelFunc
	// group is every goroutine of every session.
	group sync.WaitGroup
}

type options struct {
	credentials    credentials.TransportCredentials
	clientID       string
	token          string
	source         TokenSource
	connectTimeout time.Duration
	callTimeout    time.Duration
	compression    string
	balancing      Balancing
	resolvers      []resolver.Builder
	dial           []grpc.DialOption
}

// Option configures Dial.
type Option func(*options)

// WithTransportCredentials sets TLS. Without it the connection is not encrypted.
func WithTransportCredentials(c credentials.TransportCredentials) Option {
	return func(o *options) { o.credentials = c }
}

// WithClientID names the client to the server: 1 to 128 printable ASCII characters without spaces.
func WithClientID(id string) Option { return func(o *options) { o.clientID = id } }

// WithToken sends a bearer token with every call. Streams end when it expires; WithTokenSource renews.
func WithToken(token string) Option { return func(o *options) { o.token = token } }

// WithConnectTimeout bounds how long a call waits for the first connection; default 5 s.
func WithConnectTimeout(d time.Duration) Option { return func(o *options) { o.connectTimeout = d } }

// WithCallTimeout bounds how long a call waits for its answer before its outcome is taken for unknown, and it is made again if there is time;
// default 15 s. Streams have heartbeats instead.
func WithCallTimeout(d time.Duration) Option { return func(o *options) { o.callTimeout = d } }

// WithCompression compresses what is sent with "gzip" or "zstd", and asks the server to answer in the same way. It saves bytes and costs
// CPU at both ends, the server's for each subscriber; without it nothing is compressed.
func WithCompression(name string) Option { return func(o *options) { o.compression = name } }

// WithDialOptions passes options to grpc, after the client's own.
func WithDialOptions(more ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, more...) }
}

// Windows of HTTP/2 flow control, fixed: a window that grows makes the server work for every event, and lets stale events pile up.
const (
	streamWindow = 1 << 20
	connWindow   = 4 << 20
)

// Dial returns a client of the servers at target. It does not wait for a connection. A target is
//
//   - an address, HOST:PORT, as "127.0.0.1:50051". A name may stand for several addresses;
//   - a list of addresses, "a:1,b:2,c:3" or "static:///a:1,b:2,c:3";
//   - "dns:///HOST:PORT", which is looked up again when a connection breaks;
//   - SCHEME:///NAME, where grpc or WithResolver knows a resolver of the scheme, as "etcd:///NAME" with package discovery/etcd.
func Dial(target string, opts ...Option) (*Client, error) {
	c := &Client{ids: id.NewSource(), perChannel: streamsPerChannel, o: options{
		credentials: insecure.NewCredentials(), connectTimeout: 5 * time.Second, callTimeout: 15 * time.Second, balancing: PickFirst,
	}}
	for _, set := range opts {
		set(&c.o)
	}
	if c.o.source != nil {
		c.tokens = newTokens(c.o.source)
	}
	if err := compress.Check(c.o.compression); err != nil {
		return nil, err
	}
	calls := []grpc.CallOption{grpc.MaxCallRecvMsgSize(8 << 20), grpc.ForceCodecV2(newCodec())}
	if c.o.compression != "" {
		calls = append(calls, grpc.UseCompressor(c.o.compression))
	}
	policy, err := c.o.balancing.serviceConfig()
	if err != nil {
		return nil, err
	}
	dialing := []grpc.DialOption{
		grpc.WithTransportCredentials(c.o.credentials),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithDefaultCallOptions(calls...),
		grpc.WithDisableRetry(), // retries are ours: they know what may be sent again
		grpc.WithDefaultServiceConfig(policy),
		grpc.WithDisableServiceConfig(), // the policy is the application's, not that of who runs the DNS
	}
	if c.o.balancing == Weighted {
		dialing = append(dialing, grpc.WithPerRPCCredentials(reporting{c}))
	}
	c.target, c.dialing = target, append(dialing, c.o.dial...)
	if c.link, err = c.dial(target, ""); err != nil {
		return nil, fmt.Errorf("bad server address %q: %w", target, err)
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c, nil
}

// Close ends everything that was made with the client and waits for it.
func (c *Client) Close() error {
	c.stop()
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	err := c.close(l)
	c.group.Wait()
	return err
}

// Ack is the server's word that an event is stored.
type Ack struct {
	ID         string
	Position   Position // offset 0 where the namespace keeps no history
	Time       time.Time
	Duplicate  bool   // the id had been stored before: this is the first publish's result
	Durability string // what the event survives: NONE, MEMORY, OS, DISK, REPLICATED
}

func ackOf(r *runnelv1.PublishResponse) Ack {
	const prefix = len("DURABILITY_")
	return Ack{
		ID: r.GetEventId(), Position: Position{r.GetEpoch(), r.GetOffset()}, Time: time.UnixMilli(r.GetTimestamp()),
		Duplicate: r.GetDuplicate(), Durability: r.GetDurability().String()[prefix:],
	}
}

// PublishOption adds to an event.
type PublishOption func(*runnelv1.PublishRequest)

// ID makes the publish idempotent beyond this process: the same id on the same topic is stored once within the server's window.
// Without it an id is made up, so that the client's own retries are idempotent.
func ID(id string) PublishOption { return func(r *runnelv1.PublishRequest) { r.EventId = id } }

// Key sets the conflation key.
func Key(key string) PublishOption { return func(r *runnelv1.PublishRequest) { r.Key = key } }

// ContentType says what the payload is.
func ContentType(t string) PublishOption {
	return func(r *runnelv1.PublishRequest) { r.ContentType = t }
}

// Header adds a header.
func Header(name, value string) PublishOption {
	return func(r *runnelv1.PublishRequest) {
		if r.Headers == nil {
			r.Headers = map[string]string{}
		}
		r.Headers[name] = value
	}
}

// Headers adds headers.
func Headers(headers map[string]string) PublishOption {
	return func(r *runnelv1.PublishRequest) {
		for name, value := range headers {
			Header(name, value)(r)
		}
	}
}

// Expect stores the event only if the topic's newest event is at this offset (0: it has none); else OFFSET_CONFLICT.
func Expect(offset uint64) PublishOption {
	return func(r *runnelv1.PublishRequest) { r.ExpectedOffset = &offset }
}

func (c *Client) request(topic string, payload []byte, opts []PublishOption) (r *runnelv1.PublishRequest, err error) {
	r = &runnelv1.PublishRequest{Topic: topic, Payload: payload}
	for _, set := range opts {
		set(r)
	}
	if r.GetEventId() == "" {
		r.EventId, err = c.ids.New()
	}
	return r, err
}

// Publish stores one event and returns when it is as durable as its namespace promises. An outcome that is unknown is retried with
// the same id, until ctx ends or the connect timeout has passed.
func (c *Client) Publish(ctx context.Context, topic string, payload []byte, opts ...PublishOption) (Ack, error) {
	r, err := c.request(topic, payload, opts)
	if err != nil {
		return Ack{}, err
	}
	res, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.PublishResponse, error) { return l.api.Publish(ctx, r) })
	if err != nil {
		c.counts.acknowledged(Ack{}, err)
		return Ack{}, err
	}
	ack := ackOf(res)
	c.counts.acknowledged(ack, nil)
	return ack, nil
}

// Topic describes a topic.
type Topic struct {
	Name           string
	Epoch          string
	Oldest, Newest uint64 // offsets; 0 if nothing is retained
	Last           *Event // nil if nothing is retained
	Durability     string
}

func topicOf(t *runnelv1.Topic) Topic {
	d := Topic{Name: t.GetTopic(), Epoch: t.GetEpoch(), Oldest: t.GetOldestOffset(), Newest: t.GetNewestOffset(), Durability: t.GetDurability().String()[len("DURABILITY_"):]}
	if t.GetLast() != nil {
		e := eventOf(t.GetLast(), t.GetEpoch())
		d.Last = &e
	}
	return d
}

// Topic describes one topic; one without retained events has zeros.
func (c *Client) Topic(ctx context.Context, name string) (Topic, error) {
	t, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.Topic, error) {
		return l.api.GetTopic(ctx, &runnelv1.GetTopicRequest{Topic: name})
	})
	if err != nil {
		return Topic{}, err
	}
	return topicOf(t), nil
}

// Topics lists the topics with retained events that match a pattern, in byte order. An error ends it.
func (c *Client) Topics(ctx context.Context, pattern string) iter.Seq2[Topic, error] {
	return func(yield func(Topic, error) bool) {
		r := &runnelv1.ListTopicsRequest{Pattern: pattern, PageSize: 1000}
		for {
			page, err := call(ctx, c, func(ctx context.Context, l *link) (*runnelv1.ListTopicsResponse, error) {
				return l.api.ListTopics(ctx, r)
			})
			if err != nil {
				yield(Topic{}, err)
				return
			}
			for _, t := range page.GetTopics() {
				if !yield(topicOf(t), nil) {
					return
				}
			}
			if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
				return
			}
		}
	}
}
