package cli

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel/internal/load"
)

// liveCommand is the hidden command of the subscribers of bench storm that are not cut.
const liveCommand = "bench-live"

func (a *app) benchLive() *cobra.Command {
	var o load.Options
	c := &cobra.Command{
		Use: liveCommand, Hidden: true, Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			o.Servers, o.Token, o.Compression = strings.Split(a.server, ","), a.token, a.compression
			return load.Live(c.Context(), o, os.Stdin, a.out)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Topic, "topic", "", "")
	f.IntVar(&o.Live, "live", 0, "")
	f.Float64Var(&o.Rate, "rate", 0, "")
	f.IntVar(&o.Payload, "payload", 0, "")
	return c
}
