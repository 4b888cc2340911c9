package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

func (a *app) pub() *cobra.Command {
	var (
		lines, asJSON        bool
		key, id, contentType string
		headers              []string
		expect               uint64
	)
	c := &cobra.Command{
		Use:   "pub TOPIC [PAYLOAD|-]",
		Short: "Publish an event, or a line of stdin each",
		Long: "Publish PAYLOAD, or all of stdin for \"-\", as one event and print its offset.\n" +
			"--lines publishes each line of stdin as an event, over one stream, and prints a summary.",
		Example: "  runnel pub quotes.AAPL 187.20\n  tail -f app.log | runnel pub logs.app --lines",
		Args:    args(1, 2, "TOPIC [PAYLOAD|-]"),
	}
	f := c.Flags()
	f.BoolVar(&lines, "lines", false, "publish each line of stdin as an event")
	f.BoolVar(&asJSON, "json", false, "print the acknowledgement as JSON")
	f.StringVar(&key, "key", "", "conflation key")
	f.StringVar(&id, "id", "", "event id: the same id on the same topic is stored once")
	f.StringVar(&contentType, "content-type", "", "what the payload is")
	f.StringArrayVar(&headers, "header", nil, "header K=V; may be repeated")
	f.Uint64Var(&expect, "expect", 0, "publish only if the topic's newest event is at this offset (0: it has none)")
	c.RunE = func(c *cobra.Command, args []string) error {
		var opts []runnel.PublishOption
		for _, h := range headers {
			name, value, ok := strings.Cut(h, "=")
			if !ok || name == "" {
				return usagef("bad --header %q: it must be NAME=VALUE", h)
			}
			opts = append(opts, runnel.Header(name, value))
		}
		if key != "" {
			opts = append(opts, runnel.Key(key))
		}
		if id != "" {
			opts = append(opts, runnel.ID(id))
		}
		if contentType != "" {
			opts = append(opts, runnel.ContentType(contentType))
		}
		if f.Changed("expect") {
			opts = append(opts, runnel.Expect(expect))
		}
		switch {
		case lines && len(args) == 2:
			return usagef("--lines reads stdin; it takes no PAYLOAD")
		case lines && (id != "" || f.Changed("expect")):
			return usagef("--id and --expect are for one event; they do not go with --lines")
		case !lines && len(args) == 1:
			return usagef("give a PAYLOAD, - for stdin, or --lines for an event per line of stdin")
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if lines {
			return a.pubLines(c.Context(), client, args[0], asJSON, opts)
		}
		payload := []byte(args[1])
		if args[1] == "-" {
			if payload, err = io.ReadAll(io.LimitReader(a.in, 64<<20)); err != nil {
				return err
			}
		}
		return a.pubOne(c.Context(), client, args[0], payload, asJSON, opts)
	}
	return c
}

func (a *app) pubOne(ctx context.Context, client *runnel.Client, topic string, payload []byte, asJSON bool, opts []runnel.PublishOption) error {
	ack, err := client.Publish(ctx, topic, payload, opts...)
	if err != nil {
		return err
	}
	if !asJSON {
		again := ""
		if ack.Duplicate {
			again = ", stored before"
		}
		_, err = fmt.Fprintf(a.out, "offset %d, epoch %s, durability %s%s\n", ack.Position.Offset, ack.Position.Epoch, strings.ToLower(ack.Durability), again)
		return err
	}
	p := newPrinter(a.out, true)
	if err := p.proto("", &runnelv1.PublishResponse{
		EventId: ack.ID, Offset: ack.Position.Offset, Timestamp: ack.Time.UnixMilli(), Duplicate: ack.Duplicate,
		Durability: runnelv1.Durability(runnelv1.Durability_value["DURABILITY_"+ack.Durability]), Epoch: ack.Position.Epoch,
	}); err != nil {
		return err
	}
	return p.flush()
}

// pubLines uploads stdin. A line may be as long as a payload; the server says where the limit is.
func (a *app) pubLines(ctx context.Context, client *runnel.Client, topic string, asJSON bool, opts []runnel.PublishOption) error {
	// An upload alone would not tell a server that is not there from one that is slow: ask for the topic first.
	if _, err := client.Topic(ctx, topic); err != nil {
		return err
	}
	up, err := client.Upload(ctx)
	if err != nil {
		return err
	}
	bar := &progress{w: a.err, on: terminal(a.err)}
	in := bufio.NewReaderSize(a.in, 256<<10)
	sent := 0
	for {
		line, readErr := in.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line != "" || readErr == nil {
			line = strings.TrimSuffix(line, "\r")
			if err := up.Send(topic, []byte(line), opts...); err != nil {
				bar.done()
				return linesFailed(err, sent)
			}
			sent++
			bar.show("%d lines", sent)
		}
		if errors.Is(readErr, io.EOF) {
			break
		}
		if readErr != nil {
			return fmt.Errorf("reading stdin: %w", readErr)
		}
	}
	sum, err := up.Close()
	bar.done()
	if err != nil {
		return linesFailed(err, sent)
	}
	if !asJSON {
		_, err = fmt.Fprintf(a.out, "%d events stored, last offset %d, epoch %s\n", sum.Accepted, sum.Last.Offset, sum.Last.Epoch)
		return err
	}
	p := newPrinter(a.out, true)
	if err := p.proto("", &runnelv1.PublishSummary{
		Received: sum.Received, Accepted: sum.Accepted, Duplicates: sum.Duplicates, FirstFailedIndex: sum.FirstFailed,
		LastOffset: sum.Last.Offset, Epoch: sum.Last.Epoch,
	}); err != nil {
		return err
	}
	return p.flush()
}

// linesFailed says which lines are stored: exactly those before the first that failed, if the server could still say.
func linesFailed(err error, sent int) error {
	var e *runnel.Error
	if errors.As(err, &e) && e.Summary != nil {
		return fmt.Errorf("line %d: %w; the %d lines before it are stored, nothing from it on", e.Summary.FirstFailed+1, err, e.Summary.FirstFailed)
	}
	return fmt.Errorf("the connection broke after %d lines were sent (%w); some of them may be stored: look at the end of the topic", sent, err)
}
