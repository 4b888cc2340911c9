package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/config"
	"github.com/runnelhq/runnel/server"
)

func (a *app) serve() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: "Run the server until it is interrupted; then clients are told to move, and are cut after at most 30 s. A second\n" +
			"interrupt ends it at once. Every acknowledged event is kept either way, as its namespace promises.",
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
		s, err := server.New(cfg)
		if err != nil {
			return err
		}
		a.announce(s)
		if !cfg.Dev && len(cfg.Namespaces) == 0 {
			cfg.Logger.Warn("no namespaces are configured, so nothing can be published; add some to the configuration, or use --dev")
		}
		return s.Run(c.Context())
	}
	return c
}

// configFlags adds the flags that are configuration, and --config.
func configFlags(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", "", "configuration file (default "+config.DefaultFile+" if it exists; see runnel config init)")
	config.AddFlags(c.Flags())
}

// announce prints where the server is. The gRPC address comes before any other.
func (a *app) announce(s *server.Server) {
	fmt.Fprintf(a.out, "runnel: serving gRPC on %s\n", s.Addr())
	if admin := s.AdminAddr(); admin != nil {
		fmt.Fprintf(a.out, "runnel: admin on http://%s (/metrics, /healthz, /readyz)\n", admin)
	}
}
