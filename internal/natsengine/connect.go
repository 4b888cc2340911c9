package natsengine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/runnelhq/runnel/internal/engine"
)

// Credentials say who this node is to NATS. At most one of User, Token, NKeySeed and CredsFile is set.
type Credentials struct {
	User, Password string
	Token          string
	NKeySeed       string // file with an NKEY seed
	CredsFile      string // file with a JWT and its seed
	CA             string // file with the certificates that NATS servers are checked against
	Cert, Key      string // files with this node's certificate
}

func (c *Credentials) options() ([]nats.Option, error) {
	var list []nats.Option
	ways := 0
	add := func(set bool, o func() (nats.Option, error)) error {
		if !set {
			return nil
		}
		ways++
		opt, err := o()
		if err != nil {
			return fmt.Errorf("cannot use the credentials for NATS: %s", oneLine(err))
		}
		list = append(list, opt)
		return nil
	}
	err := errors.Join(
		add(c.User != "", func() (nats.Option, error) { return nats.UserInfo(c.User, c.Password), nil }),
		add(c.Token != "", func() (nats.Option, error) { return nats.Token(c.Token), nil }),
		add(c.NKeySeed != "", func() (nats.Option, error) { return nats.NkeyOptionFromSeed(c.NKeySeed) }),
		add(c.CredsFile != "", func() (nats.Option, error) {
			_, err := os.Stat(c.CredsFile) // it is read when the server asks for it
			return nats.UserCredentials(c.CredsFile), err
		}),
	)
	if err != nil {
		return nil, err
	}
	if ways > 1 {
		return nil, errors.New("more than one kind of credentials for NATS: give a user, a token, an NKEY seed or a credentials file")
	}
	if c.CA != "" {
		list = append(list, nats.RootCAs(c.CA))
	}
	if c.Cert != "" || c.Key != "" {
		list = append(list, nats.ClientCert(c.Cert, c.Key))
	}
	return list, nil
}

// errNoResponders: nobody took the message, so nothing was stored.
var errNoResponders = errors.New("no NATS server answers for it")

// errLost: the connection broke; what became of the message is unknown.
var errLost = errors.New("connection to NATS lost")

// link is one connection to NATS, with an inbox for the answers to what is sent over it.
type link struct {
	nc     *nats.Conn
	inbox  string
	closed chan struct{} // closed when the connection is closed for good

	mu      sync.Mutex
	calls   map[string]*call
	next    uint64
	lost    chan struct{} // closed and replaced when the connection breaks
	dropped map[*nats.Subscription]chan struct{}
	bad     time.Time // since when JetStream has not answered; zero: it has
	good    time.Time // when it answered last
}

// call is a message that answers are expected to.
type call struct {
	l       *link
	token   string
	answers chan *nats.Msg
	lost    <-chan struct{}
}

// What a connection does about its health. A server that says nothing for two pings is given up.
const (
	dialTimeout   = 3 * time.Second
	pingInterval  = 5 * time.Second
	reconnectWait = 200 * time.Millisecond
	// receiveBytes bounds what waits in the process of what NATS has sent.
	receiveBytes = 256 << 20
)

// dial connects. Once connected it reconnects for ever.
func dial(o *Options, what string) (*link, error) {
	l := &link{
		closed: make(chan struct{}), lost: make(chan struct{}),
		calls: map[string]*call{}, dropped: map[*nats.Subscription]chan struct{}{},
	}
	opts, err := o.Credentials.options()
	if err != nil {
		return nil, err
	}
	opts = append(opts,
		nats.Name(strings.TrimSpace("runnel "+o.Name+" "+what)), nats.Timeout(dialTimeout), nats.PingInterval(pingInterval), nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1), nats.ReconnectWait(reconnectWait), nats.IgnoreAuthErrorAbort(),
		// Nothing is kept for later: what cannot be sent now has not been stored, and its sender learns that at once.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { l.broke(o.Logger, what, err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			o.Logger.Info("connected to NATS again", "connection", what, "server", nc.ConnectedServerName())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) { l.failed(o.Logger, what, sub, err) }),
		nats.ClosedHandler(func(*nats.Conn) { close(l.closed) }),
	)
	nc, err := nats.Connect(strings.Join(o.URLs, ","), opts...)
	if err != nil {
		return nil, dialError(o.URLs, err)
	}
	l.nc = nc
	l.inbox = nats.NewInbox() + "."
	sub, err := nc.Subscribe(l.inbox+"*", l.answer)
	if err == nil {
		err = sub.SetPendingLimits(-1, receiveBytes)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("cannot listen on NATS: %s", oneLine(err))
	}
	return l, nil
}

