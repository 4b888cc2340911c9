package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/internal/topic"
)

// replayFlags are the flags of replay.
type replayFlags struct {
	topic, key, timeColumn, payloadColumn, format, onError string
	speed                                                  float64
}

func (a *app) replay() *cobra.Command {
	var flags replayFlags
	c := &cobra.Command{
		Use:   "replay FILE|-",
		Short: "Publish the rows of a CSV or NDJSON file at the pace of their timestamps",
		Long: "Each row becomes an event whose payload is a JSON object: of a CSV file's columns, all as strings, or the NDJSON line\n" +
			"itself. {column} in --topic and --key stands for the row's value. The timestamps are RFC 3339, or Unix seconds or\n" +
			"milliseconds; the first row is published at once, and each other as long after it as was recorded, divided by --speed.\n" +
			"A malformed row, or one that the server refuses, is named by its line on stderr.",
		Example: "  runnel replay ticks.csv --topic 'quotes.{symbol}' --speed 10",
		Args:    args(1, 1, "one file, or - for stdin"),
	}
	f := c.Flags()
	f.StringVar(&flags.topic, "topic", "", "where to publish, for example 'quotes.{symbol}' (required)")
	f.StringVar(&flags.key, "key", "", "conflation key, for example '{symbol}'")
	f.Float64Var(&flags.speed, "speed", 1, "how much faster than recorded; 0: as fast as possible")
	f.StringVar(&flags.timeColumn, "time-column", "", "column of the timestamp (default timestamp, time or ts)")
	f.StringVar(&flags.payloadColumn, "payload-column", "", "column that is the payload (default the whole row as JSON)")
	f.StringVar(&flags.format, "format", "", "csv or ndjson (default by the file's name: .ndjson, .jsonl and .json, else csv)")
	f.StringVar(&flags.onError, "on-error", "stop", "what to do about a malformed row: stop or skip")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := flags.check(args[0]); err != nil {
			return err
		}
		return a.replayFile(c.Context(), args[0], flags)
	}
	return c
}

func (flags *replayFlags) check(path string) error {
	switch {
	case flags.topic == "":
		return usagef("--topic is missing: say where to publish, for example --topic 'quotes.{symbol}'")
	case !(flags.speed >= 0) || math.IsInf(flags.speed, 0):
		return usagef("bad --speed %v: it must be a number from 0 on", flags.speed)
	case flags.onError != "stop" && flags.onError != "skip":
		return usagef("bad --on-error %q: it must be stop or skip", flags.onError)
	}
	if _, err := topic.Parse(placeholder.ReplaceAllString(flags.topic, "x")); err != nil {
		return usageError{err}
	}
	if flags.format == "" {
		flags.format = "csv"
		switch strings.ToLower(filepath.Ext(path)) {
		case ".ndjson", ".jsonl", ".json":
			flags.format = "ndjson"
		}
	}
	if flags.format != "csv" && flags.format != "ndjson" {
		return usagef("bad --format %q: it must be csv or ndjson", flags.format)
	}
	return nil
}

// replayFile publishes a file and prints the summary, also when it stops early.
func (a *app) replayFile(ctx context.Context, path string, flags replayFlags) error {
	in, err := a.openRecording(ctx, path)
	if err != nil {
		return err
	}
	defer in.Close()
	read := readNDJSON(ctx, in)
	if flags.format == "csv" {
		if read, err = readCSV(ctx, in); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	client, err := a.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	s, err := client.Session(ctx, a.outage(giveUp))
	if err != nil {
		return err
	}
	defer s.Close()
	r := &replayer{replayFlags: flags, a: a, session: s, in: in, bar: a.progress()}
	if err = r.run(ctx, read); errors.Is(err, context.Canceled) {
		err = context.Cause(ctx)
	}
	r.bar.clear()
	fmt.Fprintf(a.out, "%d rows published, %d skipped, in %v\n", r.published, r.skipped, time.Since(r.begin).Round(time.Millisecond))
	var bad *rowError
	if errors.As(err, &bad) {
		return fmt.Errorf("%s: line %d: %s; correct it, or pass over such rows with --on-error skip", path, bad.line, a.explain(bad.err))
	}
	return err
}

// recording is an open file, and how much of it was read.
type recording struct {
	io.Reader
	io.Closer
	n, size int64 // bytes; size 0: not known
}

// openRecording opens a file, or stdin for "-".
func (a *app) openRecording(ctx context.Context, path string) (*recording, error) {
	if path == "-" {
		return &recording{Reader: &patientReader{ctx, a.in}, Closer: io.NopCloser(a.in)}, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &recording{Reader: file, Closer: file}
	if info, err := file.Stat(); err == nil {
		r.size = info.Size()
	}
	return r, nil
}

// Read implements io.Reader.
func (r *recording) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.n += int64(n)
	return n, err
}

// progress is how much was read: in percent, or in bytes where nobody knows how much there is.
func (r *recording) progress() string {
	if r.size == 0 {
		return fmt.Sprintf("%d bytes", r.n)
	}
	return fmt.Sprintf("%d %%", 100*r.n/r.size)
}

// replayer is one run of replay. It belongs to one goroutine.
type replayer struct {
	replayFlags
	a       *app
	session *runnel.Session
	in      *recording
	bar     *progress

	begin, first       time.Time // of this run, of the recording
	sent               []sentRow // not yet known to be stored, in order; as many as the session allows on their way
	published, skipped int
}

// sentRow is a row on its way.
type sentRow struct {
	line    int
	receipt *runnel.Receipt
}

// replayEnd is how long rows on their way are waited for after an interrupt.
const replayEnd = 5 * time.Second

func (r *replayer) run(ctx context.Context, read rows) error {
	r.begin = time.Now()
	err := r.pump(ctx, read)
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(replayEnd, cancel) })()
	for len(r.sent) > 0 {
		if late := r.settle(end); err == nil {
			err = late
		}
	}
	return err
}

