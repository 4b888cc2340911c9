package cli

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// A quoted field may hold ends of lines. A quote that is never closed must not swallow the rest of the file, so a row has at most
// this many lines.
const maxRowLines = 1000

// csvReader reads CSV with a header row. A row that is malformed costs its first line only; reading goes on with the next line.
type csvReader struct {
	ctx   context.Context
	lines *lineReader
	n     int      // lines read
	ahead []string // lines read, but not yet part of a row

	text   strings.Reader // the row being parsed
	parser *csv.Reader
	names  []string
}

// readCSV reads the header row and returns what reads the others. A row becomes a JSON object of its columns, in their order; all
// values are strings, so that 1.20 stays 1.20.
func readCSV(ctx context.Context, in io.Reader) (rows, error) {
	c := &csvReader{ctx: ctx, lines: newLineReader(in, 0)}
	c.parser = csv.NewReader(&c.text)
	_, names, err := c.record()
	var bad *rowError
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty; CSV begins with a header row")
	case errors.As(err, &bad):
		return nil, fmt.Errorf("bad header row: %w", bad.err)
	case err != nil:
		return nil, err
	}
	names[0] = strings.TrimPrefix(names[0], "\ufeff") // spreadsheets write a byte order mark
	for i, name := range names {
		if name == "" || !utf8.ValidString(name) || slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("bad header row: column %d has the name %q, which is empty, not UTF-8 or there twice", i+1, name)
		}
	}
	c.names = names
	return c.next, nil
}

func (c *csvReader) next() (*row, error) {
	line, record, err := c.record()
	if err != nil {
		return nil, err
	}
	if len(record) != len(c.names) {
		return nil, &rowError{line, fmt.Errorf("it has %d columns, and the header row %d", len(record), len(c.names))}
	}
	r := &row{line: line, columns: make(map[string]string, len(c.names))}
	o := open(nil)
	for i, name := range c.names {
		if !utf8.ValidString(record[i]) {
			return nil, &rowError{line, fmt.Errorf("column %s is not UTF-8", name)}
		}
		r.columns[name] = record[i]
		o.comma()
		o.b = appendString(append(appendString(o.b, name), ':'), record[i])
	}
	r.json = o.close()
	return r, nil
}

// record reads the fields of one row, and the number of its first line. Empty lines are passed over.
func (c *csvReader) record() (line int, fields []string, err error) {
	text := ""
	for text == "" {
		if text, err = c.take(); err != nil {
			return 0, nil, err
		}
		text = strings.TrimSuffix(text, "\r")
	}
	line = c.n - len(c.ahead)
	first, quotes := text, strings.Count(text, `"`)
	var more []string
	for quotes%2 == 1 && len(more) < maxRowLines { // within quotes, the row goes on
		next, err := c.take()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, nil, err
		}
		more = append(more, next)
		quotes += strings.Count(next, `"`)
	}
	if len(more) > 0 {
		text = first + "\n" + strings.Join(more, "\n")
	}
	c.text.Reset(text)
	c.parser.FieldsPerRecord = -1
	fields, err = c.parser.Read()
	if err == nil {
		return line, fields, nil
	}
	c.ahead = append(more, c.ahead...)
	c.parser = csv.NewReader(&c.text) // the old one may hold what is left of the row
	var parse *csv.ParseError
	if errors.As(err, &parse) {
		err = parse.Err
	}
	return 0, nil, &rowError{line, err}
}

// take returns the next line.
func (c *csvReader) take() (string, error) {
	if len(c.ahead) > 0 {
		line := c.ahead[0]
		c.ahead = c.ahead[1:]
		return line, nil
	}
	b, err := c.lines.next(c.ctx)
	if err != nil {
		return "", err
	}
	c.n++
	return string(b), nil
}