func dialError(urls []string, err error) error {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), strings.Contains(strings.ToLower(err.Error()), "authorization"):
		return errors.New("NATS refuses this node's credentials")
	case errors.Is(err, nats.ErrSecureConnRequired):
		return errors.New("NATS asks for TLS: name the certificates that its servers are checked against")
	default:
		return fmt.Errorf("NATS is not reachable at %s: %s", strings.Join(urls, ", "), oneLine(err))
	}
}

// close ends the connection and waits for that.
func (l *link) close() {
	l.nc.Close()
	<-l.closed
}

func (l *link) up() bool { return l.nc.IsConnected() }

func (l *link) broke(log *slog.Logger, what string, err error) {
	l.mu.Lock()
	close(l.lost)
	l.lost = make(chan struct{})
	l.mu.Unlock()
	if err != nil {
		log.Warn("connection to NATS lost", "connection", what, "error", oneLine(err))
	}
}

func (l *link) failed(log *slog.Logger, what string, sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		l.mu.Lock()
		if d := l.dropped[sub]; d != nil {
			close(d)
			delete(l.dropped, sub)
		}
		l.mu.Unlock()
	}
	log.Warn("NATS reports an error", "connection", what, "error", oneLine(err))
}

// watch returns what is closed when the connection breaks.
func (l *link) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// drops returns what is closed when messages of a subscription were dropped because they came faster than they were taken.
func (l *link) drops(sub *nats.Subscription) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := make(chan struct{})
	l.dropped[sub] = d
	return d
}

// unsubscribe ends a subscription.
func (l *link) unsubscribe(sub *nats.Subscription) {
	l.mu.Lock()
	delete(l.dropped, sub)
	l.mu.Unlock()
	_ = sub.Unsubscribe() // fails only if the connection is gone, and the subscription with it
}

// begin prepares to send something that is answered by at most n messages. The caller must end the call.
func (l *link) begin(n int) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	c := &call{l: l, token: strconv.FormatUint(l.next, 36), answers: make(chan *nats.Msg, n), lost: l.lost}
	l.calls[c.token] = c
	return c
}

func (c *call) reply() string { return c.l.inbox + c.token }

func (c *call) end() {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	delete(c.l.calls, c.token)
}

// answer hands an answer to its call. Where the call has all it asked for, or is over, the answer is dropped.
func (l *link) answer(m *nats.Msg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.calls[m.Subject[len(l.inbox):]]
	if c == nil {
		return
	}
	select {
	case c.answers <- m:
	default:
	}
}

// await waits for the next answer.
func (c *call) await(ctx context.Context, wait time.Duration) (*nats.Msg, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case m := <-c.answers:
		if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
			return nil, errNoResponders
		}
		return m, nil
	case <-c.lost:
		return nil, errLost
	case <-timer.C:
		return nil, errSilent
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// errSilent: no answer came in time.
var errSilent = errors.New("NATS does not answer")

// ask sends a request and returns its answer.
func (l *link) ask(ctx context.Context, subject string, data []byte, wait time.Duration) (*nats.Msg, error) {
	c := l.begin(1)
	defer c.end()
	if err := l.nc.PublishRequest(subject, c.reply(), data); err != nil {
		return nil, sendError(err)
	}
	return c.await(ctx, wait)
}

// errAway: there is no connection; nothing was sent.
var errAway = errors.New("not connected to NATS")

func sendError(err error) error {
	switch {
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting):
		return errAway
	case errors.Is(err, nats.ErrConnectionClosed):
		return engine.ErrClosed
	default:
		return err
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
