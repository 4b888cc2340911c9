package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

func (a *app) replay() *cobra.Command {
	r := &replayer{a: a}
	c := &cobra.Command{
		Use:   "replay FILE",
		Short: "Publish the rows of a CSV or NDJSON file at the pace of their timestamps",
		Long: "Each row becomes an event: a JSON object of its columns, in their order. {column} in --topic and --key is filled in from\n" +
			"the row. CSV needs a header row; NDJSON has an object a line. The timestamp column holds RFC 3339, or Unix seconds or milliseconds.",
		Example: "  runnel replay ticks.csv --topic 'quotes.{symbol}' --speed 10",
		Args:    args(1, 1, "one file"),
	}
	f := c.Flags()
	f.StringVar(&r.topic, "topic", "", "where to publish, for example 'quotes.{symbol}' (required)")
	f.StringVar(&r.key, "key", "", "conflation key, for example '{symbol}'")
	f.Float64Var(&r.speed, "speed", 1, "how much faster than recorded; 0: as fast as possible")
	f.StringVar(&r.timeColumn, "time-column", "", "column of the timestamp (default timestamp, time or ts)")
	f.StringVar(&r.format, "format", "", "csv or ndjson (default by the file's name)")
	f.StringVar(&r.onError, "on-error", "stop", "malformed row: stop or skip")
	c.RunE = func(c *cobra.Command, args []string) error {
		if r.topic == "" {
			return usagef("--topic is missing: say where to publish, for example --topic 'quotes.{symbol}'")
		}
		if r.speed < 0 {
			return usagef("--speed cannot be negative")
		}
		if r.onError != "stop" && r.onError != "skip" {
			return usagef("bad --on-error %q: it must be stop or skip", r.onError)
		}
		if r.format == "" {
			r.format = "csv"
			if ext := filepath.Ext(args[0]); ext == ".ndjson" || ext == ".jsonl" || ext == ".json" {
				r.format = "ndjson"
			}
		}
		if r.format != "csv" && r.format != "ndjson" {
			return usagef("bad --format %q: it must be csv or ndjson", r.format)
		}
		return r.run(c.Context(), args[0])
	}
	return c
}

// replayer is one run of replay.
type replayer struct {
	a                                       *app
	topic, key, timeColumn, format, onError string
	speed                                   float64

	begin, first time.Time // of the replay, of the recording
	rows         int
	skipped      int
}

// row is one row: its columns in order, and the line it is on.
type row struct {
	line   int
	names  []string
	values map[string]string
	json   []byte
}

// errRow is a malformed row.
type errRow struct {
	line int
	err  error
}

func (e *errRow) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }

func (r *replayer) run(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	read, err := r.reader(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	client, err := r.a.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	p, err := client.Publisher(ctx)
	if err != nil {
		return err
	}
	bar := &progress{w: r.a.err, on: terminal(r.a.err)}
	failure := r.pump(ctx, read, p, bar)
	bar.done()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = p.Close(end) // what was sent is awaited, also after an interrupt
	fmt.Fprintf(r.a.out, "%d rows published, %d skipped, in %v\n", r.rows, r.skipped, time.Since(r.begin).Round(time.Millisecond))
	if failure != nil {
		return failure
	}
	return err
}

func (r *replayer) pump(ctx context.Context, read func() (*row, error), p *runnel.Publisher, bar *progress) error {
	r.begin = time.Now()
	var last *runnel.Receipt
	for {
		one, err := read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			last, err = r.publish(ctx, one, p, last)
		}
		var bad *errRow
		switch {
		case err == nil:
			r.rows++
			bar.show("%d rows, %d skipped", r.rows, r.skipped)
		case errors.As(err, &bad) && r.onError == "skip":
			r.skipped++
			fmt.Fprintf(r.a.err, "runnel: skipped %v\n", bad)
		default:
			return err
		}
	}
}

// publish waits until the row is due and sends it. A row before that was refused is reported here.
func (r *replayer) publish(ctx context.Context, one *row, p *runnel.Publisher, last *runnel.Receipt) (*runnel.Receipt, error) {
	if last != nil {
		select {
		case <-last.Done():
			if _, err := last.Wait(ctx); err != nil {
				return nil, err
			}
		default:
		}
	}
	topic, err := fill(r.topic, one.values)
	if err != nil {
		return last, &errRow{one.line, err}
	}
	if bad := badTopic(topic); bad != nil {
		return last, &errRow{one.line, bad}
	}
	key, err := fill(r.key, one.values)
	if err != nil {
		return last, &errRow{one.line, err}
	}
	at, err := r.time(one)
	if err != nil {
		return last, &errRow{one.line, err}
	}
	if err := r.pace(ctx, at); err != nil {
		return last, err
	}
	return p.Publish(ctx, topic, one.json, runnel.Key(key), runnel.ContentType("application/json"))
}

