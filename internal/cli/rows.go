package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one row of a recording.
type row struct {
	line    int // where it begins, from 1
	columns map[string]string
	json    []byte
}

// rowError is a malformed row. Reading may go on behind it.
type rowError struct {
	line int
	err  error
}

func (e *rowError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *rowError) Unwrap() error { return e.err }

// rows reads a recording row by row until io.EOF. A *rowError does not end it.
type rows func() (*row, error)

// readNDJSON reads one JSON object a line; empty lines are passed over. The payload is the line as it is.
func readNDJSON(ctx context.Context, in io.Reader) rows {
	lines := newLineReader(in, 0)
	n := 0
	return func() (*row, error) {
		for {
			line, err := lines.next(ctx)
			if err != nil {
				return nil, err
			}
			n++
			if line = bytes.TrimSpace(line); len(line) > 0 {
				return parseObject(n, line)
			}
		}
	}
}

func parseObject(n int, line []byte) (*row, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(line, &object); err != nil || object == nil {
		return nil, &rowError{n, errors.New("it is not a JSON object")}
	}
	if !utf8.Valid(line) {
		return nil, &rowError{n, errors.New("it is not UTF-8")}
	}
	r := &row{line: n, columns: make(map[string]string, len(object)), json: bytes.Clone(line)}
	for name, raw := range object {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			s = string(raw)
		}
		r.columns[name] = s
	}
	return r, nil
}

// errNoTime says that a row has no timestamp.
var errNoTime = fmt.Errorf("there is no column %s; name another with --time-column, or use --speed 0", strings.Join(timeColumns, ", "))

// timeColumns are the names a timestamp column is looked for under.
var timeColumns = []string{"timestamp", "time", "ts"}

// time reads the row's timestamp from a column, or, if none is named, from the first of timeColumns that there is.
func (r *row) time(column string) (time.Time, error) {
	names := timeColumns
	if column != "" {
		names = []string{column}
	}
	for _, name := range names {
		if s, ok := r.columns[name]; ok {
			return parseTime(s)
		}
	}
	if column != "" {
		return time.Time{}, fmt.Errorf("there is no column %s", column)
	}
	return time.Time{}, errNoTime
}

// parseTime reads RFC 3339, or Unix seconds or milliseconds: the latter from 1e11 on, which as seconds is beyond the year 5000.
func parseTime(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 0 && f < 1e14) { // NaN is no time either
		return time.Time{}, fmt.Errorf("bad timestamp %q: it must be RFC 3339, or Unix seconds or milliseconds", s)
	}
	if f >= 1e11 {
		f /= 1000
	}
	return time.UnixMicro(int64(f * 1e6)), nil
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// fill replaces each {column} by the row's value.
func (r *row) fill(template string) (string, error) {
	var missing error
	s := placeholder.ReplaceAllStringFunc(template, func(m string) string {
		v, ok := r.columns[m[1:len(m)-1]]
		if !ok {
			missing = fmt.Errorf("there is no column %s", m)
		}
		return v
	})
	return s, missing
}
