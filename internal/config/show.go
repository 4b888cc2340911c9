package config

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

//go:embed runnel.yaml
var template []byte

// Template is a file that explains every key; all but a first namespace is commented out and shows its default.
func Template() []byte { return slices.Clone(template) }

func namesOf(c *Config) []string { return slices.Sorted(maps.Keys(c.Server.Namespaces)) }

// Show writes the whole configuration as a file would have it, with the source of each value behind it.
func (c *Config) Show(w io.Writer) error {
	var b strings.Builder
	section := ""
	for _, o := range options {
		name := o.key
		if at, rest, ok := strings.Cut(o.key, "."); ok {
			if at != section {
				section = at
				fmt.Fprintf(&b, "%s:\n", section)
			}
			name = "  " + rest
		}
		row(&b, name, o.at(c), cmp.Or(c.sources[o.key], "default"))
	}
	b.WriteString("defaults:\n")
	for _, o := range namespaceOptions {
		row(&b, "  "+o.key, o.at(&c.Server.Defaults), cmp.Or(c.sources["defaults."+o.key], "default"))
	}
	b.WriteString("namespaces:\n")
	for _, name := range namesOf(c) {
		fmt.Fprintf(&b, "  %s:\n", text{&name})
		n := c.Server.Namespaces[name]
		for _, o := range namespaceOptions {
			row(&b, "    "+o.key, o.at(&n), cmp.Or(c.sources["namespaces."+name+"."+o.key], "defaults"))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func row(b *strings.Builder, name string, v value, source string) {
	fmt.Fprintf(b, "%-44s # %s\n", name+": "+v.String(), source)
}
