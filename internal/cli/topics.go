package cli

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

// tableRows is how many rows are aligned with each other; a table of all topics there can be would not fit into memory.
const tableRows = 1000

func (a *app) topics() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "topics PATTERN",
		Short:   "List topics with retained events",
		Long:    "List the topics that match a pattern and have retained events. The pattern's first token names the namespace.",
		Example: "  runnel topics 'quotes.>'\n  runnel topics logs.app --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give one pattern whose first token names a namespace, for example: runnel topics 'quotes.>'")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := checkPatterns(args); err != nil {
			return err
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		p := a.printer(asJSON)
		table := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
		n := 0
		for t, err := range client.Topics(c.Context(), args[0]) {
			if err != nil {
				return errors.Join(err, table.Flush(), p.flush())
			}
			if n++; n == 1 && !asJSON {
				fmt.Fprintln(table, "TOPIC\tOLDEST\tNEWEST\tLAST EVENT\tDURABILITY")
			}
			if asJSON {
				err = p.topic(&t)
			} else {
				_, err = fmt.Fprintln(table, topicRow(&t))
			}
			if n%tableRows == 0 {
				err = errors.Join(err, table.Flush())
			}
			if err != nil {
				return err
			}
		}
		return errors.Join(table.Flush(), p.flush())
	}
	return c
}

func topicRow(t *runnel.Topic) string {
	last := "-"
	if t.Last != nil {
		last = t.Last.Time.Format(time.DateTime)
	}
	return fmt.Sprintf("%s\t%d\t%d\t%s\t%s", t.Name, t.Oldest, t.Newest, last, strings.ToLower(t.Durability))
}
