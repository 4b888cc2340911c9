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

// Show writes the whole configuration as a file would have it, with the source of each value behind it.
func (c *Config) Show(w io.Writer) error {
	var b strings.Builder
	section := ""
	for _, o := range options {
		if o.def == "" && c.sources[o.key] == "" {
			continue // left out
		}
		parts := strings.Split(o.key, ".")
		last := len(parts) - 1
		for i := range last {
			if at := strings.Join(parts[:i+1], "."); section != at && !strings.HasPrefix(section, at+".") {
				section = at
				fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", i), parts[i])
			}
		}
		row(&b, strings.Repeat("  ", last)+parts[last], o.at(c), cmp.Or(c.sources[o.key], "default"))
	}
	b.WriteString("defaults:\n")
	for _, o := range namespaceOptions {
		row(&b, "  "+o.key, o.at(&c.Server.Defaults), cmp.Or(c.sources["defaults."+o.key], "default"))
	}
	showThings(&b, c, "namespaces", c.Server.Namespaces, namespaceOptions, "defaults")
	showThings(&b, c, "issuers", c.Server.Issuers, issuerOptions, "default")
	showThings(&b, c, "roles", c.Server.Roles, roleOptions, "default")
	_, err := io.WriteString(w, b.String())
	return err
}

func showThings[T any](b *strings.Builder, c *Config, section string, all map[string]T, options []option[T], otherwise string) {
	fmt.Fprintf(b, "%s:\n", section)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(b, "  %s:\n", text{&name})
		thing := all[name]
		for _, o := range options {
			key := section + "." + name + "." + o.key
			if o.def == "" && c.sources[key] == "" {
				continue // left out
			}
			row(b, "    "+o.key, o.at(&thing), cmp.Or(c.sources[key], otherwise))
		}
	}
}

func row(b *strings.Builder, name string, v value, source string) {
	fmt.Fprintf(b, "%-44s # %s\n", name+": "+v.String(), source)
}
