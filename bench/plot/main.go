// Command plot draws what compare has measured: it reads a file of results, one JSON object a line, writes an SVG for each scenario
// that is in it, and puts the figures into the tables of a document.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/runnelhq/runnel/internal/load"
)

func main() { os.Exit(command(os.Args[1:], os.Stderr)) }

func command(args []string, errs io.Writer) int {
	f := flag.NewFlagSet("plot", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	in := f.String("in", "../docs/bench/results.jsonl", "what compare has printed")
	out := f.String("out", "../docs/bench", "directory for the pictures")
	doc := f.String("doc", "../docs/benchmarks.md", "document whose tables are filled; empty: none")
	err := f.Parse(args)
	if err == nil && f.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(errs, "plot: %v; there are --in FILE (%s), --out DIRECTORY (%s) and --doc FILE (%s)\n", err, *in, *out, *doc)
		return 2
	}
	if err := run(*in, *out, *doc, errs); err != nil {
		fmt.Fprintln(errs, "plot:", err)
		return 1
	}
	return 0
}

func run(in, out, doc string, errs io.Writer) error {
	results, err := read(in)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, c := range charts {
		p, err := c.draw(results)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		if p == nil {
			fmt.Fprintf(errs, "there are no results for %s\n", c.file)
			continue
		}
		if err := p.Save(width, height, filepath.Join(out, c.file)); err != nil {
			return err
		}
	}
	if doc == "" {
		return nil
	}
	return fill(doc, results)
}

// read returns the results of a file.
func read(name string) (results []*load.Result, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		r := new(load.Result)
		if err := json.Unmarshal(lines.Bytes(), r); err != nil {
			return nil, fmt.Errorf("%s, line %d: not a result of compare: %w", name, n, err)
		}
		results = append(results, r)
	}
	return results, lines.Err()
}