func (r *replayer) pace(ctx context.Context, at time.Time) error {
	if r.first.IsZero() {
		r.first = at
	}
	if r.speed == 0 {
		return ctx.Err()
	}
	due := r.begin.Add(time.Duration(float64(at.Sub(r.first)) / r.speed))
	wait := time.Until(due)
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

var timeColumns = []string{"timestamp", "time", "ts"}

func (r *replayer) time(one *row) (time.Time, error) {
	columns := timeColumns
	if r.timeColumn != "" {
		columns = []string{r.timeColumn}
	}
	for _, c := range columns {
		if v, ok := one.values[c]; ok {
			return parseTime(v)
		}
	}
	return time.Time{}, fmt.Errorf("there is no column %s", strings.Join(columns, ", "))
}

// parseTime reads RFC 3339, or Unix seconds or milliseconds: the latter from 1e11 on, which as seconds is beyond the year 5000.
func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f > 1e15 {
		return time.Time{}, fmt.Errorf("bad timestamp %q", s)
	}
	if f >= 1e11 {
		f /= 1000
	}
	return time.UnixMicro(int64(f * 1e6)), nil
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// fill replaces {column} by the row's value.
func fill(template string, values map[string]string) (string, error) {
	var missing error
	s := placeholder.ReplaceAllStringFunc(template, func(m string) string {
		v, ok := values[m[1:len(m)-1]]
		if !ok {
			missing = fmt.Errorf("there is no column %s", m)
		}
		return v
	})
	return s, missing
}

var legalTopic = regexp.MustCompile(`^[A-Za-z0-9_:@=+-]+(\.[A-Za-z0-9_:@=+-]+){0,15}$`)

// badTopic finds what the server would refuse, so that the row can be named.
func badTopic(s string) error {
	if len(s) > 255 || !legalTopic.MatchString(s) {
		return fmt.Errorf("%q is not a legal topic", s)
	}
	return nil
}

// reader returns a function that reads rows until io.EOF; a malformed row is an *errRow, behind which reading goes on.
func (r *replayer) reader(in io.Reader) (func() (*row, error), error) {
	if r.format == "ndjson" {
		return ndjson(in), nil
	}
	c := csv.NewReader(bufio.NewReaderSize(in, 256<<10))
	c.ReuseRecord = true
	header, err := c.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("the file is empty; CSV needs a header row")
	}
	if err != nil {
		return nil, err
	}
	names := slices.Clone(header)
	return func() (*row, error) {
		record, err := c.Read()
		var parse *csv.ParseError
		switch {
		case errors.As(err, &parse):
			return nil, &errRow{parse.Line, parse.Err}
		case err != nil:
			return nil, err
		}
		line, _ := c.FieldPos(0)
		one := &row{line: line, names: names, values: make(map[string]string, len(names))}
		for i, name := range names {
			one.values[name] = record[i]
		}
		one.json = one.encode()
		return one, nil
	}, nil
}

// encode is the row as a JSON object, its columns in order.
func (one *row) encode() []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, name := range one.names {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, s := range []string{name, one.values[name]} {
			if j == 1 {
				b.WriteByte(':')
			}
			text, err := json.Marshal(s)
			if err != nil {
				text = []byte(`""`) // strings always marshal
			}
			b.Write(text)
		}
	}
	b.WriteByte('}')
	return b.Bytes()
}

func ndjson(in io.Reader) func() (*row, error) {
	lines := bufio.NewReaderSize(in, 256<<10)
	n := 0
	return func() (*row, error) {
		for {
			line, err := lines.ReadBytes('\n')
			n++
			if line = bytes.TrimSpace(line); len(line) == 0 {
				if err != nil {
					return nil, err
				}
				continue
			}
			var object map[string]json.RawMessage
			if err := json.Unmarshal(line, &object); err != nil {
				return nil, &errRow{n, errors.New("it is not a JSON object")}
			}
			one := &row{line: n, values: map[string]string{}, json: line}
			for name, raw := range object {
				var s string
				if json.Unmarshal(raw, &s) != nil {
					s = string(raw)
				}
				one.values[name] = s
			}
			return one, nil
		}
	}
}
