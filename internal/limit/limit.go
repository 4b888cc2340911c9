// Package limit bounds what clients do per second, and what they hold at once: each client, each subject, each namespace, and all
// together. Rates are token buckets (golang.org/x/time/rate) that hold a second's worth.
//
// A bucket outlives its client's connections for a while, so that coming back does not fill it.
//
// All types are safe for concurrent use. A nil Limiter, and the nil Client it gives out, limit nothing.
package limit

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits are those of one client, subject or namespace, or of all. 0 is no limit.
type Limits struct {
	Events        int   // published per second
	Bytes         int64 // published per second, payloads and headers
	Sessions      int   // open at once: Subscribe and EstablishStream calls; not for namespaces
	Subscriptions int   // at once
}

// Config is what a Limiter enforces.
type Config struct {
	Server, Client, Subject Limits
	Namespaces              map[string]Limits
	Namespace               Limits // of those that are not in Namespaces
	// Hit, if set, is called for each refusal, under a lock, with the limit's name: one of a few words. It must not block.
	Hit func(limit string)
	// Event is the size of the largest event: a bucket for bytes holds at least that, or it could never pass.
	Event int64
}

func (c *Config) none() bool {
	if c.Server != (Limits{}) || c.Client != (Limits{}) || c.Subject != (Limits{}) || c.Namespace != (Limits{}) {
		return false
	}
	for _, l := range c.Namespaces {
		if l != (Limits{}) {
			return false
		}
	}
	return true
}

// Error says which limit was hit, and when to try again.
type Error struct {
	What  string
	Retry time.Duration
}

func (e *Error) Error() string { return "too many " + e.What }

type scope string

const (
	ofServer    scope = "of this server"
	ofClient    scope = "of this client"
	ofSubject   scope = "of this subject"
	ofNamespace scope = "of this namespace"
)

// word is the scope as metrics spell it.
func (s scope) word() string { return strings.TrimPrefix(string(s), "of this ") }

type key struct {
	scope scope
	name  string
}

// keepFor is how long a bucket stays that nobody uses: by then it is full again, whatever was taken.
const keepFor = 10 * time.Second

// busyRetry is when to try again for what is free only once somebody lets go of it.
const busyRetry = time.Second

// Limiter enforces a Config.
type Limiter struct {
	mu      sync.Mutex
	cfg     Config
	off     bool
	buckets map[key]*bucket
	swept   time.Time
}

// bucket is all of one client, subject or namespace. Its counts are guarded by the Limiter's mu.
type bucket struct {
	scope         scope
	limits        Limits
	events, bytes *rate.Limiter
	refs          int
	idle          time.Time // since when refs is 0
	sessions      int
	subscriptions int
}

func (l *Limiter) hit(of scope, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hitLocked(of, what)
}

func (l *Limiter) hitLocked(of scope, what string) {
	if l.cfg.Hit != nil {
		l.cfg.Hit(of.word() + "_" + what)
	}
}

// New returns a Limiter.
func New(cfg Config) *Limiter {
	l := &Limiter{buckets: map[key]*bucket{}, swept: time.Now()}
	l.Set(cfg)
	return l
}

// Set changes what is enforced, for those that are there too. Nobody loses what it holds.
func (l *Limiter) Set(cfg Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cfg, l.off = cfg, cfg.none()
	for k, b := range l.buckets {
		b.set(l.limitsLocked(k), cfg.Event)
	}
}

func (l *Limiter) limitsLocked(k key) Limits {
	switch k.scope {
	case ofServer:
		return l.cfg.Server
	case ofClient:
		return l.cfg.Client
	case ofSubject:
		return l.cfg.Subject
	}
	if n, ok := l.cfg.Namespaces[k.name]; ok {
		return n
	}
	return l.cfg.Namespace
}

func (b *bucket) set(limits Limits, event int64) {
	b.limits = limits
	perSecond(&b.events, int64(limits.Events), 1)
	perSecond(&b.bytes, limits.Bytes, event)
}

// perSecond makes, or changes, a bucket of n per second that holds at least least. A new one is full.
func perSecond(limiter **rate.Limiter, n, least int64) {
	limit, burst := rate.Inf, 0
	if n > 0 {
		limit, burst = rate.Limit(n), int(min(max(n, least), math.MaxInt32))
	}
	if *limiter == nil {
		*limiter = rate.NewLimiter(limit, burst)
		return
	}
	(*limiter).SetLimit(limit)
	(*limiter).SetBurst(burst)
}

func (l *Limiter) takeLocked(k key) *bucket {
	b := l.buckets[k]
	if b == nil {
		b = &bucket{scope: k.scope}
		b.set(l.limitsLocked(k), l.cfg.Event)
		l.buckets[k] = b
	}
	b.refs++
	return b
}

func (l *Limiter) sweepLocked(now time.Time) {
	if now.Sub(l.swept) < keepFor {
		return
	}
	l.swept = now
	for k, b := range l.buckets {
		if b.refs == 0 && now.Sub(b.idle) >= keepFor && b.full(now) {
			delete(l.buckets, k)
		}
	}
}

