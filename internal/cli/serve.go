package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"sync"
	"syscall"

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
			"interrupt ends it at once. Every acknowledged event is kept either way, as its namespace promises. SIGHUP reads roles, limits, namespaces and the log level\n" +
			"again; certificates and keys are read again by themselves.",
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
		level := new(slog.LevelVar)
		level.Set(conf.LogLevel)
		cfg.Logger = conf.Logger(a.err, level)
		cfg.Version = programVersion()
		cfg.Reread = func() (server.Config, []string, error) { return reread(c, path, conf, level) }
		cfg.Text = func() (string, error) {
			var b strings.Builder
			err := conf.Show(&b)
			return b.String(), err
		}
		// From here on, before anybody can know that there is a server: a hangup would end the process.
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		announce, done, err := announcer(c.Context(), conf.Etcd, cfg.Logger)
		if err != nil {
			return err
		}
		defer done()
		cfg.Announce = announce
		s, err := server.New(cfg)
		if err != nil {
			return err
		}
		a.announce(s)
		if !cfg.Dev && len(cfg.Namespaces) == 0 {
			cfg.Logger.Warn("no namespaces are configured, so nothing can be published; add some to the configuration, or use --dev")
		}
		ctx, stop := context.WithCancel(c.Context())
		var group sync.WaitGroup
		defer group.Wait()
		defer stop()
		group.Go(func() {
			for {
				select {
				case <-hangups:
					reload(s, cfg.Reread, cfg.Logger)
				case <-ctx.Done():
					return
				}
			}
		})
		group.Go(func() { supervise(ctx, cfg.Logger) })
		return s.Run(c.Context())
	}
	return c
}

// reread reads the configuration again; its log level comes into force with it. It names what only a restart changes and the server does
// not know of. Its error has a line for each problem; then nothing changes.
func reread(c *cobra.Command, path string, old *config.Config, level *slog.LevelVar) (next server.Config, also []string, err error) {
	conf, problems := config.Load(path, c.Flags(), os.Environ())
	var all []error
	for _, p := range problems {
		all = append(all, p)
	}
	if all != nil {
		return server.Config{}, nil, errors.Join(all...)
	}
	next = conf.Server
	next.Reloaded = func() { level.Set(conf.LogLevel) }
	if !reflect.DeepEqual(old.Etcd, conf.Etcd) {
		also = append(also, "discovery.etcd")
	}
	if old.LogFormat != conf.LogFormat {
		also = append(also, "log_format")
	}
	return next, also, nil
}

// reload puts a configuration that was read again in force. What is wrong with it is logged, and then nothing changes.
func reload(s *server.Server, read func() (server.Config, []string, error), logger *slog.Logger) {
	cfg, also, err := read()
	var restart []string
	if err == nil {
		restart, err = s.Reload(cfg)
	}
	restart = append(restart, also...)
	switch {
	case err != nil:
		for problem := range strings.Lines(err.Error()) {
			logger.Error("the configuration was not reloaded", "err", strings.TrimSpace(problem))
		}
	case len(restart) > 0:
		logger.Warn("roles, limits, namespaces and the log level were reloaded; what else has changed needs a restart", "changed", restart)
	default:
		logger.Info("roles, limits, namespaces and the log level were reloaded")
	}
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
