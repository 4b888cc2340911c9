// Package config reads a server's configuration: runnel.yaml, then the environment, then flags, each over the one before. Every
// mistake is found, with its line or variable. Nothing here runs concurrently.
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/runnelhq/runnel/server"
)

// Template is a configuration with every key, explained.
//
//go:embed runnel.yaml
var Template []byte

// File is the shape of runnel.yaml. Unset keys keep the server's defaults.
type File struct {
	Listen       string               `yaml:"listen,omitempty"`
	Admin        string               `yaml:"admin,omitempty"`
	Data         string               `yaml:"data,omitempty"`
	Insecure     bool                 `yaml:"insecure,omitempty"`
	Dev          bool                 `yaml:"dev,omitempty"`
	LogLevel     Level                `yaml:"log_level,omitempty"`
	LogFormat    Format               `yaml:"log_format,omitempty"`
	DrainTimeout Duration             `yaml:"drain_timeout,omitempty"`
	SendTimeout  Duration             `yaml:"send_timeout,omitempty"`
	Limits       Limits               `yaml:"limits,omitempty"`
	Defaults     Namespace            `yaml:"defaults,omitempty"`
	Namespaces   map[string]Namespace `yaml:"namespaces,omitempty"`
}

// Limits bound what clients may do.
type Limits struct {
	MaxPayloadBytes         Size `yaml:"max_payload_bytes,omitempty"`
	MaxHeadersBytes         Size `yaml:"max_headers_bytes,omitempty"`
	MaxSubscriptions        int  `yaml:"max_subscriptions,omitempty"`
	MaxStreamsPerConnection int  `yaml:"max_streams_per_connection,omitempty"`
	MaxNamespaces           int  `yaml:"max_namespaces,omitempty"`
}

// Namespace is one namespace's settings.
type Namespace struct {
	History     History  `yaml:"history,omitempty"`
	MaxEvents   uint64   `yaml:"max_events,omitempty"`
	MaxBytes    Size     `yaml:"max_bytes,omitempty"`
	MaxAge      Duration `yaml:"max_age,omitempty"`
	DedupWindow Duration `yaml:"dedup_window,omitempty"`
	DedupIDs    int      `yaml:"dedup_ids,omitempty"`
	Overflow    Policy   `yaml:"overflow,omitempty"`
	Policies    []Policy `yaml:"policies,omitempty"`
	MaxLag      uint64   `yaml:"max_lag,omitempty"`
}

// Size is a number of bytes, with an optional unit: 64KiB, 1MiB, 2GiB.
type Size int64

// Duration is a length of time: 500ms, 30s, 2h, 7d.
type Duration time.Duration

// History, Policy, Level and Format are words of a fixed set.
type (
	History string
	Policy  string
	Level   string
	Format  string
)

func mistake(n *yaml.Node, format string, args ...any) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: ", n.Line) + fmt.Sprintf(format, args...)}}
}

