package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

func (a *app) history() *cobra.Command {
	var (
		from   string
		to     uint64
		limit  uint32
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "history PATTERN",
		Short: "Print retained events and end",
		Long: "Print the retained events of a topic or pattern in the order of their offsets, up to the newest there is at the start.\n" +
			"Notices about events that retention removed meanwhile go to stderr, or with --json to stdout in their place.",
		Example: "  runnel history logs.app --from -20\n  runnel history 'quotes.>' --from 2026-01-31T09:00:00Z --json",
		Args:    args(1, 1, "one pattern"),
	}
	f := c.Flags()
	f.StringVar(&from, "from", "earliest", fromHelp)
	f.Uint64Var(&to, "to", 0, "last offset, inclusive; 0: the newest")
	f.Uint32Var(&limit, "limit", 0, "most events to print; 0: all")
	f.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		start, err := parseFrom(from)
		if err != nil {
			return err
		}
		if err := checkPatterns(args); err != nil {
			return err
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		p := a.printer(asJSON)
		defer func() { err = errors.Join(err, p.flush()) }()
		for e, err := range client.History(c.Context(), args[0], runnel.Begin(start), runnel.To(to), runnel.Limit(limit)) {
			var notice *runnel.Error
			switch {
			case err == nil:
				err = p.event(&e)
			case errors.As(err, &notice) && !notice.Terminal():
				err = p.notice(notice.Notice)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return c
}
