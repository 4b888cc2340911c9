package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runnelhq/runnel/internal/load"
)

func p(v float64) *float64 { return &v }

// examples has results for every chart.
func examples(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	for _, scenario := range []string{"fanout", "topics", "connections", "sdk", "founding", "compression"} {
		for i, system := range []string{"runnel", "nats"} {
			for _, n := range []int{1000, 5000} {
				r := load.Result{System: system, Scenario: scenario, Subscribers: n, DeliveriesPerSecond: float64(1000 * (i + 1)), P50: p(1), P99: p(2), Max: p(3), Mean: p(1.5),
					ServerCPU: p(0.5), ClientCPU: p(0.2), RSSPerClient: p(40_000), WireBytes: 100, Content: "ticks", Window: 16}
				open := r
				open.Window, open.Rate = 0, 20
				if err := errors.Join(r.Write(&b), open.Write(&b)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return b.String()
}

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "results.jsonl"), filepath.Join(dir, "pictures")
	if err := os.WriteFile(in, []byte(examples(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	doc := filepath.Join(dir, "doc.md")
	if err := os.WriteFile(doc, []byte("before\n<!-- results: fanout -->\nold\nolder\n<!-- end -->\nbetween\n<!-- results: echo -->\nkept\n<!-- end -->\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	if code := command([]string{"--in", in, "--out", out, "--doc", doc}, &errs); code != 0 || errs.Len() > 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	want := `before
<!-- results: fanout -->

| window | system | deliveries/s | of nats | p50 ms | p99 ms | server CPU s/M | of it in the kernel | client CPU s/M |
|---|---|---|---|---|---|---|---|---|
| 16 | runnel | 1k | 0.50 | 1 | 2 | 0.5 | - | 0.2 |
| 16 | runnel | 1k | 0.50 | 1 | 2 | 0.5 | - | 0.2 |
| 16 | nats | 2k | 1.00 | 1 | 2 | 0.5 | - | 0.2 |
| 16 | nats | 2k | 1.00 | 1 | 2 | 0.5 | - | 0.2 |

<!-- end -->
between
<!-- results: echo -->
kept
<!-- end -->
after
`
	if string(b) != want {
		t.Errorf("the document is\n%s\nwant\n%s", b, want)
	}
	for _, c := range charts {
		b, err := os.ReadFile(filepath.Join(out, c.file))
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for d := xml.NewDecoder(bytes.NewReader(b)); ; {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", c.file, err)
			}
			if chars, ok := token.(xml.CharData); ok {
				text += string(chars)
			}
		}
		for _, want := range []string{c.title, "runnel", "nats"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s does not say %q", c.file, want)
			}
		}
	}
}

func TestPlotRefuses(t *testing.T) {
	dir := t.TempDir()
	lost := filepath.Join(dir, "lost.md")
	bad, good := filepath.Join(dir, "bad.jsonl"), filepath.Join(dir, "good.jsonl")
	b, err := json.Marshal(load.Result{Scenario: "nothing that is drawn"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(lost, []byte("<!-- results: nonsense -->\n<!-- end -->\n"), 0o600), os.WriteFile(bad, []byte("{}\nno\n"), 0o600), os.WriteFile(good, b, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--nonsense"}, 2, "not defined"},
		{[]string{"x"}, 2, `unknown argument "x"`},
		{[]string{"--in", filepath.Join(dir, "absent")}, 1, "no such file"},
		{[]string{"--in", bad, "--out", dir}, 1, "line 2: not a result"},
		{[]string{"--in", good, "--out", dir, "--doc", lost}, 1, `there is no table "nonsense"`},
		{[]string{"--in", good, "--out", dir, "--doc", ""}, 0, "there are no results for fanout.svg"},
	} {
		var errs bytes.Buffer
		if code := command(c.args, &errs); code != c.code || !strings.Contains(errs.String(), c.want) || c.code == 2 && strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%v: exit code %d, %q", c.args, code, &errs)
		}
	}
}

func TestShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0423: "0.0423", 9.5: "9.5", 123.4: "123", 4567: "4.57k", 1_250_000: "1.25M", 250_000_000: "250M"} {
		if got := short(v); got != want {
			t.Errorf("%g is %q, want %q", v, got, want)
		}
	}
}
