package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// value reads a setting from text and writes it as text that reads the same. Set's error says in one line what would be right.
type value interface {
	Set(string) error
	String() string
}

// huge is the largest number that can be written. noLimit and noAge, which cannot, are "no limit" of a namespace against a limit in
// defaults; they are shown as 0.
const (
	huge    = 1 << 62
	noLimit = math.MaxUint64
	noAge   = time.Duration(math.MaxInt64)
)

// quote shows a wrong value in a bounded, printable form.
func quote(s string) string {
	const shown = 64
	if len(s) > shown {
		return strconv.QuoteToASCII(s[:shown]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

// text is one line of printable text: what could be shown neither in a log nor in a file is a mistake.
type text struct{ p *string }

func (v text) Set(s string) error {
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s is not one line of printable text", quote(s))
	}
	*v.p = s
	return nil
}

func (v text) String() string {
	b, err := yaml.Marshal(*v.p)
	if err != nil {
		return strconv.Quote(*v.p)
	}
	return strings.TrimSuffix(string(b), "\n")
}

// address is HOST:PORT, or off where that is allowed.
type address struct {
	p   *string
	off bool
}

func (v address) Set(s string) error {
	if v.off && s == "off" {
		*v.p = s
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
		or := ""
		if v.off {
			or = ", or off"
		}
		return fmt.Errorf("%s is not an address; write HOST:PORT, as 127.0.0.1:50051%s", quote(s), or)
	}
	*v.p = s
	return nil
}

func (v address) String() string { return text{v.p}.String() }

type boolean struct{ p *bool }

func (v boolean) Set(s string) error {
	switch s {
	case "true", "false":
		*v.p = s == "true"
		return nil
	}
	return fmt.Errorf("%s is not one of true, false", quote(s))
}

func (v boolean) String() string { return strconv.FormatBool(*v.p) }

type choice struct {
	p  *string
	of []string
}

func (v choice) Set(s string) error {
	if !slices.Contains(v.of, s) {
		return fmt.Errorf("%s is not one of %s", quote(s), strings.Join(v.of, ", "))
	}
	*v.p = s
	return nil
}

func (v choice) String() string { return *v.p }

// list is some of a set of words, each once, separated by commas.
type list struct {
	p  *[]string
	of []string
}

func (v list) Set(s string) error {
	var words []string
	for word := range strings.SplitSeq(s, ",") {
		word = strings.TrimSpace(word)
		if err := (choice{new(string), v.of}).Set(word); err != nil {
			return err
		}
		if slices.Contains(words, word) {
			return fmt.Errorf("%s is there twice", word)
		}
		words = append(words, word)
	}
	*v.p = words
	return nil
}

func (v list) String() string { return "[" + strings.Join(*v.p, ", ") + "]" }

// texts is a list of texts, with commas between.
type texts struct{ p *[]string }

func (v texts) Set(s string) error {
	var all []string
	for one := range strings.SplitSeq(s, ",") {
		one = strings.TrimSpace(one)
		if err := (text{new(string)}).Set(one); err != nil {
			return err
		}
		if slices.Contains(all, one) {
			return fmt.Errorf("%s is there twice", quote(one))
		}
		all = append(all, one)
	}
	*v.p = all
	return nil
}

func (v texts) String() string {
	var all []string
	for i := range *v.p {
		all = append(all, text{&(*v.p)[i]}.String())
	}
	return "[" + strings.Join(all, ", ") + "]"
}

type level struct{ p *slog.Level }

func (v level) Set(s string) error {
	if err := (choice{new(string), []string{"debug", "info", "warn", "error"}}).Set(s); err != nil {
		return err
	}
	return v.p.UnmarshalText([]byte(s))
}

func (v level) String() string { return strings.ToLower(v.p.String()) }

// count is a whole number.
type count[T int | int64 | uint64] struct {
	p           *T
	least, most uint64
}

func (v count[T]) Set(s string) error {
	n, err := strconv.ParseUint(strings.ReplaceAll(s, "_", ""), 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%s is not a whole number", quote(s))
	}
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("%s is not between %d and %d", quote(s), v.least, v.most)
	}
	*v.p = T(n)
	return nil
}

func (v count[T]) String() string {
	if uint64(*v.p) == noLimit {
		return "0"
	}
	return strconv.FormatUint(uint64(*v.p), 10)
}

var units = []struct {
	name  string
	bytes uint64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}

// size is a number of bytes, with or without a unit.
type size[T int | int64 | uint64] count[T]

func (v size[T]) Set(s string) error {
	number, factor := s, uint64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, factor = strings.TrimSuffix(rest, " "), u.bytes
			break
		}
	}
	var n uint64
	if err := (count[uint64]{&n, 0, huge / factor}).Set(number); err != nil {
		return fmt.Errorf("%s is not a size; write bytes, or a whole number with KiB, MiB or GiB, as 64MiB", quote(s))
	}
	if n *= factor; n < v.least || n > v.most {
		return fmt.Errorf("%s is not between %d and %d bytes", quote(s), v.least, v.most)
	}
	*v.p = T(n)
	return nil
}

func (v size[T]) String() string {
	n := uint64(*v.p)
	for _, u := range units[:4] {
		if n != noLimit && n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatUint(n/u.bytes, 10) + u.name
		}
	}
	return count[T](v).String()
}

// span is a duration in Go's notation, with d for days of 24 hours in front; zero only where that has a meaning.
type span struct {
	p    *time.Duration
	zero bool
}

const day = 24 * time.Hour

func (v span) Set(s string) error {
	d, err := parseSpan(s)
	switch {
	case err != nil || d < 0 || d == noAge:
		return fmt.Errorf("%s is not a duration; write 30s, 5m, 24h or 7d", quote(s))
	case d == 0 && !v.zero:
		return fmt.Errorf("%s must be more than 0", quote(s))
	}
	*v.p = d
	return nil
}

func parseSpan(s string) (time.Duration, error) {
	number, rest, ok := strings.Cut(s, "d")
	if !ok {
		return time.ParseDuration(s)
	}
	days, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, err
	}
	var d time.Duration
	if rest != "" {
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, err
		}
	}
	if d < 0 || days > uint64((noAge-d)/day) {
		return 0, strconv.ErrRange
	}
	return time.Duration(days)*day + d, nil
}

func (v span) String() string {
	d := *v.p
	if d == noAge {
		return "0s"
	}
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String() // as 2m0s or 1h0m0s
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}
