package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// eventJSON is an event in protobuf's JSON, and text and epoch besides.
type eventJSON struct {
	EventID     string            `json:"eventId,omitempty"`
	Payload     []byte            `json:"payload,omitempty"`
	Timestamp   int64             `json:"timestamp,omitempty,string"`
	Topic       string            `json:"topic,omitempty"`
	Offset      uint64            `json:"offset,omitempty,string"`
	Key         string            `json:"key,omitempty"`
	ContentType string            `json:"contentType,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Publisher   string            `json:"publisher,omitempty"`
	Text        string            `json:"text,omitempty"`
	Epoch       string            `json:"epoch,omitempty"`
}

func jsonOf(e runnel.Event) eventJSON {
	j := eventJSON{
		EventID: e.ID, Payload: e.Payload, Timestamp: e.Time.UnixMilli(), Topic: e.Topic, Offset: e.Position.Offset,
		Key: e.Key, ContentType: e.ContentType, Headers: e.Headers, Publisher: e.Publisher, Epoch: e.Position.Epoch,
	}
	if utf8.Valid(e.Payload) {
		j.Text = string(e.Payload)
	}
	return j
}

// printer writes events and notices, one a line. It buffers; flush writes.
type printer struct {
	w    *bufio.Writer
	json bool
	enc  *json.Encoder
}

func newPrinter(w io.Writer, asJSON bool) *printer {
	p := &printer{w: bufio.NewWriterSize(w, 64<<10), json: asJSON}
	p.enc = json.NewEncoder(p.w)
	p.enc.SetEscapeHTML(false)
	return p
}

func (p *printer) flush() error { return p.w.Flush() }

func (p *printer) event(e runnel.Event) error {
	if p.json {
		return p.enc.Encode(jsonOf(e))
	}
	_, err := fmt.Fprintf(p.w, "%s %s %d %s\n", e.Time.Format("15:04:05.000"), e.Topic, e.Position.Offset, shown(e.Payload))
	return err
}

func (p *printer) notice(n *runnel.Notice) error {
	if p.json {
		return p.proto("notice", &runnelv1.Notice{
			Kind: runnelv1.NoticeKind(runnelv1.NoticeKind_value["NOTICE_KIND_"+n.Kind]), From: n.From, To: n.To, Count: n.Count, Reason: n.Reason,
		})
	}
	_, err := fmt.Fprintf(p.w, "-- %s offsets %d to %d, %d events: %s\n", n.Kind, n.From, n.To, n.Count, n.Reason)
	return err
}

// proto writes a message in protobuf's JSON, under a name if there is one.
func (p *printer) proto(name string, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err
	}
	if name == "" {
		return p.enc.Encode(json.RawMessage(b))
	}
	return p.enc.Encode(map[string]json.RawMessage{name: b})
}

// shown is a payload for a terminal: text with everything escaped that could drive the terminal, or its size.
func shown(b []byte) string {
	if !utf8.Valid(b) {
		return fmt.Sprintf("<%d bytes>", len(b))
	}
	var s strings.Builder
	for _, r := range string(b) {
		if unicode.IsPrint(r) || r == ' ' {
			s.WriteRune(r)
			continue
		}
		fmt.Fprintf(&s, "\\x%02x", r)
	}
	return s.String()
}

// terminal says whether w is one.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// progress shows a line about long work on a terminal, and nothing in a pipe.
type progress struct {
	w    io.Writer
	on   bool
	last time.Time
}

func (p *progress) show(format string, args ...any) {
	if p.on && time.Since(p.last) > 200*time.Millisecond {
		p.last = time.Now()
		fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
	}
}

func (p *progress) done() {
	if p.on && !p.last.IsZero() {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
