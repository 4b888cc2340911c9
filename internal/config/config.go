// Package config turns runnel.yaml, the environment and flags into a checked configuration of the server. What comes later
// wins: defaults, file, environment, flags.
//
// Every setting has one key, written with dots: limits.max_payload_bytes. In the file the dots are nesting; the environment
// variable is RUNNEL_LIMITS_MAX_PAYLOAD_BYTES; settings without a dot are also flags, as --log-level is log_level, and --nats-urls is nats.urls. A setting of
// a namespace is namespaces.quotes.max_age and RUNNEL_NAMESPACES_QUOTES_MAX_AGE; a name in a variable means the namespace of the file
// that is written so in capitals, _ for all but letters and digits, and is else read in lower case.
//
// All mistakes of all sources are found, not only the first, and each says where it is. Loading touches nothing but the file;
// results may be read by any goroutine.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/runnelhq/runnel/internal/audit"
	"github.com/runnelhq/runnel/internal/logs"
	"github.com/runnelhq/runnel/server"
)

// DefaultFile is read, if it exists, where no file is named.
const DefaultFile = "runnel.yaml"

// Config is a whole configuration.
type Config struct {
	Server    server.Config // complete and checked; Logger is left to the caller
	LogLevel  slog.Level
	LogFormat string // text or json
	Etcd      Etcd

	sources map[string]string // by key: where the value comes from, if it is not the default
}

// Etcd is where the server lists itself, under the name of a service; nowhere if both are empty.
type Etcd struct {
	Endpoints []string
	Service   string
}

// Logger returns a logger that writes to w in the form that is configured. Its level is given, since it may change.
func (c *Config) Logger(w io.Writer, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	return slog.New(logs.Limit(h, audit.Message)) // the audit log bounds itself
}

// Problem is one mistake in a configuration.
type Problem struct {
	Source string // FILE:LINE, FILE, a variable or a flag; empty if it is in no single place
	Text   string // one plain line
}

// Error is the problem in one line, its source first.
func (p Problem) Error() string {
	if p.Source == "" {
		return p.Text
	}
	return p.Source + ": " + p.Text
}

// Load reads the file at path, then environ (as os.Environ has it), then those flags that were set on the command line; flags may
// be nil, and flags that AddFlags did not add are ignored. An empty path means DefaultFile if it exists, else no file. The
// configuration is usable only if there are no problems.
func Load(path string, flags *pflag.FlagSet, environ []string) (*Config, []Problem) {
	if path == "" {
		if _, err := os.Stat(DefaultFile); err == nil {
			path = DefaultFile
		}
	}
	l := newLoader(path)
	if path != "" {
		if b, err := os.ReadFile(path); err != nil {
			l.unreadable(err)
		} else {
			l.file(b)
		}
	}
	for _, variable := range environ {
		if name, text, ok := strings.Cut(variable, "="); ok && strings.HasPrefix(name, prefix) {
			l.variable(name, text)
		}
	}
	if flags != nil {
		flags.Visit(l.flag)
	}
	return l.config()
}

// loader puts the layers over each other. Every value is checked where it is read, so that a mistake is found even where a later
// layer hides it; only what is right gets into values.
type loader struct {
	path     string
	values   map[string]string          // by key, as text
	sources  map[string]string          // by key
	names    map[string]map[string]bool // of the things in each family
	places   map[string]string          // by things that have names: where they begin
	problems []Problem
}

func newLoader(path string) *loader {
	return &loader{path: path, values: map[string]string{}, sources: map[string]string{}, places: map[string]string{}, names: map[string]map[string]bool{}}
}

func (l *loader) problem(source, format string, args ...any) {
	l.problems = append(l.problems, Problem{source, fmt.Sprintf(format, args...)})
}

func (l *loader) unreadable(err error) {
	if errors.Is(err, fs.ErrNotExist) {
		l.problem(l.path, "there is no such file; \"runnel config init %s\" writes one", l.path)
		return
	}
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		err = cause.Err
	}
	l.problem(l.path, "cannot be read: %v", err)
}

// accept checks a value and takes it. label is what the problem begins with, behind its source.
func (l *loader) accept(source, label, key, text string) {
	if err := lookup(key).Set(text); err != nil {
		l.problem(source, "%s%v", label, err)
		return
	}
	l.values[key], l.sources[key] = text, source
	if section, rest, ok := strings.Cut(key, "."); ok && familyOf(section) != nil {
		name, _, _ := strings.Cut(rest, ".")
		l.name(section, name)
	}
}

// name notes that there is a thing of that name.
func (l *loader) name(section, name string) {
	if l.names[section] == nil {
		l.names[section] = map[string]bool{}
	}
	l.names[section][name] = true
}

const prefix = "RUNNEL_"

// notSettings are variables with that prefix that belong to the client commands.
var notSettings = []string{"RUNNEL_SERVER", "RUNNEL_TOKEN", "RUNNEL_ETCD"}

// variable reads one environment variable. An empty one counts as not set.
func (l *loader) variable(name, text string) {
	rest := strings.TrimPrefix(name, prefix)
	switch {
	case text == "" || slices.Contains(notSettings, name):
		return
	case rest == "PORT" || strings.HasPrefix(rest, "PORT_") || strings.HasPrefix(rest, "SERVICE_"),
		rest == "NATS_PORT" || strings.HasPrefix(rest, "NATS_PORT_") || strings.HasPrefix(rest, "NATS_SERVICE_"):
		return // Kubernetes sets these beside services named runnel and runnel-nats
	}
	key, err := l.variableKey(rest)
	if err != nil {
		l.problem(printable(name), "%v", err)
		return
	}
	l.accept(name, "", key, text)
}

// variableKey is the key of the variable RUNNEL_ + rest.
func (l *loader) variableKey(rest string) (string, error) {
	for _, key := range fixedKeys() {
		if rest == inVariable(key) {
			return key, nil
		}
	}
	for _, f := range families {
		name, ok := strings.CutPrefix(rest, inVariable(f.section)+"_")
		if !ok {
			continue
		}
		for _, key := range f.keys {
			if name, ok := strings.CutSuffix(name, "_"+strings.ToUpper(key)); ok {
				name, err := l.named(f.section, name)
				return f.section + "." + name + "." + key, err
			}
		}
	}
	return "", errors.New("there is no such setting; see \"runnel config show\": limits.max_namespaces there, for one, is RUNNEL_LIMITS_MAX_NAMESPACES")
}

// namespace is the namespace that a variable names.
func (l *loader) named(section, name string) (string, error) {
	var found []string
	for candidate := range l.names[section] {
		if inVariable(candidate) == name {
			found = append(found, candidate)
		}
	}
	switch slices.Sort(found); len(found) {
	case 0:
		return checkName(section, strings.ToLower(name))
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("it may mean any of the %s %s; set it in the file", section, strings.Join(found, ", "))
}

// inVariable is a key or name as variables have it.
func inVariable(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(s))
}

// flag reads one flag that was set.
func (l *loader) flag(f *pflag.Flag) {
	if key := f.Annotations[annotation]; len(key) == 1 {
		l.accept("--"+f.Name, "", key[0], f.Value.String())
	}
}
