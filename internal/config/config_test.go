package config

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestTemplate(t *testing.T) {
	var f File
	if m := Parse("runnel.yaml", Template, &f); m != nil {
		t.Fatal(m)
	}
	got, err := f.Server().Check()
	if err != nil {
		t.Fatal(err)
	}
	want, err := File{}.Server().Check()
	if err != nil {
		t.Fatal(err)
	}
	if got.Listen != want.Listen || got.Admin != want.Admin || got.Limits != want.Limits || got.DrainTimeout != want.DrainTimeout ||
		got.SendTimeout != want.SendTimeout || got.Defaults.History != want.Defaults.History || got.Defaults.MaxLag != want.Defaults.MaxLag {
		t.Errorf("the template does not show the defaults:\n%+v\n%+v", got, want)
	}
	if n := got.Namespaces["logs"]; n.MaxAge != 7*24*time.Hour || n.MaxBytes != 10<<30 || n.History != "disk" || n.MaxLag != 1024 {
		t.Errorf("%+v", n)
	}
}

func TestMistakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runnel.yaml")
	if err := os.WriteFile(path, []byte("listen: :1\nlistn: x\ndefaults:\n  history: dsk\n  max_age: soon\nnamespaces:\n  a:\n    max_bytes: 3XB\n    colour: red\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, got := Load(path, []string{"RUNNEL_LIMITS_MAX_SUBSCRIPTIONS=many", "RUNNEL_LISTN=x", "RUNNEL_SERVER=ours", "PATH=/bin"})
	want := []string{
		path + `:2: unknown key listn`,
		path + `:4: "dsk" is not one of disk, os, memory, none`,
		path + `:5: "soon" is not a duration; write for example 500ms, 30s, 2h or 7d`,
		path + `:8: "3XB" is not a size; write bytes, or a number with KiB, MiB, GiB or TiB`,
		path + `:9: unknown key colour`,
		"environment: RUNNEL_LIMITS_MAX_SUBSCRIPTIONS: cannot unmarshal !!str `many` into int",
		"environment: unknown variable RUNNEL_LISTN",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestEnvironmentOverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runnel.yaml")
	if err := os.WriteFile(path, []byte("listen: 127.0.0.1:1\nadmin: 127.0.0.1:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, mistakes := Load(path, []string{"RUNNEL_LISTEN=127.0.0.1:9", "RUNNEL_DEFAULTS_MAX_AGE=7d"})
	if mistakes != nil || f.Listen != "127.0.0.1:9" || f.Admin != "127.0.0.1:2" || time.Duration(f.Defaults.MaxAge) != 7*24*time.Hour {
		t.Errorf("%+v, %v", f, mistakes)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Template)
	f.Add([]byte("a: [b"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var file File
		for _, m := range Parse("f", raw, &file) {
			if m == "" {
				t.Fatal("a mistake without words")
			}
		}
	})
}
