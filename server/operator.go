package server

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/busy"
	"github.com/runnelhq/runnel/internal/grpcapi"
	"github.com/runnelhq/runnel/internal/topic"
)

// operator is the server as AdminService sees it. Sessions, Session and Disconnect are the edge's.
type operator struct {
	*grpcapi.Service
	s *Server

	mu    sync.Mutex
	heads map[string]head // of namespaces, when they were last listed
}

type head struct {
	at     time.Time
	offset uint64
	rate   float64
}

func newOperator(s *Server, api *grpcapi.Service) *operator {
	return &operator{Service: api, s: s, heads: map[string]head{}}
}

// Info implements admin.Operator.
func (o *operator) Info() *runnelv1.GetServerInfoResponse {
	s := o.s
	e, m := s.engine.Figures(), &s.meter
	i := &runnelv1.GetServerInfoResponse{
		Version: cmp.Or(s.cfg.Version, "devel"), StartedMs: s.started.UnixMilli(), NowMs: time.Now().UnixMilli(),
		Sessions: uint32(m.Sessions.Load()), Subscriptions: uint32(m.Subscriptions.Load()), Behind: uint32(m.Behind.Load()), Namespaces: uint32(e.Namespaces),
		Delivered: m.Events.Load(), Published: s.accepted.Load(), Dropped: m.Dropped.Load(), Conflated: m.Conflated.Load(), Gaps: m.Gaps.Load(),
		SlowConsumers: m.Slow.Load(), MemoryLimitBytes: uint64(s.budget.Limit()), DiskBytes: e.DiskBytes, DiskFreeBytes: e.FreeBytes,
		CompactionDebtBytes: e.Debt, Authenticates: s.security.authority.policy != nil,
	}
	for _, k := range budget.Kinds() {
		i.MemoryUsedBytes += uint64(max(s.budget.Used(k), 0))
	}
	if err := s.ready(); err != nil {
		i.Trouble, i.Draining = err.Error(), errors.Is(err, grpcapi.ErrDraining)
	}
	return i
}

// Nodes implements admin.Operator.
func (o *operator) Nodes() *runnelv1.ListNodesResponse { return o.s.nodes.list() }

// rateOver is the least time over which a rate is taken.
const rateOver = 500 * time.Millisecond

// Namespaces implements admin.Operator.
func (o *operator) Namespaces() (list []*runnelv1.NamespaceInfo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for _, n := range o.s.engine.Namespaces() {
		h, known := o.heads[n.Namespace]
		if past := now.Sub(h.at); !known || past >= rateOver {
			if known {
				h.rate = float64(n.Head-min(h.offset, n.Head)) / past.Seconds()
			}
			h.at, h.offset = now, n.Head
			o.heads[n.Namespace] = h
		}
		i := &runnelv1.NamespaceInfo{
			Namespace: n.Namespace, Durability: n.Durability, History: n.History, Epoch: n.Epoch, NewestOffset: n.Head, Bytes: n.Bytes, EventsPerS: h.rate,
		}
		if n.History && n.Oldest <= n.Head {
			i.OldestOffset = n.Oldest
		}
		list = append(list, i)
	}
	return list
}

// BusyTopics implements admin.Operator.
func (o *operator) BusyTopics(ctx context.Context, p *topic.Pattern, order runnelv1.BusyTopicOrder, limit int) (list []*runnelv1.BusyTopic, matched int, err error) {
	var match func(topic.Name) bool
	if p != nil {
		match = p.Match
	}
	by := busy.ByEvents
	if order == runnelv1.BusyTopicOrder_BUSY_TOPIC_ORDER_BYTES {
		by = busy.ByBytes
	}
	found, matched := o.s.busy.List(time.Now(), match, by, limit)
	for _, t := range found {
		i := &runnelv1.BusyTopic{
			Topic: t.Name.String(), EventsPerS: t.Events, BytesPerS: t.Bytes, MissedEventsPerS: t.MissedEvents, MissedBytesPerS: t.MissedBytes,
		}
		// Rates are worth telling while the log cannot be read; who no longer waits is told nothing.
		// A namespace that was deleted meanwhile is not to be opened anew for this.
		if log := o.s.engine.Opened(t.Name.Namespace()); log != nil {
			if kept, ok, err := log.Topic(ctx, t.Name); err == nil && ok {
				i.OldestOffset, i.NewestOffset, i.NewestBytes = kept.Oldest, kept.Newest, uint64(len(kept.Last.Wire))
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, 0, o.Fail(ctx, err)
		}
		list = append(list, i)
	}
	return list, matched, nil
}

// Trim implements admin.Operator.
func (o *operator) Trim(ctx context.Context, namespace string, upTo uint64) (uint64, error) {
	log, err := o.s.engine.Log(namespace)
	if err != nil {
		return 0, o.Fail(ctx, err)
	}
	oldest, err := log.Trim(ctx, upTo)
	return oldest, o.Fail(ctx, err)
}

// Delete implements admin.Operator.
func (o *operator) Delete(ctx context.Context, namespace string) error {
	if err := o.s.engine.Delete(ctx, namespace); err != nil {
		return o.Fail(ctx, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.heads, namespace)
	return nil
}

// Drain implements admin.Operator.
func (o *operator) Drain() { o.s.stopOnce.Do(func() { close(o.s.stopping) }) }

// Reload implements admin.Operator.
func (o *operator) Reload() ([]string, error) {
	if o.s.cfg.Reread == nil {
		return nil, errors.New("this server was started without a configuration that could be read again")
	}
	cfg, also, err := o.s.cfg.Reread()
	if err != nil {
		return nil, err
	}
	restart, err := o.s.Reload(cfg)
	if err != nil {
		return nil, err
	}
	return append(restart, also...), nil
}

// Configuration implements admin.Operator.
func (o *operator) Configuration() (string, error) {
	if o.s.cfg.Text == nil {
		return "", errors.New("this server was started by a program that does not tell its configuration")
	}
	return o.s.cfg.Text()
}
