// Package server is the Runnel server: it wires the engine, the hub, the broker and the gRPC edge together, and embeds into any
// program.
//
//	s, err := server.New(server.Config{Dev: true})
//	...
//	err = s.Run(ctx) // until ctx ends; then sessions are told, and cut after at most Config.DrainTimeout
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/reflection"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/admin"
	"github.com/runnelhq/runnel/internal/broker"
	"github.com/runnelhq/runnel/internal/budget"
	"github.com/runnelhq/runnel/internal/busy"
	_ "github.com/runnelhq/runnel/internal/compress" // clients may ask for it
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/grpcapi"
	"github.com/runnelhq/runnel/internal/hub"
	"github.com/runnelhq/runnel/internal/session"
	"github.com/runnelhq/runnel/internal/telemetry"
)

const (
	heartbeat    = 15 * time.Second
	silence      = 60 * time.Second
	handshake    = 10 * time.Second
	firstMessage = 10 * time.Second // of a call that begins with one
	requestExtra = 64 << 10         // a request may be this much larger than its payload
	busyTopics   = 8192             // are counted, in half a megabyte and their names: enough to find the busiest 1,000
)

// Server is one Runnel server. Its methods are safe for concurrent use.
type Server struct {
	cfg      Config
	listener net.Listener
	admin    net.Listener // nil: none
	engine   storage
	node     string // who this server is among others
	nodes    *nodes
	draining atomic.Bool
	metrics  *admin.Metrics
	health   *health.Server
	budget   *budget.Budget
	security *security
	meter    session.Meter
	accepted atomic.Uint64                   // events published
	busy     *busy.Counter                   // the busiest topics
	api      atomic.Pointer[grpcapi.Service] // nil before Run
	spaces   atomic.Pointer[spaces]
	sent     grpcapi.Sent
	started  time.Time
	stopping chan struct{} // closed when an operator drains
	stopOnce sync.Once
	// mostSessions is limits.server_sessions, which may be reloaded.
	mostSessions atomic.Int64
	watchers     context.Context // of streams that are not sessions
	unwatch      context.CancelFunc

	mu  sync.Mutex
	ran bool
}

// New opens the data directory, or connects to NATS, and opens the listeners; Run serves. Errors are one line that says what to do. Without Run, Close
// frees what was opened.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, listener: cfg.Listener, metrics: admin.NewMetrics(admin.Words{Kinds: grpcapi.Kinds(), Results: broker.Results, Durabilities: broker.Durabilities()}), health: health.NewServer(), started: time.Now(), stopping: make(chan struct{})}
	s.watchers, s.unwatch = context.WithCancel(context.Background())
	s.mostSessions.Store(int64(cfg.Limits.ServerSessions))
	s.spaces.Store(newSpaces(&cfg))
	if s.security, err = newSecurity(&cfg); err != nil {
		return nil, err
	}
	s.budget = budget.New(cfg.Limits.MemoryBytes)
	s.busy = busy.New(busyTopics, s.started)
	s.metrics.Figures(s.figures)
	if s.listener == nil {
		if s.listener, err = listen(cfg.Listen, "--listen"); err != nil {
			return nil, err
		}
	}
	if cfg.Admin != "off" {
		if s.admin, err = listen(cfg.Admin, "--admin"); err != nil {
			return nil, errors.Join(err, s.listener.Close())
		}
	}
	host, _ := os.Hostname() // without a name the port will do
	s.node = nodeID(cfg.Node, host, s.listener.Addr())
	if s.engine, err = s.open(); err != nil {
		s.closeListeners()
		return nil, err
	}
	if err := s.security.open(&cfg, s.metrics, s.openRevocations); err != nil {
		s.closeListeners()
		return nil, errors.Join(err, s.engine.Close())
	}
	if err := s.join(); err != nil {
		s.closeListeners()
		return nil, errors.Join(err, s.engine.Close(), s.security.close())
	}
	return s, nil
}

func listen(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("cannot listen on %s: the address is in use; stop what uses it or choose another with %s", address, flag)
	case err != nil:
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return l, nil
}

func (s *Server) engineConfig(name string) (engine.Config, bool) {
	n, ok := s.spaces.Load().of(name)
	return engine.Config{
		History: engine.History(n.History), MaxEvents: n.MaxEvents, MaxBytes: n.MaxBytes, MaxAge: n.MaxAge,
		DedupWindow: n.DedupWindow, DedupIDs: n.DedupIDs,
	}, ok
}

func (s *Server) rules(name string) broker.Rules {
	n, _ := s.spaces.Load().of(name)
	r := broker.Rules{Overflow: policies[n.Overflow], MaxLag: n.MaxLag, MaxLagAge: n.MaxLagAge}
	for _, p := range n.Policies {
		r.Allowed = append(r.Allowed, policies[p])
	}
	return r
}

