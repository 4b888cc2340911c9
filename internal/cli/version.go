package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.out, "runnel %s %s %s/%s\n", programVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// programVersion is this program's.
func programVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return versionOf(b)
	}
	return "devel"
}

// versionOf is the module's version, and the commit it was built from where the go command has noted it.
func versionOf(b *debug.BuildInfo) string {
	version, revision, dirty := b.Main.Version, "", ""
	if version == "" || version == "(devel)" {
		version = "devel"
	}
	for _, s := range b.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = " " + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = " (modified)"
		}
	}
	return version + revision + dirty
}
