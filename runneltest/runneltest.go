// Package runneltest gives a test a Runnel server and a client of it, in one line:
//
//	client := runneltest.Start(t)
package runneltest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/server"
)

// Start runs a server with default settings on a free loopback port, where namespaces appear on first use, and returns a client.
// Both are closed when the test ends.
func Start(t testing.TB) *runnel.Client {
	t.Helper()
	return StartServer(t, server.Config{}).Client()
}

// Server is a server that belongs to a test.
type Server struct {
	t         testing.TB
	cfg       server.Config
	Addr      string // of gRPC
	AdminAddr string // of metrics and health checks; empty if the configuration has no admin listener

	mu   sync.Mutex
	stop context.CancelFunc
	done chan error
}

// StartServer runs a server. Unless the configuration says otherwise it listens on a free loopback port, has a temporary data
// directory and no admin listener, and namespaces appear on first use. Where RUNNEL_TEST_NATS names NATS servers, its events are kept there, in
// streams that only this server has; they take messages of 2 MiB or more.
func StartServer(t testing.TB, cfg server.Config) *Server {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	if cfg.Admin == "" {
		cfg.Admin = "off"
	}
	if cfg.Data == "" {
		cfg.Data = t.TempDir()
	}
	if cfg.Namespaces == nil {
		cfg.Dev = true
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	if urls := os.Getenv("RUNNEL_TEST_NATS"); urls != "" && cfg.Engine == "" {
		onNATS(&cfg, strings.Split(urls, ","))
	}
	s := &Server{t: t, cfg: cfg}
	s.Start()
	t.Cleanup(s.Stop)
	return s
}

// onNATS makes a server keep its events on NATS, under a prefix that stands for its data directory.
func onNATS(cfg *server.Config, urls []string) {
	h := fnv.New64a()
	h.Write([]byte(cfg.Data)) // never fails
	cfg.Engine, cfg.NATS = server.OnNATS, server.NATS{URLs: urls, Replicas: 1, Prefix: fmt.Sprintf("test-%x", h.Sum64())}
	if cfg.Limits.MaxPayloadBytes == 0 {
		cfg.Limits.MaxPayloadBytes = 1 << 20 // as on the embedded engine
	}
}

// Start starts the server after Stop, on the same address and data directory.
func (s *Server) Start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		return
	}
	one, err := server.New(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Addr = one.Addr().String()
	s.cfg.Listen = s.Addr
	if a := one.AdminAddr(); a != nil {
		s.AdminAddr = a.String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var group sync.WaitGroup
	group.Go(func() { done <- one.Run(ctx) })
	s.stop, s.done = func() { cancel(); group.Wait() }, done
}

// Stop drains the server and waits until it has ended.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		return
	}
	s.stop()
	s.stop = nil
	if err := <-s.done; err != nil && !errors.Is(err, net.ErrClosed) {
		s.t.Errorf("server: %v", err)
	}
}

// Client returns a client of the server, closed when the test ends.
func (s *Server) Client(opts ...runnel.Option) *runnel.Client {
	s.t.Helper()
	c, err := runnel.Dial(s.Addr, opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}