// pump reads and sends until the end, or the first row that stops it.
func (r *replayer) pump(ctx context.Context, read rows) error {
	for {
		one, err := read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = r.send(ctx, one)
		}
		if err = r.pass(err); err != nil {
			return err
		}
		for err == nil && len(r.sent) > 0 && isDone(r.sent[0].receipt) {
			err = r.settle(ctx)
		}
		if err != nil {
			return err
		}
		r.bar.show("%d rows, %d skipped, %s", r.published, r.skipped, r.in.progress())
	}
}

// pass passes over a malformed row, if that is wanted.
func (r *replayer) pass(err error) error {
	var bad *rowError
	if err == nil || !errors.As(err, &bad) || r.onError != "skip" {
		return err
	}
	r.skipped++
	r.bar.clear()
	fmt.Fprintf(r.a.err, "runnel: skipped line %d: %s\n", bad.line, r.a.explain(bad.err))
	return nil
}

// settle waits for the oldest row on its way.
func (r *replayer) settle(ctx context.Context) error {
	one := r.sent[0]
	r.sent = r.sent[1:]
	if _, err := one.receipt.Wait(ctx); err != nil {
		var e *runnel.Error
		if errors.As(err, &e) && e.FromServer {
			err = &rowError{one.line, err}
		}
		return r.pass(err)
	}
	r.published++
	return nil
}

func isDone(r *runnel.Receipt) bool {
	select {
	case <-r.Done():
		return true
	default:
		return false
	}
}

// send waits until a row is due and sends it.
func (r *replayer) send(ctx context.Context, one *row) error {
	name, payload, opts, err := r.event(one)
	if err != nil {
		return &rowError{one.line, err}
	}
	at, err := one.time(r.timeColumn)
	if err != nil && (r.speed > 0 || !errors.Is(err, errNoTime)) {
		return &rowError{one.line, err}
	}
	if err := r.pace(ctx, at); err != nil {
		return err
	}
	receipt, err := r.session.Publish(ctx, name, payload, opts...)
	if err != nil {
		return err
	}
	r.sent = append(r.sent, sentRow{one.line, receipt})
	return nil
}

// event is what a row becomes.
func (r *replayer) event(one *row) (name string, payload []byte, opts []runnel.PublishOption, err error) {
	if name, err = one.fill(r.topic); err != nil {
		return "", nil, nil, err
	}
	if _, err := topic.Parse(name); err != nil {
		return "", nil, nil, err
	}
	key, err := one.fill(r.key)
	if err != nil {
		return "", nil, nil, err
	}
	if r.payloadColumn == "" {
		return name, one.json, []runnel.PublishOption{runnel.Key(key), runnel.ContentType("application/json")}, nil
	}
	value, ok := one.columns[r.payloadColumn]
	if !ok {
		return "", nil, nil, fmt.Errorf("there is no column %s", r.payloadColumn)
	}
	return name, []byte(value), []runnel.PublishOption{runnel.Key(key)}, nil
}

// pace waits until a row recorded at this time is due. A row out of order is due at once.
func (r *replayer) pace(ctx context.Context, at time.Time) error {
	if r.speed == 0 {
		return ctx.Err()
	}
	if r.first.IsZero() {
		r.first = at
	}
	after := min(float64(at.Sub(r.first))/r.speed, math.MaxInt64/2)
	wait := time.Until(r.begin.Add(time.Duration(after)))
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
