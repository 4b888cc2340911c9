package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/config"
)

func (a *app) config() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Write, check and show a server's configuration"}
	choose(c, "init, check or show")
	c.AddCommand(a.configInit(), a.configCheck(), a.configShow())
	return c
}

func (a *app) configInit() *cobra.Command {
	var force, secure bool
	var hosts []string
	c := &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration with every key explained (default runnel.yaml, - for stdout)",
		Args:  args(0, 1, "at most one file"),
		RunE: func(_ *cobra.Command, args []string) error {
			path := config.DefaultFile
			if len(args) == 1 {
				path = args[0]
			}
			text := config.Template()
			if secure {
				text = append(text, devSections...)
			}
			if path == "-" {
				if secure {
					return usagef("--tls writes files beside the configuration; name a file for that, not -")
				}
				_, err := a.out.Write(text)
				return err
			}
			// What would fail comes before what is written: a configuration without its files helps nobody.
			if _, err := os.Stat(path); err == nil && !force {
				return fmt.Errorf("%s exists; name another file, or write over it with --force", path)
			}
			if secure {
				if err := writeDevFiles(hosts); err != nil {
					return err
				}
			}
			if err := writeNew(path, text, force); err != nil {
				return err
			}
			wrote := path
			if secure {
				wrote += ", and certificates, keys and a secret in " + devDir + "/"
			}
			_, err := fmt.Fprintf(a.out, "wrote %s\n", wrote)
			return err
		},
	}
	c.Flags().BoolVar(&secure, "tls", false, "with TLS, tokens and roles for development: makes a CA, certificates and a secret in "+devDir+"/")
	c.Flags().StringArrayVar(&hosts, "host", nil, "with --tls: a further name or IP address of the server, may be repeated")
	c.Flags().BoolVar(&force, "force", false, "write over an existing file")
	return c
}

// writeNew writes a file that must not exist, unless force.
func writeNew(path string, b []byte, force bool) error {
	mode := os.O_CREATE | os.O_WRONLY | os.O_EXCL
	if force {
		mode = os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	}
	f, err := os.OpenFile(path, mode, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; name another file, or write over it with --force", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func (a *app) configCheck() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Explain every mistake of a configuration, with its line (default runnel.yaml)",
		Args:  args(0, 1, "at most one file"),
	}
	configFlags(c, &path)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			path = args[0]
		}
		path = cmp.Or(path, config.DefaultFile)
		if _, err := a.load(c, path); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.out, "%s is correct\n", path)
		return err
	}
	return c
}

func (a *app) configShow() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "show",
		Short: "Print what a server would use, and where each value comes from",
		Args:  args(0, 0, "no arguments"),
	}
	configFlags(c, &path)
	c.RunE = func(c *cobra.Command, _ []string) error {
		conf, err := a.load(c, path)
		if err != nil {
			return err
		}
		return conf.Show(a.out)
	}
	return c
}

// load loads a configuration, and explains every problem.
func (a *app) load(c *cobra.Command, path string) (*config.Config, error) {
	conf, problems := config.Load(path, c.Flags(), os.Environ())
	for _, p := range problems {
		fmt.Fprintf(a.err, "runnel: %s\n", oneLine(p.Error()))
	}
	if problems != nil {
		return nil, errSaid
	}
	return conf, nil
}