// full reports whether forgetting the bucket gives nothing away.
func (b *bucket) full(now time.Time) bool {
	return b.events.TokensAt(now) >= float64(b.events.Burst()) && b.bytes.TokensAt(now) >= float64(b.bytes.Burst())
}

// Client is one client's use of the limits, for one call or session.
type Client struct {
	l    *Limiter
	mine []*bucket // the server's, the client's, the subject's

	mu      sync.Mutex
	refused time.Time // nothing is taken before, so that what comes behind a refused event does not overtake it
	spaces  map[string]*bucket
	open    bool
	// subscriptions by namespace
	subscriptions map[string]int
}

// Client begins a client's use; its Close ends it. subject may be empty.
func (l *Limiter) Client(client, subject string) *Client {
	if l == nil {
		return nil
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off {
		return nil
	}
	l.sweepLocked(now)
	c := &Client{l: l, mine: []*bucket{l.takeLocked(key{ofServer, ""}), l.takeLocked(key{ofClient, client})}}
	if subject != "" {
		c.mine = append(c.mine, l.takeLocked(key{ofSubject, subject}))
	}
	return c
}

// Close gives back everything that the client holds.
func (c *Client) Close() {
	if c == nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	total := 0
	for space, n := range c.subscriptions {
		c.spaces[space].subscriptions -= n
		total += n
	}
	for _, b := range c.mine {
		b.subscriptions -= total
		if c.open {
			b.sessions--
		}
		b.leave(now)
	}
	for _, b := range c.spaces {
		b.leave(now)
	}
	c.mine, c.spaces, c.subscriptions = nil, nil, nil
}

func (b *bucket) leave(now time.Time) {
	if b.refs--; b.refs == 0 {
		b.idle = now
	}
}

// space is the bucket of a namespace.
func (c *Client) spaceLocked(namespace string) *bucket {
	b := c.spaces[namespace]
	if b == nil {
		if c.spaces == nil {
			c.spaces = map[string]*bucket{}
		}
		c.l.mu.Lock()
		b = c.l.takeLocked(key{ofNamespace, namespace})
		c.l.mu.Unlock()
		c.spaces[namespace] = b
	}
	return b
}

// Publish takes an event of that many bytes out of all buckets, or none. namespace must be one that exists. An error is an *Error.
func (c *Client) Publish(namespace string, bytes int) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if wait := c.refused.Sub(now); wait > 0 {
		return &Error{"events " + string(ofClient) + ", after one that was refused", wait}
	}
	var taken [2 * 4]*rate.Reservation // two of each bucket
	n := 0
	var worst *Error
	var of scope
	var what string
	take := func(limiter *rate.Limiter, many int, kind string, from scope) {
		r := limiter.ReserveN(now, many)
		wait := busyRetry
		if r.OK() {
			taken[n] = r
			n++
			if wait = r.DelayFrom(now); wait == 0 {
				return
			}
		}
		if worst == nil || wait > worst.Retry {
			what, of = kind, from
			worst = &Error{fmt.Sprintf("%s per second %s", kind, from), wait}
		}
	}
	space := c.spaceLocked(namespace)
	for _, b := range c.mine {
		take(b.events, 1, "events", b.scope)
		take(b.bytes, bytes, "bytes", b.scope)
	}
	take(space.events, 1, "events", space.scope)
	take(space.bytes, bytes, "bytes", space.scope)
	if worst == nil {
		return nil
	}
	for _, r := range taken[:n] {
		r.CancelAt(now)
	}
	c.l.hit(of, what)
	c.refused = now.Add(worst.Retry)
	return worst
}

// Session notes a session, once.
func (c *Client) Session() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	for _, b := range c.mine {
		if most := b.limits.Sessions; most > 0 && b.sessions >= most {
			c.l.hitLocked(b.scope, "sessions")
			return &Error{"sessions " + string(b.scope), busyRetry}
		}
	}
	for _, b := range c.mine {
		b.sessions++
	}
	c.open = true
	return nil
}

// Subscribe notes a subscription in a namespace that exists.
func (c *Client) Subscribe(namespace string) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	space := c.spaceLocked(namespace)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	all := append(c.mine[:len(c.mine):len(c.mine)], space)
	for _, b := range all {
		if most := b.limits.Subscriptions; most > 0 && b.subscriptions >= most {
			c.l.hitLocked(b.scope, "subscriptions")
			return &Error{"subscriptions " + string(b.scope), busyRetry}
		}
	}
	for _, b := range all {
		b.subscriptions++
	}
	if c.subscriptions == nil {
		c.subscriptions = map[string]int{}
	}
	c.subscriptions[namespace]++
	return nil
}

// Unsubscribe notes the end of a subscription.
func (c *Client) Unsubscribe(namespace string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subscriptions[namespace] == 0 {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.subscriptions[namespace]--
	for _, b := range c.mine {
		b.subscriptions--
	}
	c.spaces[namespace].subscriptions--
}
