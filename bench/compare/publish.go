package main

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/bench/system"
	"github.com/runnelhq/runnel/internal/load"
)

// acked measures publishers that each wait for their own acknowledgement: a delivery is an acknowledgement, a delay the time to it.
func (w *workload) acked(ctx context.Context, s *system.System, server *system.Server, res *load.Result) error {
	a, err := s.Acked(ctx, server.Address)
	if err != nil {
		return err
	}
	var done atomic.Int64
	var delays load.Recorder
	publishing, stop := context.WithCancel(ctx)
	defer stop()
	group, publishing := errgroup.WithContext(publishing)
	topic := w.topics()[0]
	for range w.Publishers {
		shard := delays.Shard()
		group.Go(func() error {
			payload := make([]byte, w.Payload)
			for publishing.Err() == nil {
				began := time.Now()
				if err := a.Publish(publishing, topic, payload); err != nil {
					if publishing.Err() != nil { // it is over
						return nil
					}
					return err
				}
				shard.Record(time.Since(began))
				done.Add(1)
			}
			return nil
		})
	}
	if wait(publishing, w.Warmup) {
		delays.Reset()
		began, n, cpu, own := time.Now(), done.Load(), server.CPU(), system.CPU(os.Getpid())
		if wait(publishing, w.Duration) {
			n = done.Load() - n
			res.Seconds = time.Since(began).Seconds()
			res.DeliveriesPerSecond = float64(n) / res.Seconds
			res.ServerCPU = load.Per(load.Since(cpu, server.CPU()), n)
			res.ClientCPU = load.Per(load.Since(own, system.CPU(os.Getpid())), n)
			delays.Fill(res)
		}
	}
	stop()
	return errors.Join(group.Wait(), ctx.Err(), a.Close())
}

// wait is false if ctx ended it.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
