package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

// pubFlags are the flags of pub.
type pubFlags struct {
	lines, json, conditional bool
	key, id, contentType     string
	headers                  []string
	expect                   uint64
}

func (a *app) pub() *cobra.Command {
	var flags pubFlags
	c := &cobra.Command{
		Use:   "pub TOPIC [PAYLOAD|-]",
		Short: "Publish an event, or each line of stdin as one",
		Long: "Publish PAYLOAD, or all of stdin for \"-\", as one event and print its acknowledgement.\n" +
			"--lines publishes each line of stdin as an event, in order, over a stream, and prints a summary. A connection that\n" +
			"breaks is mended: lines that were not confirmed are sent again with the same event ids, so none is lost or stored twice.",
		Example: "  runnel pub quotes.AAPL 187.20\n  runnel pub cfg.site -- -5\n  tail -f app.log | runnel pub logs.app --lines",
		Args:    args(1, 2, "TOPIC and PAYLOAD"),
	}
	f := c.Flags()
	f.BoolVar(&flags.lines, "lines", false, "publish each line of stdin as an event")
	f.BoolVar(&flags.json, "json", false, "print the acknowledgement as JSON")
	f.StringVar(&flags.key, "key", "", "conflation key")
	f.StringVar(&flags.id, "id", "", "event id: the same id on the same topic is stored once")
	f.StringVar(&flags.contentType, "content-type", "", "what the payload is, for example application/json")
	f.StringArrayVar(&flags.headers, "header", nil, "header NAME=VALUE; may be repeated")
	f.Uint64Var(&flags.expect, "expect", 0, "publish only if the topic's newest event is at this offset (0: it has none)")
	c.RunE = func(c *cobra.Command, args []string) error {
		flags.conditional = f.Changed("expect")
		opts, err := flags.options()
		if err != nil {
			return err
		}
		if err := flags.check(args); err != nil {
			return err
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		if flags.lines {
			return a.pubLines(c.Context(), client, args[0], flags.json, opts)
		}
		payload := []byte(args[1])
		if args[1] == "-" {
			if payload, err = a.readAll(c.Context()); err != nil {
				return err
			}
		}
		return a.pubOne(c.Context(), client, args[0], payload, flags.json, opts)
	}
	return c
}

func (flags *pubFlags) check(args []string) error {
	if _, err := topic.Parse(args[0]); err != nil {
		return usageError{err}
	}
	switch {
	case flags.lines && len(args) == 2:
		return usagef("--lines reads stdin; it takes no PAYLOAD")
	case flags.lines && (flags.id != "" || flags.conditional):
		return usagef("--id and --expect are for one event; they do not go with --lines")
	case !flags.lines && len(args) == 1:
		return usagef("give a PAYLOAD, - for all of stdin, or --lines for an event per line of stdin")
	}
	return nil
}

func (flags *pubFlags) options() ([]runnel.PublishOption, error) {
	var opts []runnel.PublishOption
	for _, h := range flags.headers {
		name, value, err := parseHeader(h)
		if err != nil {
			return nil, err
		}
		opts = append(opts, runnel.Header(name, value))
	}
	if flags.key != "" {
		opts = append(opts, runnel.Key(flags.key))
	}
	if flags.id != "" {
		opts = append(opts, runnel.ID(flags.id))
	}
	if flags.contentType != "" {
		opts = append(opts, runnel.ContentType(flags.contentType))
	}
	if flags.conditional {
		opts = append(opts, runnel.Expect(flags.expect))
	}
	return opts, nil
}

// readAll reads stdin to its end.
func (a *app) readAll(ctx context.Context) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(&patientReader{ctx, a.in}, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading stdin: %w", err)
	case len(b) > maxInput:
		return nil, fmt.Errorf("stdin holds more than %d MiB, too much for one event; --lines makes an event of each line", maxInput>>20)
	}
	return b, nil
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
	p := a.printer(true)
	if err := p.message("", &runnelv1.PublishResponse{
		EventId: ack.ID, Offset: ack.Position.Offset, Timestamp: ack.Time.UnixMilli(), Duplicate: ack.Duplicate,
		Durability: runnelv1.Durability(runnelv1.Durability_value["DURABILITY_"+ack.Durability]), Epoch: ack.Position.Epoch,
	}); err != nil {
		return err
	}
	return p.flush()
}

const (
	linesQuiet = time.Second     // lines are confirmed when none came for this long
	linesEnd   = 5 * time.Second // after an interrupt, what was read is confirmed within this time
)

// pubLines publishes stdin line by line until it ends or the user interrupts it, which is the usual end of a stream without end.
func (a *app) pubLines(ctx context.Context, client *runnel.Client, topic string, asJSON bool, opts []runnel.PublishOption) error {
	// An upload would not tell a server that is not there from one that is away for a moment: ask for the topic first.
	if _, err := client.Topic(ctx, topic); err != nil {
		return err
	}
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(linesEnd, cancel) })()
	bar := a.progress()
	u := newUploader(client, topic, opts)
	defer u.close()
	u.broken = func(err error, held int) {
		bar.clear()
		fmt.Fprintf(a.err, "runnel: %s; sending the last %d lines again\n", a.explainBroken(err), held)
	}
	err := a.uploadLines(ctx, sending, u, bar)
	bar.clear()
	var e *runnel.Error
	if err != nil && (!errors.As(err, &e) || e.Summary == nil) {
		return fmt.Errorf("%s; %d lines are stored, up to %d more may be", a.explain(err), u.sum.Accepted, len(u.ends))
	}
	if err := a.printSummary(&u.sum, asJSON); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("line %d: %s; the %d lines before it are stored, nothing from it on", u.sum.FirstFailed+1, a.explain(err), u.sum.FirstFailed)
	}
	return nil
}

// uploadLines ends without an error when the input ends or reading is interrupted.
func (a *app) uploadLines(reading, sending context.Context, u *uploader, bar *progress) error {
	in := newLineReader(a.in, linesQuiet)
	for n := 1; ; n++ {
		line, err := in.next(reading)
		switch {
		case err == nil:
			err = u.add(sending, line)
			bar.show("%d lines", n)
		case errors.Is(err, errQuiet):
			n--
			err = u.confirm(sending)
		case errors.Is(err, io.EOF) || reading.Err() != nil:
			return u.confirm(sending)
		default:
			return errors.Join(fmt.Errorf("reading stdin: %w", err), u.confirm(sending))
		}
		if err != nil {
			return err
		}
	}
}

func (a *app) printSummary(sum *runnel.Summary, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintf(a.out, "%d events stored, last offset %d, epoch %s\n", sum.Accepted, sum.Last.Offset, sum.Last.Epoch)
		return err
	}
	p := a.printer(true)
	if err := p.message("", &runnelv1.PublishSummary{
		Received: sum.Received, Accepted: sum.Accepted, Duplicates: sum.Duplicates, FirstFailedIndex: sum.FirstFailed,
		LastOffset: sum.Last.Offset, Epoch: sum.Last.Epoch,
	}); err != nil {
		return err
	}
	return p.flush()
}
