package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/runnelhq/runnel/internal/topic"
)

// file reads the file's text. It walks the YAML nodes because they know their lines.
func (l *loader) file(b []byte) {
	d := yaml.NewDecoder(bytes.NewReader(b))
	var doc, next yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return // nothing but comments
	} else if err != nil {
		l.syntax(err)
		return
	}
	if err := d.Decode(&next); err == nil {
		l.problem(l.line(&next), "a second document begins here; one file is one configuration")
	} else if !errors.Is(err, io.EOF) {
		l.syntax(err)
	}
	if len(doc.Content) == 1 {
		l.section(doc.Content[0], "")
	}
}

func (l *loader) line(n *yaml.Node) string { return fmt.Sprintf("%s:%d", l.path, n.Line) }

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?((?s).*)$`)

// syntax reports what the YAML parser says, with its line in front.
func (l *loader) syntax(err error) {
	m := yamlLine.FindStringSubmatch(err.Error())
	source := l.path
	if m[1] != "" {
		source += ":" + m[1]
	}
	l.problem(source, "not YAML: %s", strings.Join(strings.Fields(m[2]), " "))
}

// isSection reports whether a key holds keys rather than a value.
func isSection(key string) bool {
	switch key {
	case "limits", "defaults", "tls", "otlp", "discovery", "discovery.etcd", "nats", "nats.tls":
		return true
	}
	return familyOf(key) != nil
}

// section reads the keys below at.
func (l *loader) section(n *yaml.Node, at string) {
	n = follow(n)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		l.problem(l.line(n), "%s must hold keys, each on a line of its own; known here: %s", cmp.Or(at, "the file"), known(at))
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, v := n.Content[i], n.Content[i+1]
		key := strings.TrimPrefix(at+"."+name.Value, ".")
		if line := lines[name.Value]; line > 0 {
			l.problem(l.line(name), "%s: is there twice, first in line %d", printable(key), line)
			continue
		}
		lines[name.Value] = name.Line
		dotted := strings.Contains(name.Value, ".") // here dots are nesting, never part of a name
		switch {
		case familyOf(at) != nil:
			if _, err := checkName(at, name.Value); err != nil {
				l.problem(l.line(name), "%s: %v", at, err)
				continue
			}
			l.name(at, name.Value)
			l.places[key] = l.line(name)
			l.section(v, key)
		case isSection(key):
			l.section(v, key)
		case lookup(key) == nil || dotted:
			l.problem(l.line(name), "unknown key %s; known here: %s", printable(key), known(at))
		default:
			if s, ok := l.text(v, key); ok {
				l.accept(l.line(v), key+": ", key, s)
			}
		}
	}
}

// text is the value of a key as text; of a list, with commas between.
func (l *loader) text(n *yaml.Node, key string) (string, bool) {
	n = follow(n)
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		l.problem(l.line(n), "%s: has no value; write one, or leave the key out", key)
		return "", false
	case n.Kind == yaml.ScalarNode:
		return n.Value, true
	}
	many := false
	switch lookup(key).(type) {
	case list, texts, addresses:
		many = true
	}
	if !many || n.Kind != yaml.SequenceNode {
		l.problem(l.line(n), "%s: takes one value, not a list or keys", key)
		return "", false
	}
	var words []string
	for _, e := range n.Content {
		if e = follow(e); e.Kind != yaml.ScalarNode {
			l.problem(l.line(e), "%s: must be a list of plain values", key)
			return "", false
		}
		if strings.Contains(e.Value, ",") {
			l.problem(l.line(e), "%s: %s holds a comma, which separates values", key, quote(e.Value))
			return "", false
		}
		words = append(words, e.Value)
	}
	return strings.Join(words, ","), true
}

// follow is the node that an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

// known lists the keys of a section.
func known(at string) string {
	section, _, inside := strings.Cut(at, ".")
	if f := familyOf(section); f != nil && inside {
		return strings.Join(slices.Sorted(slices.Values(f.keys)), ", ")
	} else if f != nil {
		return "names of " + section
	}
	if at != "" {
		at += "."
	}
	keys := map[string]bool{}
	if at == "" {
		for _, f := range families {
			keys[f.section] = true
		}
	}
	for _, key := range fixedKeys() {
		if rest, ok := strings.CutPrefix(key, at); ok {
			name, _, _ := strings.Cut(rest, ".")
			keys[name] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(keys)), ", ")
}

// checkName returns the name of a thing in a family. All are spelled as namespaces are.
func checkName(section, name string) (string, error) {
	s, err := topic.ParseNamespace(name)
	if err != nil && section != "namespaces" {
		return s, fmt.Errorf("bad name %s: use letters, digits, _ and -", quote(name))
	}
	return s, err
}

// printable is a key as it is, unless it would not print well.
func printable(key string) string {
	if q := quote(key); q != `"`+key+`"` {
		return q
	}
	return key
}