// Addr is where gRPC is served.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// AdminAddr is where metrics and health checks are served; nil if they are off.
func (s *Server) AdminAddr() net.Addr {
	if s.admin == nil {
		return nil
	}
	return s.admin.Addr()
}

func (s *Server) closeListeners() {
	s.listener.Close() // nothing can be done about an error here
	if s.admin != nil {
		s.admin.Close()
	}
}

// Close frees what New has opened, if Run was never called; otherwise Run does.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ran {
		return nil
	}
	s.ran = true
	s.closeListeners()
	s.nodes.leave()
	return errors.Join(s.engine.Close(), s.security.close())
}

// Run serves until ctx ends, then drains: health says NOT_SERVING, what Config.Announce has announced is withdrawn, sessions are told to
// move and are ended, and what is still there after Config.DrainTimeout is cut. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	ran := s.ran
	s.ran = true
	s.mu.Unlock()
	if ran {
		return errors.New("server: Run was called before, or the server is closed")
	}
	s.meter.Delay = s.metrics.Delayed
	tel, err := s.telemetry(ctx)
	if err != nil {
		s.closeListeners()
		s.nodes.leave()
		return errors.Join(err, s.engine.Close(), s.security.close())
	}
	h := hub.New(s.engine, hub.Config{Budget: s.budget})
	replayer := session.NewReplayer()
	rules := broker.Config{
		MaxPayload: s.cfg.Limits.MaxPayloadBytes, MaxHeaders: s.cfg.Limits.MaxHeadersBytes,
		MaxSubscriptions: s.cfg.Limits.MaxSubscriptions, Rules: s.rules,
		Published: s.published, Committed: s.metrics.Committed, Busy: s.busy,
	}
	if tel != nil {
		rules.Traced = telemetry.Traced
		rules.Trace = func(t broker.Trace) {
			kind, id := t.By.Origin.Origin()
			tel.Published(telemetry.Event{
				Request: t.Request, Response: t.Response, Origin: [2]string{kind, id}, Accepted: t.Accepted, Began: t.Began, Ended: t.Ended,
			})
		}
	}
	b := broker.New(s.engine, h, rules)
	api := grpcapi.New(b, replayer, grpcapi.Config{
		Heartbeat: heartbeat, Silence: silence, SendTimeout: s.cfg.SendTimeout, MaxAge: s.cfg.MaxStreamAge, Notice: s.nodes.notice, Endpoints: s.nodes.elsewhere, MaxStreams: s.cfg.Limits.MaxStreamsPerConnection, Logger: s.cfg.Logger, Budget: s.budget,
		Meter: &s.meter,
	})
	s.api.Store(api)
	g := s.grpcServer()
	runnelv1.RegisterStreamServiceServer(g, api)
	runnelv1.RegisterAdminServiceServer(g, admin.NewService(admin.ServiceConfig{
		Administrator: s.security.guard.Load().Administrator, Revocations: s.security.revocations, Sever: s.security.guard.Load().Sever,
		Expires: s.security.guard.Load().Expires, Audit: s.security.audit, Server: newOperator(s, api),
	}))
	healthv1.RegisterHealthServer(g, s.health)
	reflection.Register(g)
	if s.cfg.Channelz {
		channelz.RegisterChannelzServiceToServer(g)
	}
	if err := orca.Register(g, orca.ServiceOptions{ServerMetricsProvider: (*reporter)(s)}); err != nil {
		panic(err) // there is a provider
	}
	s.setHealth(s.engine.Health())

	// The parts stop in the order of the data path, each waiting for its own.
	parts, stop := context.WithCancel(context.Background())
	var background errgroup.Group
	background.Go(func() error { replayer.Run(parts, 2*runtime.GOMAXPROCS(0)); return nil })
	background.Go(func() error { api.Run(parts); return nil })
	background.Go(func() error { s.watchHealth(parts); return nil })
	background.Go(func() error { s.nodes.run(parts); return nil })
	background.Go(func() error { s.security.run(parts, s.cfg.Logger); return nil })
	if s.admin != nil {
		background.Go(func() error { return admin.Serve(parts, s.admin, s.metrics, s.ready) })
	}
	var serving errgroup.Group
	failed := make(chan struct{})
	serving.Go(func() error {
		defer close(failed)
		return g.Serve(s.listener)
	})
	withdraw := s.announce()
	select {
	case <-ctx.Done():
	case <-s.stopping:
	case <-failed:
	}
	s.drain(g, api, withdraw)
	err = serving.Wait()
	if errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		err = nil
	}
	api.Close()
	h.Close()
	stop()
	return errors.Join(err, background.Wait(), s.engine.Close(), s.security.close(), s.flush(tel))
}

