package cli

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/config"
	"github.com/runnelhq/runnel/server"
)

func (a *app) serve() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:     "serve",
		Short:   "Run the server",
		Example: "  runnel serve --dev\n  runnel serve --config runnel.yaml",
		Args:    args(0, 0, "no arguments"),
	}
	configFlags(c, &path)
	c.RunE = func(c *cobra.Command, _ []string) error {
		conf, problems := config.Load(path, c.Flags(), os.Environ())
		switch n := len(problems); {
		case n == 1:
			return usageError{problems[0]}
		case n > 1:
			return usagef("%w (and %d more; \"runnel config check\" explains all)", problems[0], n-1)
		}
		cfg := conf.Server
		cfg.Logger = conf.Logger(a.err)
		one, err := server.New(cfg)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "gRPC on %s\n", one.Addr())
		if addr := one.AdminAddr(); addr != nil {
			fmt.Fprintf(a.out, "admin on http://%s (/metrics, /healthz, /readyz)\n", addr)
		}
		if !cfg.Dev && len(cfg.Namespaces) == 0 {
			cfg.Logger.Warn("no namespaces are configured, so nothing can be published; add some to the configuration, or use --dev")
		}
		return one.Run(c.Context())
	}
	return c
}

// configFlags adds the flags that are configuration, and --config.
func configFlags(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", "", "configuration file (default "+config.DefaultFile+" if it exists; see runnel config init)")
	config.AddFlags(c.Flags())
}

func (a *app) config() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Write, check and show a server's configuration",
		Args: func(_ *cobra.Command, args []string) error {
			return usagef("say init, check or show; see runnel config --help")
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	var force bool
	init := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration with every key explained (default runnel.yaml, - for stdout)",
		Args:  args(0, 1, "at most one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			path := config.DefaultFile
			if len(args) == 1 {
				path = args[0]
			}
			if path == "-" {
				_, err := a.out.Write(config.Template())
				return err
			}
			flags := os.O_CREATE | os.O_WRONLY | os.O_EXCL
			if force {
				flags = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
			}
			f, err := os.OpenFile(path, flags, 0o600)
			if os.IsExist(err) {
				return fmt.Errorf("%s exists; name another file, or write over it with --force", path)
			}
			if err != nil {
				return err
			}
			if _, err := f.Write(config.Template()); err != nil {
				f.Close()
				return err
			}
			fmt.Fprintf(a.out, "wrote %s\n", path)
			return f.Close()
		},
	}
	init.Flags().BoolVar(&force, "force", false, "write over an existing file")
	var checked, shown string
	check := &cobra.Command{
		Use: "check [FILE]", Short: "Explain every mistake of a configuration, with its line", Args: args(0, 1, "at most one file"),
		RunE: func(c *cobra.Command, args []string) error {
			path := cmp.Or(append(args, checked)[0], config.DefaultFile)
			if _, err := a.load(c, path); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s is correct\n", path)
			return nil
		},
	}
	configFlags(check, &checked)
	show := &cobra.Command{
		Use: "show", Short: "Print what a server would use, and where each value comes from", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			conf, err := a.load(c, shown)
			if err != nil {
				return err
			}
			return conf.Show(a.out)
		},
	}
	configFlags(show, &shown)
	c.AddCommand(init, check, show)
	return c
}

// load loads a configuration, and explains every problem.
func (a *app) load(c *cobra.Command, path string) (*config.Config, error) {
	conf, problems := config.Load(path, c.Flags(), os.Environ())
	for _, p := range problems {
		fmt.Fprintf(a.err, "runnel: %v\n", p)
	}
	if problems != nil {
		return nil, errQuiet
	}
	return conf, nil
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: args(0, 0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			version, revision := "devel", ""
			if b, ok := debug.ReadBuildInfo(); ok {
				if b.Main.Version != "" && b.Main.Version != "(devel)" {
					version = b.Main.Version
				}
				for _, s := range b.Settings {
					if s.Key == "vcs.revision" {
						revision = " " + s.Value[:min(12, len(s.Value))]
					}
				}
			}
			_, err := fmt.Fprintf(a.out, "runnel %s%s %s %s/%s\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
