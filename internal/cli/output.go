package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// printer writes events and notices, one a line. It buffers up to 64 KiB; flush writes. It belongs to one goroutine.
type printer struct {
	w       *bufio.Writer
	notices io.Writer // where notices go that are not JSON
	json    bool
	line    []byte
}

// printer prints on stdout; without JSON, notices go to stderr, so that stdout holds events only.
func (a *app) printer(asJSON bool) *printer {
	return &printer{w: bufio.NewWriterSize(a.out, 64<<10), notices: a.err, json: asJSON}
}

func (p *printer) flush() error { return p.w.Flush() }

func (p *printer) event(e *runnel.Event) error {
	b := p.line[:0]
	if p.json {
		b = appendEvent(b, e)
	} else {
		b = e.Time.AppendFormat(b, "2006-01-02 15:04:05.000 ")
		b = append(append(b, e.Topic...), ' ')
		b = append(strconv.AppendUint(b, e.Position.Offset, 10), ' ')
		b = appendShown(b, e.Payload)
	}
	p.line = append(b, '\n')
	_, err := p.w.Write(p.line)
	return err
}

func (p *printer) topic(t *runnel.Topic) error {
	p.line = append(appendTopic(p.line[:0], t), '\n')
	_, err := p.w.Write(p.line)
	return err
}

func (p *printer) notice(n *runnel.Notice) error {
	if p.json {
		return p.message("notice", &runnelv1.Notice{
			Kind: runnelv1.NoticeKind(runnelv1.NoticeKind_value["NOTICE_KIND_"+n.Kind]), From: n.From, To: n.To, Count: n.Count, Reason: n.Reason,
		})
	}
	if err := p.flush(); err != nil { // what came before it is shown before it
		return err
	}
	text := fmt.Sprintf("notice %s", n.Kind)
	if n.To > 0 {
		text += fmt.Sprintf(", offsets %d to %d", n.From, n.To)
	}
	if n.Count > 0 {
		text += fmt.Sprintf(", %d events", n.Count)
	}
	if n.Reason != "" {
		text += ": " + n.Reason
	}
	_, err := fmt.Fprintf(p.notices, "runnel: %s\n", oneLine(text))
	return err
}

// message writes a message in protobuf's JSON, under a name if there is one.
func (p *printer) message(name string, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	var v any = json.RawMessage(b) // encoding it takes out the spaces that protojson varies on purpose
	if name != "" {
		v = map[string]any{name: v}
	}
	enc := json.NewEncoder(p.w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// appendShown appends a payload for people: text with everything escaped that could drive a terminal, or its size.
func appendShown(b, payload []byte) []byte {
	if !utf8.Valid(payload) {
		return fmt.Appendf(b, "<%d bytes>", len(payload))
	}
	for len(payload) > 0 {
		r, size := utf8.DecodeRune(payload)
		if unicode.IsPrint(r) {
			b = append(b, payload[:size]...)
		} else {
			quoted := strconv.QuoteRune(r)
			b = append(b, quoted[1:len(quoted)-1]...)
		}
		payload = payload[size:]
	}
	return b
}

// progress shows a line about long work on a terminal, and nothing in a pipe.
type progress struct {
	w    io.Writer
	on   bool
	last time.Time
}

func (a *app) progress() *progress { return &progress{w: a.err, on: isTerminal(a.err)} }

func (p *progress) show(format string, args ...any) {
	if p.on && time.Since(p.last) > 200*time.Millisecond {
		p.last = time.Now()
		fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
	}
}

// clear takes the line away.
func (p *progress) clear() {
	if p.on && !p.last.IsZero() {
		p.last = time.Time{}
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
