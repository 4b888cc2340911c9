package natsengine

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/runnelhq/runnel/internal/engine"
)

// checksAtOnce is how many streams are asked about at the same time.
const checksAtOnce = 8

// Check says in one line what keeps this node from using the cluster as it is configured: that there are too few servers for the replicas, or
// that the stream of one of these namespaces exists with other settings. It opens and changes nothing. What cannot be asked now, since NATS or
// a stream has no leader, is no error: that passes, and Health tells it.
func (e *Engine) Check(ctx context.Context, namespaces []string) error {
	if e.o.Replicas > 1 && e.write.nc.ConnectedClusterName() == "" {
		return fmt.Errorf("NATS server %s is no part of a cluster, and %d replicas are asked for: connect to a cluster, or ask for 1", e.write.nc.ConnectedServerName(), e.o.Replicas)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(checksAtOnce)
	for _, name := range slices.Sorted(slices.Values(namespaces)) {
		cfg, ok := e.o.Namespace(name)
		if !ok {
			continue
		}
		group.Go(func() error {
			stream := e.streamOf(ctx, name)
			if stream == "" {
				return nil
			}
			i, err := e.info(ctx, stream, nil)
			if err != nil {
				return nil // it cannot be asked
			}
			want := e.o.settings(name, cfg)
			want.Name = stream
			if cfg.History == engine.HistoryNone {
				return fmt.Errorf("stream %s exists, and namespace %s is to keep no history: delete the stream, or configure the history it has", want.Name, name)
			}
			have := i.Config // limits are no difference: they follow the configuration
			want.MaxMsgs, want.MaxBytes, want.MaxAge, want.Duplicates = have.MaxMsgs, have.MaxBytes, have.MaxAge, have.Duplicates
			_, err = e.adapt(ctx, i, want)
			return err
		})
	}
	return group.Wait()
}

// streamOf is the stream that has a namespace's subjects; empty if there is none, or it cannot be asked.
func (e *Engine) streamOf(ctx context.Context, namespace string) string {
	request := struct {
		Subject string `json:"subject"`
	}{e.o.subject(namespace)}
	var answer struct {
		Streams []string `json:"streams"`
	}
	if e.api(ctx, apiWait, "STREAM.NAMES", request, &answer) != nil || len(answer.Streams) == 0 {
		return ""
	}
	return answer.Streams[0]
}