func word[T ~string](to *T, n *yaml.Node, allowed ...string) error {
	if !slices.Contains(allowed, n.Value) {
		return mistake(n, "%q is not one of %s", n.Value, strings.Join(allowed, ", "))
	}
	*to = T(n.Value)
	return nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (h *History) UnmarshalYAML(n *yaml.Node) error {
	return word(h, n, "disk", "os", "memory", "none")
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *Policy) UnmarshalYAML(n *yaml.Node) error {
	return word(p, n, "catch-up", "drop-oldest", "disconnect")
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (l *Level) UnmarshalYAML(n *yaml.Node) error {
	return word(l, n, "debug", "info", "warn", "error")
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (f *Format) UnmarshalYAML(n *yaml.Node) error { return word(f, n, "text", "json") }

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	text, factor := n.Value, int64(1)
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if t, ok := strings.CutSuffix(text, unit); ok {
			text, factor = strings.TrimSpace(t), 1<<(10*(i+1))
		}
	}
	v, err := strconv.ParseInt(text, 10, 64)
	if err != nil || v < 0 || v > (1<<62)/factor {
		return mistake(n, "%q is not a size; write bytes, or a number with KiB, MiB, GiB or TiB", n.Value)
	}
	*s = Size(v * factor)
	return nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	if days, ok := strings.CutSuffix(n.Value, "d"); ok {
		var f float64
		f, err = strconv.ParseFloat(days, 64)
		v = time.Duration(f * 24 * float64(time.Hour))
	}
	if err != nil || v < 0 {
		return mistake(n, "%q is not a duration; write for example 500ms, 30s, 2h or 7d", n.Value)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML implements yaml.Marshaler.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// Flag is a setting from the command line.
type Flag struct {
	Name  string // --log-level
	Key   string // log_level
	Value string
}

// Load reads the file at path ("": none), the environment and flags, each over the one before. The list holds every mistake, one
// line each; it is empty if there is none.
func Load(path string, environ []string, flags ...Flag) (File, []string) {
	var f File
	var mistakes []string
	if path != "" {
		raw, err := os.ReadFile(path)
		if err != nil {
			return f, []string{fmt.Sprintf("cannot read the configuration: %v", err)}
		}
		mistakes = Parse(path, raw, &f)
	}
	mistakes = append(mistakes, overlay(environ, flags, &f)...)
	if len(mistakes) == 0 {
		if _, err := f.Server().Check(); err != nil {
			mistakes = append(mistakes, err.Error())
		}
	}
	return f, mistakes
}

var unknownField = regexp.MustCompile(`field (\S+) not found in type \S+`)

// Parse reads YAML into f and returns every mistake, with name and line.
func Parse(name string, raw []byte, f *File) []string {
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	err := d.Decode(f)
	var many *yaml.TypeError
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &many):
		var list []string
		for _, m := range many.Errors {
			m = unknownField.ReplaceAllString(strings.TrimPrefix(m, "line "), "unknown key $1")
			list = append(list, name+":"+m)
		}
		return list
	default:
		return []string{name + ": " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
}

// Variables of the client commands: never configuration.
var notOurs = []string{"RUNNEL_SERVER", "RUNNEL_TOKEN"}

// overlay applies RUNNEL_* variables (RUNNEL_LISTEN, RUNNEL_LIMITS_MAX_PAYLOAD_BYTES, RUNNEL_DEFAULTS_HISTORY...), then flags.
func overlay(environ []string, flags []Flag, f *File) []string {
	known := map[string]reflect.Value{}
	variables(reflect.ValueOf(f).Elem(), "RUNNEL", known)
	var mistakes []string
	set := func(source string, field reflect.Value, value string) {
		if err := yaml.Unmarshal([]byte(value), field.Addr().Interface()); err != nil {
			text := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\n", " "), "yaml: unmarshal errors:   line 1: ")
			mistakes = append(mistakes, source+": "+text)
		}
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "RUNNEL_") || slices.Contains(notOurs, name) {
			continue
		}
		if field, ok := known[name]; ok {
			set("environment: "+name, field, value)
			continue
		}
		mistakes = append(mistakes, fmt.Sprintf("environment: unknown variable %s", name))
	}
	for _, flag := range flags {
		set(flag.Name, known["RUNNEL_"+strings.ToUpper(flag.Key)], flag.Value)
	}
	return mistakes
}

func variables(v reflect.Value, prefix string, known map[string]reflect.Value) {
	for i := range v.NumField() {
		tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		name := prefix + "_" + strings.ToUpper(tag)
		switch v.Field(i).Kind() {
		case reflect.Struct:
			variables(v.Field(i), name, known)
		case reflect.Map:
		default:
			known[name] = v.Field(i)
		}
	}
}

// Server is the server's configuration that f describes.
func (f File) Server() server.Config {
	c := server.Config{
		Listen: f.Listen, Admin: f.Admin, Data: f.Data, Insecure: f.Insecure, Dev: f.Dev,
		DrainTimeout: time.Duration(f.DrainTimeout), SendTimeout: time.Duration(f.SendTimeout),
		Limits: server.Limits{
			MaxPayloadBytes: int(f.Limits.MaxPayloadBytes), MaxHeadersBytes: int(f.Limits.MaxHeadersBytes),
			MaxSubscriptions: f.Limits.MaxSubscriptions, MaxStreamsPerConnection: f.Limits.MaxStreamsPerConnection,
			MaxNamespaces: f.Limits.MaxNamespaces,
		},
		Defaults: f.Defaults.server(), Namespaces: map[string]server.Namespace{},
	}
	for name, n := range f.Namespaces {
		c.Namespaces[name] = n.server()
	}
	return c
}

func (n Namespace) server() server.Namespace {
	s := server.Namespace{
		History: string(n.History), MaxEvents: n.MaxEvents, MaxBytes: uint64(n.MaxBytes), MaxAge: time.Duration(n.MaxAge),
		DedupWindow: time.Duration(n.DedupWindow), DedupIDs: n.DedupIDs, Overflow: string(n.Overflow), MaxLag: n.MaxLag,
	}
	for _, p := range n.Policies {
		s.Policies = append(s.Policies, string(p))
	}
	return s
}

// Show writes what a server would use: f, which must be without mistakes, with every default filled in.
func Show(w io.Writer, f File) error {
	b, err := yaml.Marshal(effective(f))
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func effective(f File) File {
	c, err := f.Server().Check()
	if err != nil {
		return f
	}
	if f.LogLevel == "" {
		f.LogLevel = "info"
	}
	if f.LogFormat == "" {
		f.LogFormat = "text"
	}
	f.Listen, f.Admin, f.Data = c.Listen, c.Admin, c.Data
	f.DrainTimeout, f.SendTimeout = Duration(c.DrainTimeout), Duration(c.SendTimeout)
	f.Limits = Limits{
		MaxPayloadBytes: Size(c.Limits.MaxPayloadBytes), MaxHeadersBytes: Size(c.Limits.MaxHeadersBytes),
		MaxSubscriptions: c.Limits.MaxSubscriptions, MaxStreamsPerConnection: c.Limits.MaxStreamsPerConnection,
		MaxNamespaces: c.Limits.MaxNamespaces,
	}
	f.Defaults = namespaceOf(c.Defaults)
	f.Namespaces = map[string]Namespace{}
	for name, n := range c.Namespaces {
		f.Namespaces[name] = namespaceOf(n)
	}
	return f
}

func namespaceOf(s server.Namespace) Namespace {
	n := Namespace{
		History: History(s.History), MaxEvents: s.MaxEvents, MaxBytes: Size(s.MaxBytes), MaxAge: Duration(s.MaxAge),
		DedupWindow: Duration(s.DedupWindow), DedupIDs: s.DedupIDs, Overflow: Policy(s.Overflow), MaxLag: s.MaxLag,
	}
	for _, p := range s.Policies {
		n.Policies = append(n.Policies, Policy(p))
	}
	return n
}
