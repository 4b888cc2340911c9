package config

import (
	"testing"
	"time"
)

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		in   string
		want uint64 // of a good one
		text string // how it is written again; "": in is refused
	}{
		{"0", 0, "0"}, {"1", 1, "1"}, {"1000", 1000, "1000"}, {"1024", 1024, "1KiB"}, {"1_000_000", 1e6, "1000000"},
		{"64MiB", 64 << 20, "64MiB"}, {"64 MiB", 64 << 20, "64MiB"}, {"2GiB", 2 << 30, "2GiB"}, {"3TiB", 3 << 40, "3TiB"}, {"1024KiB", 1 << 20, "1MiB"},
		{"5kB", 5000, "5000"}, {"5MB", 5e6, "5000000"}, {"7B", 7, "7"}, {"4194304TiB", 1 << 62, "4194304TiB"},
		{in: ""}, {in: "-1"}, {in: "1.5GiB"}, {in: "MiB"}, {in: "1 M"}, {in: "1mib"}, {in: "4194305TiB"}, {in: "16777216TiB"}, {in: "18446744073709551616"}, {in: "1KiBKiB"},
	} {
		got := uint64(1)
		v := size[uint64]{&got, 0, huge}
		err := v.Set(c.in)
		switch {
		case c.text == "" && (err == nil || got != 1):
			t.Errorf("%q is %d, %v", c.in, got, err)
		case c.text != "" && (err != nil || got != c.want || v.String() != c.text):
			t.Errorf("%q is %d, %q, %v", c.in, got, v, err)
		}
	}
}

func TestSpans(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		text string
	}{
		{"0", 0, "0s"}, {"0s", 0, "0s"}, {"500ms", 500 * time.Millisecond, "500ms"}, {"30s", 30 * time.Second, "30s"}, {"90s", 90 * time.Second, "1m30s"},
		{"10m", 10 * time.Minute, "10m"}, {"1h", time.Hour, "1h"}, {"10h0m5s", 10*time.Hour + 5*time.Second, "10h0m5s"}, {"24h", day, "1d"}, {"7d", 7 * day, "7d"},
		{"1d12h", 36 * time.Hour, "36h"}, {"0d", 0, "0s"}, {"106751d", 106751 * day, "106751d"}, {"1h30m", 90 * time.Minute, "1h30m"},
		{in: ""}, {in: "30"}, {in: "d"}, {in: "-1s"}, {in: "-1d"}, {in: "1d-5h"}, {in: "1dd"}, {in: "1d2d"}, {in: "106752d"}, {in: "9223372036854775807ns"}, {in: "99999999999999999999d"}, {in: "1w"}, {in: "soon"},
	} {
		got := time.Duration(1)
		v := span{&got, true}
		err := v.Set(c.in)
		switch {
		case c.text == "" && (err == nil || got != 1):
			t.Errorf("%q is %v, %v", c.in, got, err)
		case c.text != "" && (err != nil || got != c.want || v.String() != c.text):
			t.Errorf("%q is %v, %q, %v", c.in, got, v, err)
		}
	}
	if err := (span{new(time.Duration), false}).Set("0s"); err == nil {
		t.Error("0s was taken where it has no meaning")
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		in       string
		off, bad bool
	}{
		{in: "127.0.0.1:50051"}, {in: "[::1]:1"}, {in: "localhost:0"}, {in: ":50051"}, {in: "off", off: true}, {in: "127.0.0.1:65535"},
		{in: "off", bad: true}, {in: "", bad: true}, {in: "localhost", bad: true}, {in: "::1:1", bad: true}, {in: "localhost:http", bad: true},
		{in: "127.0.0.1:65536", bad: true}, {in: "a b:1", bad: true}, {in: "a\n:1", bad: true}, {in: "OFF", off: true, bad: true},
	} {
		got := ""
		if err := (address{&got, c.off}).Set(c.in); (err != nil) != c.bad || got != c.in && !c.bad {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
}
