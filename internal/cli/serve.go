package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/runnelhq/runnel/internal/config"
	"github.com/runnelhq/runnel/server"
)

// settings are the flags that are configuration.
type settings struct{ path string }

func (s *settings) register(f *pflag.FlagSet) {
	f.StringVar(&s.path, "config", "", "configuration file (see runnel config init)")
	f.String("listen", "", "gRPC address (default 127.0.0.1:50051)")
	f.String("admin", "", "address of metrics and health checks, or off (default 127.0.0.1:9464)")
	f.String("data", "", "data directory (default data)")
	f.Bool("insecure", false, "allow addresses other than loopback, without TLS and authentication")
	f.Bool("dev", false, "namespaces appear on first use")
	f.String("log-level", "", "debug, info, warn or error (default info)")
	f.String("log-format", "", "text or json (default text)")
}

// load reads file and environment, and puts the flags over them.
func (s *settings) load(f *pflag.FlagSet) (config.File, []string) {
	var flags []config.Flag
	for _, name := range []string{"listen", "admin", "data", "insecure", "dev", "log-level", "log-format"} {
		if f.Changed(name) {
			flags = append(flags, config.Flag{Name: "--" + name, Key: strings.ReplaceAll(name, "-", "_"), Value: f.Lookup(name).Value.String()})
		}
	}
	return config.Load(s.path, os.Environ(), flags...)
}

func logger(w io.Writer, f config.File) *slog.Logger {
	var level slog.Level
	if f.LogLevel != "" {
		_ = level.UnmarshalText([]byte(f.LogLevel)) // was checked
	}
	o := &slog.HandlerOptions{Level: level}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

func (a *app) serve() *cobra.Command {
	var s settings
	c := &cobra.Command{
		Use:     "serve",
		Short:   "Run the server",
		Example: "  runnel serve --dev\n  runnel serve --config runnel.yaml",
		Args:    args(0, 0, "no arguments"),
	}
	s.register(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		file, mistakes := s.load(c.Flags())
		if len(mistakes) == 1 {
			return usagef("%s", mistakes[0])
		}
		if len(mistakes) > 1 {
			return usagef("%s (and %d more mistakes; see runnel config check)", mistakes[0], len(mistakes)-1)
		}
		cfg := file.Server()
		cfg.Logger = logger(a.err, file)
		if _, err := cfg.Check(); err != nil {
			return usageError{err}
		}
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
			path := "runnel.yaml"
			if len(args) == 1 {
				path = args[0]
			}
			if path == "-" {
				_, err := a.out.Write(config.Template)
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
			if _, err := f.Write(config.Template); err != nil {
				f.Close()
				return err
			}
			fmt.Fprintf(a.out, "wrote %s\n", path)
			return f.Close()
		},
	}
	init.Flags().BoolVar(&force, "force", false, "write over an existing file")
	var s, shown settings
	check := &cobra.Command{
		Use: "check [FILE]", Short: "Explain every mistake of a configuration, with its line", Args: args(0, 1, "at most one file"),
		RunE: func(c *cobra.Command, args []string) error {
			if s.path == "" {
				s.path = "runnel.yaml"
			}
			if len(args) == 1 {
				s.path = args[0]
			}
			_, mistakes := s.load(c.Flags())
			for _, m := range mistakes {
				fmt.Fprintf(a.err, "runnel: %s\n", m)
			}
			if len(mistakes) > 0 {
				return errQuiet
			}
			fmt.Fprintf(a.out, "%s is correct\n", s.path)
			return nil
		},
	}
	s.register(check.Flags())
	show := &cobra.Command{
		Use: "show", Short: "Print what a server would use: file, environment and flags together", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			file, mistakes := shown.load(c.Flags())
			for _, m := range mistakes {
				fmt.Fprintf(a.err, "runnel: %s\n", m)
			}
			if len(mistakes) > 0 {
				return errQuiet
			}
			return config.Show(a.out, file)
		},
	}
	shown.register(show.Flags())
	c.AddCommand(init, check, show)
	return c
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
