package cli

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/runnelhq/runnel"
)

func TestParseFrom(t *testing.T) {
	noon := time.Date(2026, 1, 31, 12, 0, 0, 250e6, time.UTC)
	for s, want := range map[string]runnel.Start{
		"new":                           runnel.New(),
		"last":                          runnel.Last(),
		"earliest":                      runnel.Earliest(),
		"0":                             runnel.After(runnel.Position{}),
		"42":                            runnel.After(runnel.Position{Offset: 42}),
		"18446744073709551615":          runnel.After(runnel.Position{Offset: 1<<64 - 1}),
		"0123456789abcdef:7":            runnel.After(runnel.Position{Epoch: "0123456789abcdef", Offset: 7}),
		"2026-01-31T12:00:00.25Z":       runnel.Since(noon),
		"2026-01-31T14:00:00.250+02:00": runnel.Since(noon),
		"-1":                            runnel.LastN(1),
		"-4294967295":                   runnel.LastN(1<<32 - 1),
	} {
		got, err := parseFrom(s)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "News", "-0", "--1", "- 1", "-4294967296", "+1", "1.5", "18446744073709551616", "abc:1", "0123456789abcdef:", ":1",
		"0123456789abcdef:-1", "2026-01-31", "2026-01-31 12:00:00Z", "1969-12-31T23:59:59Z", "last 5",
	} {
		_, err := parseFrom(s)
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), "--from") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzParseFrom(f *testing.F) {
	for _, s := range []string{"new", "-5", "5", "0123456789abcdef:5", "2026-01-31T12:00:00Z", "-", ":", "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := parseFrom(s)
		if err == nil {
			if strings.ContainsAny(s, " \n") {
				t.Errorf("%q is accepted", s)
			}
			return
		}
		if strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%q: not one plain line: %q", s, err)
		}
	})
}

func TestParseHeader(t *testing.T) {
	for s, want := range map[string][2]string{"a=b": {"a", "b"}, "a=": {"a", ""}, "a=b=c": {"a", "b=c"}, "a b= c": {"a b", " c"}} {
		name, value, err := parseHeader(s)
		if err != nil || name != want[0] || value != want[1] {
			t.Errorf("%q: %q, %q, %v", s, name, value, err)
		}
	}
	for _, s := range []string{"", "a", "=", "=b"} {
		if _, _, err := parseHeader(s); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add("a=b")
	f.Add("=")
	f.Fuzz(func(t *testing.T, s string) {
		name, value, err := parseHeader(s)
		if err == nil && (name == "" || strings.Contains(name, "=") || name+"="+value != s) {
			t.Errorf("%q: %q, %q", s, name, value)
		}
	})
}