func (s *Server) grpcServer() *grpc.Server {
	options := []grpc.ServerOption{
		grpc.Creds(s.security.gate),
		grpc.ForceServerCodecV2(grpcapi.Codec(s.metrics.Received, &s.sent)),
		grpc.MaxConcurrentStreams(uint32(s.cfg.Limits.MaxStreamsPerConnection)),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxRecvMsgSize(s.cfg.Limits.MaxPayloadBytes + requestExtra),
		grpc.ConnectionTimeout(handshake),
		grpc.InTapHandle(grpcapi.First(firstMessage)),
		grpc.WaitForHandlers(true),
		grpc.WriteBufferSize(grpcapi.WriteBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.security.guard.Load().Unary),
		grpc.ChainStreamInterceptor(s.security.guard.Load().Stream, s.countStreams),
	}
	if s.security.certs != nil {
		// TLS has a buffer of its own; on plain connections grpc-go's is pooled.
		options = append(options, grpc.ReadBufferSize(0))
	}
	return grpc.NewServer(options...)
}

// telemetryTimeout bounds the sending of what is left when the server stops.
const telemetryTimeout = 3 * time.Second

// telemetry begins to send traces and metrics; nil if they are off.
func (s *Server) telemetry(ctx context.Context) (*telemetry.Telemetry, error) {
	if s.cfg.OTLP.Endpoint == "" {
		return nil, nil
	}
	return telemetry.New(ctx, telemetry.Config{
		Endpoint: s.cfg.OTLP.Endpoint, Insecure: s.cfg.OTLP.Insecure, Version: cmp.Or(s.cfg.Version, "devel"), Metrics: s.metrics.Gatherer(), Every: s.cfg.OTLP.Every,
	})
}

// flush sends what is left. A collector that is not there is no fault of the server's.
func (s *Server) flush(tel *telemetry.Telemetry) error {
	if tel == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), telemetryTimeout)
	defer cancel()
	if err := tel.Shutdown(ctx); err != nil {
		s.cfg.Logger.Warn("the last traces and metrics could not be sent", "err", err)
	}
	return nil
}

// published counts events by what became of them.
func (s *Server) published(result string, events int) {
	s.metrics.Published(result, events)
	if result == broker.Accepted {
		s.accepted.Add(uint64(events))
	}
}

// countStreams keeps the gauge of open streams; only services of our own can be in its label. The streams of others, which watch health or
// load, do not end by themselves: they end when all sessions have gone.
func (s *Server) countStreams(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if _, ours := srv.(*grpcapi.Service); !ours {
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		stop := context.AfterFunc(s.watchers, cancel)
		defer stop()
		return handler(srv, &watching{stream, ctx})
	}
	open := s.metrics.Connections.WithLabelValues(runnelv1.StreamService_ServiceDesc.ServiceName)
	open.Inc()
	defer open.Dec()
	return handler(srv, stream)
}

// healthEvery is how often it is looked at whether the engine can write.
const healthEvery = time.Second

// watchHealth keeps the gRPC health services true until ctx ends. Draining has the last word: what comes after it is ignored.
func (s *Server) watchHealth(ctx context.Context) {
	ticker := time.NewTicker(healthEvery)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		err := s.engine.Health()
		s.setHealth(err)
		switch {
		case err != nil && said == "":
			said = err.Error()
			s.cfg.Logger.Error("the server takes no events", "err", err)
		case err == nil && said != "":
			said = ""
			s.cfg.Logger.Info("the server takes events again")
		}
	}
}

func (s *Server) setHealth(err error) {
	status := healthv1.HealthCheckResponse_SERVING
	if err != nil {
		status = healthv1.HealthCheckResponse_NOT_SERVING
	}
	for _, service := range []string{"", runnelv1.StreamService_ServiceDesc.ServiceName, runnelv1.AdminService_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, status)
	}
}

// ready is nil while the server takes work.
func (s *Server) ready() error {
	if err := s.engine.Health(); err != nil {
		return err
	}
	res, err := s.health.Check(context.Background(), &healthv1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return grpcapi.ErrDraining
	}
	return nil
}

// announce lets others find the server, until withdraw is called.
func (s *Server) announce() (withdraw func()) {
	if s.cfg.Announce == nil {
		return s.nodes.drain
	}
	unlist := s.cfg.Announce(cmp.Or(s.cfg.Advertise, s.Addr().String()))
	return func() {
		s.nodes.drain()
		unlist()
	}
}

func (s *Server) drain(g *grpc.Server, api *grpcapi.Service, withdraw func()) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	s.health.Shutdown()
	withdraw() // now, or those who are told to move could be sent back here
	api.Drain(ctx, s.nodes.spread())
	s.unwatch()
	// Streams that do not end by themselves would keep GracefulStop for ever.
	force := context.AfterFunc(ctx, g.Stop)
	defer force()
	g.GracefulStop()
}
