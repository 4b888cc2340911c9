package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestParseTime(t *testing.T) {
	at := time.Date(2023, 11, 14, 22, 13, 20, 500e6, time.UTC)
	for _, s := range []string{"2023-11-14T22:13:20.5Z", "2023-11-14T23:13:20.500000+01:00", "1700000000.5", "1700000000500", "1.7000000005e9"} {
		if got, err := parseTime(s); err != nil || !got.Equal(at) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "soon", "NaN", "Inf", "-1", "1e300", "2023-11-14", "2023-11-14 22:13:20", " 1700000000"} {
		if got, err := parseTime(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"2023-11-14T22:13:20.5Z", "1700000000.5", "1700000000500", "NaN", "1e14", "0x1p-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		at, err := parseTime(s)
		if err == nil && (at.Year() < 0 || at.Year() > 9999) {
			t.Errorf("%q is %v", s, at)
		}
	})
}

// readAllRows lists the rows and the errors as "LINE JSON" and "LINE! what".
func readAllRows(t testing.TB, read rows) (list []string) {
	t.Helper()
	for {
		r, err := read()
		var bad *rowError
		switch {
		case errors.Is(err, io.EOF):
			return list
		case errors.As(err, &bad):
			list = append(list, fmt.Sprintf("%d! %v", bad.line, bad.err))
		case err != nil:
			t.Fatal(err)
		default:
			list = append(list, fmt.Sprintf("%d %s", r.line, r.json))
		}
	}
}

func TestCSV(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"plain", "a,b\n1,2\n3,4", `2 {"a":"1","b":"2"}|3 {"a":"3","b":"4"}`},
		{"mark, CRLF, empty lines", "\ufeffa,b\r\n\r\n1,2\r\n\n3,4\r\n", `3 {"a":"1","b":"2"}|5 {"a":"3","b":"4"}`},
		{"quotes", "a,b\n\"x,\"\"y\"\"\n z\",2\n3,4\n", `2 {"a":"x,\"y\"\n z","b":"2"}|4 {"a":"3","b":"4"}`},
		{"columns", "a,b\n1\n1,2,3\n3,4\n", `2! it has 1 columns, and the header row 2|3! it has 3 columns, and the header row 2|4 {"a":"3","b":"4"}`},
		{"open quote", "a,b\n\"1,2\n3,4\n", `2! extraneous or missing " in quoted-field|3 {"a":"3","b":"4"}`},
		{"two open quotes", "a,b\n\"1,2\n3,4\n\"5,6\n7,8\n", `2! extraneous or missing " in quoted-field|3 {"a":"3","b":"4"}|4! extraneous or missing " in quoted-field|5 {"a":"7","b":"8"}`},
		{"bare quote", "a,b\n5\",2\n3,4\n", `2! bare " in non-quoted-field|3 {"a":"3","b":"4"}`},
		{"not UTF-8", "a,b\n\xff,2\n3,4\n", `2! column a is not UTF-8|3 {"a":"3","b":"4"}`},
		{"escapes", "a\n\x1b\t\u2028\n", `2 {"a":"\u001b\t\u2028"}`},
	} {
		read, err := readCSV(t.Context(), strings.NewReader(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := strings.Join(readAllRows(t, read), "|"); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
	for in, want := range map[string]string{
		"":           "it is empty; CSV begins with a header row",
		"\n\n":       "it is empty; CSV begins with a header row",
		"a,\n1,2\n":  `bad header row: column 2 has the name "", which is empty, not UTF-8 or there twice`,
		"a,b,a\n":    `bad header row: column 3 has the name "a", which is empty, not UTF-8 or there twice`,
		"\"a,b\n1\n": `bad header row: extraneous or missing " in quoted-field`,
	} {
		if _, err := readCSV(t.Context(), strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// A quote that is never closed costs one row of a long file, and not the memory for the rest of it.
func TestCSVOpenQuoteInLongFile(t *testing.T) {
	const n = 3 * maxRowLines
	read, err := readCSV(t.Context(), strings.NewReader("a\n\"x\n"+strings.Repeat("y\n", n)))
	if err != nil {
		t.Fatal(err)
	}
	if got := readAllRows(t, read); len(got) != n+1 || !strings.HasPrefix(got[0], "2! ") || got[n] != fmt.Sprintf(`%d {"a":"y"}`, n+2) {
		t.Errorf("%d rows: %s ... %s", len(got), got[0], got[len(got)-1])
	}
}

func TestNDJSON(t *testing.T) {
	in := "{\"a\": \"x\", \"n\": 1.50, \"o\":{\"p\":[1]}, \"z\":null}\r\n\n null \n[1]\n{\"a\":\n{\"a\":\"\xff\"}\n{}"
	read := readNDJSON(t.Context(), strings.NewReader(in))
	first, err := read()
	if err != nil || first.line != 1 || string(first.json) != `{"a": "x", "n": 1.50, "o":{"p":[1]}, "z":null}` {
		t.Fatalf("%+v, %v", first, err)
	}
	if got, err := first.fill("{a}.{n}.{o}.{a}"); err != nil || got != `x.1.50.{"p":[1]}.x` {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := first.fill("{a}.{b}"); err == nil || err.Error() != "there is no column {b}" {
		t.Error(err)
	}
	want := "3! it is not a JSON object|4! it is not a JSON object|5! it is not a JSON object|6! it is not UTF-8|7 {}"
	if got := strings.Join(readAllRows(t, read), "|"); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestRowTime(t *testing.T) {
	r := &row{columns: map[string]string{"ts": "5", "time": "7", "when": "9", "bad": "x"}}
	for column, want := range map[string]int64{"": 7, "ts": 5, "when": 9} {
		if at, err := r.time(column); err != nil || at.Unix() != want {
			t.Errorf("%q: %v, %v", column, at, err)
		}
	}
	for _, column := range []string{"bad", "none"} {
		if _, err := r.time(column); err == nil {
			t.Errorf("%q is accepted", column)
		}
	}
	if _, err := new(row).time(""); !errors.Is(err, errNoTime) {
		t.Error(err)
	}
}

func FuzzCSV(f *testing.F) {
	f.Add("a,b\n1,2\n\"3\n4\",5\n")
	f.Add("a\n\"x\ny\n")
	f.Fuzz(func(t *testing.T, in string) {
		read, err := readCSV(t.Context(), strings.NewReader(in))
		if err != nil {
			return
		}
		lines, last := strings.Count(in, "\n")+1, 0
		for _, s := range readAllRows(t, read) {
			var line int
			if _, err := fmt.Sscan(strings.Fields(strings.Replace(s, "!", " ", 1))[0], &line); err != nil || line <= last || line > lines {
				t.Fatalf("%q after line %d of %d: %v", s, last, lines, err)
			}
			last = line
		}
	})
}
