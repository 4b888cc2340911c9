package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
)

func TestPrinterForPeople(t *testing.T) {
	var out, notices bytes.Buffer
	p := (&app{out: &out, err: &notices}).printer(false)
	at := time.Date(2026, 1, 31, 12, 0, 0, 5e6, time.Local)
	for _, payload := range []string{"187.20", "\x1b[2Jgone\r\n", "日本", "\xff\xfe\xfd", ""} {
		if err := p.event(&runnel.Event{Topic: "a.b", Position: runnel.Position{Offset: 7}, Time: at, Payload: []byte(payload)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.notice(&runnel.Notice{Kind: "GAP", From: 8, To: 9, Reason: "trimmed\x07"}); err != nil {
		t.Fatal(err)
	}
	const start = "2026-01-31 12:00:00.005 a.b 7 "
	want := start + "187.20\n" + start + `\x1b[2Jgone\r\n` + "\n" + start + "日本\n" + start + "<3 bytes>\n" + start + "\n"
	if out.String() != want { // and all of it was flushed before the notice
		t.Errorf("%q", out.String())
	}
	if got := notices.String(); got != `runnel: notice GAP, offsets 8 to 9: trimmed\a`+"\n" {
		t.Errorf("%q", got)
	}
}

func TestPrinterJSONNotice(t *testing.T) {
	var out bytes.Buffer
	p := (&app{out: &out}).printer(true)
	if err := errors.Join(p.notice(&runnel.Notice{Kind: "DROPPED", From: 8, To: 10, Count: 3}), p.flush()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != `{"notice":{"kind":"NOTICE_KIND_DROPPED","from":"8","to":"10","count":"3"}}`+"\n" {
		t.Errorf("%q", got)
	}
}

func FuzzAppendShown(f *testing.F) {
	f.Add([]byte("plain"))
	f.Add([]byte("\x1b]0;title\x07\u009b\u202e\u2028"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, r := range string(appendShown(nil, payload)) {
			if !unicode.IsPrint(r) {
				t.Errorf("%U from %q", r, payload)
			}
		}
	})
}

func TestExplain(t *testing.T) {
	a := &app{server: "10.0.0.1:50051"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{&runnel.Error{Code: codes.Unavailable, Message: `connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:50051: connect: connection refused"`},
			`cannot reach a Runnel server at 10.0.0.1:50051: connection refused; start one with "runnel serve --dev" or set --server`},
		{&runnel.Error{Code: codes.Unimplemented, Message: "unknown service"},
			"what answers at 10.0.0.1:50051 is not a Runnel server, or one of another version; name another with --server"},
		{&runnel.Error{Code: codes.NotFound, Reason: "UNKNOWN_NAMESPACE", Message: `namespace "x" is not configured`, FromServer: true},
			`UNKNOWN_NAMESPACE: namespace "x" is not configured; add it to the server's configuration, or start the server with --dev`},
		{errors.New("two\nlines\x1b[0m"), `two; lines\x1b[0m`},
	} {
		if got := a.explain(c.err); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

func TestPlainJSON(t *testing.T) {
	for payload, want := range map[string]string{
		`{"percent":12.5,"cores":2}`: "percent 12.5  cores 2",
		`{}`:                         "",
		`{"a":{"b":1}}`:              `{"a":{"b":1}}`,
		`{"a":`:                      `{"a":`,
		`[1]`:                        `[1]`,
		"{\"a\":\"\x1b\"}":           `{"a":"\x1b"}`,
		`{"a":"\u001b[2J"}`:          `a \x1b[2J`,
		"text":                       "text",
	} {
		if got := plainJSON([]byte(payload)); got != want {
			t.Errorf("%q: %q", payload, got)
		}
	}
}

// On a terminal the table is drawn in place, and what happens scrolls above it.
func TestBoard(t *testing.T) {
	var out bytes.Buffer
	b := newBoard(&out, func() {})
	b.table = true
	event := func(topic string, n uint64) {
		b.event(&runnel.Event{Topic: topic, Position: runnel.Position{Offset: n}, Time: time.Unix(0, 0), Payload: []byte(strings.Repeat("x", 100))})
	}
	event("host.mem", 1)
	event("host.cpu", 2)
	b.say("something happened")
	event("host.cpu", 3)
	b.forget("host.mem")
	b.close()
	if err := b.run(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if lines[0] != "something happened" || !strings.Contains(lines[1], "host.cpu             3") || strings.Contains(out.String(), "host.mem") || b.drawn != 1 {
		t.Errorf("%q", lines)
	}
	if n := len([]rune(strings.TrimPrefix(lines[1], "\x1b[?7l"))); n != boardWidth {
		t.Errorf("%d columns", n)
	}
}
