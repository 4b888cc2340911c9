package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/runnelhq/runnel"
)

const fromHelp = "new, last, earliest, OFFSET, EPOCH:OFFSET, an RFC 3339 time, or -N for the last N"

// parseFrom reads --from. Digits alone are an offset in the current epoch; offsets are exclusive.
func parseFrom(s string) (runnel.Start, error) {
	switch s {
	case "new":
		return runnel.New(), nil
	case "last":
		return runnel.Last(), nil
	case "earliest":
		return runnel.Earliest(), nil
	}
	if n, ok := strings.CutPrefix(s, "-"); ok {
		if v, err := strconv.ParseUint(n, 10, 32); err == nil && v > 0 {
			return runnel.LastN(uint32(v)), nil
		}
	}
	if v, err := strconv.ParseUint(s, 10, 64); err == nil {
		return runnel.After(runnel.Position{Offset: v}), nil
	}
	if p, err := runnel.ParsePosition(s); err == nil {
		return runnel.After(p), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil && t.UnixMilli() >= 0 {
		return runnel.Since(t), nil
	}
	return runnel.Start{}, usagef("bad --from %q: it must be new, last, earliest, an OFFSET, EPOCH:OFFSET, a time such as 2026-01-31T09:00:00Z, or -N for the last N", s)
}

// parseHeader reads --header NAME=VALUE. The value may hold anything, also another "=", and may be empty.
func parseHeader(s string) (name, value string, err error) {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return "", "", usagef("bad --header %q: it must be NAME=VALUE", s)
	}
	return name, value, nil
}
