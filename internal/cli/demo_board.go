package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/runnelhq/runnel"
)

// boardWidth is the most columns of a line.
const boardWidth = 79

// board shows events and what happens. On a terminal the newest event of each topic is a table at the bottom, drawn in place, and
// what happens scrolls above it; in a pipe everything is a line. All methods but run are safe for concurrent use.
type board struct {
	w      io.Writer
	table  bool
	failed context.CancelFunc // called when nothing can be shown any more
	in     chan boardLine

	// Owned by run.
	rows  map[string]string // by topic
	drawn int               // rows on the screen
}

// boardLine is an event of a topic, the end of a topic (no text), or a message (no topic).
type boardLine struct{ topic, text string }

func newBoard(w io.Writer, failed context.CancelFunc) *board {
	return &board{w: w, table: isTerminal(w), failed: failed, in: make(chan boardLine, 64), rows: map[string]string{}}
}

// say shows a message.
func (b *board) say(format string, args ...any) {
	b.in <- boardLine{text: fmt.Sprintf(format, args...)}
}

func (b *board) event(e *runnel.Event) {
	line := fmt.Sprintf("%s %-15s %6d  %s", e.Time.Format("15:04:05"), e.Topic, e.Position.Offset, plainJSON(e.Payload))
	if r := []rune(line); len(r) > boardWidth {
		line = string(r[:boardWidth-1]) + "…"
	}
	b.in <- boardLine{e.Topic, line}
}

// forget takes a topic off the table.
func (b *board) forget(topic string) { b.in <- boardLine{topic: topic} }

// close ends run. Nothing may be shown afterwards.
func (b *board) close() { close(b.in) }

// run shows what comes until close. After an error of w it only takes what comes, and returns the error at the end.
func (b *board) run() error {
	var failure error
	var out bytes.Buffer
	for l := range b.in {
		b.take(&out, l)
		if len(b.in) > 0 { // more is there: show it together
			continue
		}
		b.draw(&out)
		if failure == nil {
			if _, failure = b.w.Write(out.Bytes()); failure != nil {
				b.failed()
			}
		}
		out.Reset()
	}
	return failure
}

func (b *board) take(out *bytes.Buffer, l boardLine) {
	switch {
	case b.table && l.topic != "" && l.text == "":
		delete(b.rows, l.topic)
	case b.table && l.topic != "":
		b.rows[l.topic] = l.text
	case l.topic != "" && l.text == "":
	default:
		b.lift(out)
		out.WriteString(l.text + "\n")
	}
}

// lift takes the table off the screen, so that something can be written where it was.
func (b *board) lift(out *bytes.Buffer) {
	if b.drawn > 0 {
		fmt.Fprintf(out, "\x1b[%dA\r\x1b[J", b.drawn)
		b.drawn = 0
	}
}

// draw puts the table at the bottom. Lines are not wrapped on a narrow terminal, or the table would be higher than it says.
func (b *board) draw(out *bytes.Buffer) {
	if !b.table {
		return
	}
	b.lift(out)
	out.WriteString("\x1b[?7l")
	for _, topic := range slices.Sorted(maps.Keys(b.rows)) {
		out.WriteString(b.rows[topic] + "\n")
		b.drawn++
	}
	out.WriteString("\x1b[?7h")
}

// plainJSON shows a flat JSON object as words: "percent 12.5  cores 2". Anything else is shown as it is.
func plainJSON(payload []byte) string {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return string(appendShown(nil, payload))
	}
	var words []string
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return string(appendShown(nil, payload))
		}
		value, err := d.Token()
		if _, nested := value.(json.Delim); err != nil || nested {
			return string(appendShown(nil, payload))
		}
		words = append(words, fmt.Sprintf("%v %v", name, value))
	}
	return string(appendShown(nil, []byte(strings.Join(words, "  "))))
}
