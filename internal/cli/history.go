package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

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
		Use:     "history PATTERN",
		Short:   "Print retained events and end",
		Example: "  runnel history logs.app --from -20\n  runnel history 'quotes.>' --from 2026-01-31T09:00:00Z --json",
		Args:    args(1, 1, "one pattern"),
	}
	f := c.Flags()
	f.StringVar(&from, "from", "earliest", "new, last, earliest, OFFSET, EPOCH:OFFSET, an RFC 3339 time, or -N for the last N")
	f.Uint64Var(&to, "to", 0, "last offset, inclusive; 0: the newest")
	f.Uint32Var(&limit, "limit", 0, "most events to print; 0: all")
	f.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		start, err := parseFrom(from)
		if err != nil {
			return err
		}
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		p := newPrinter(a.out, asJSON)
		defer func() { err = errors.Join(err, p.flush()) }()
		for e, err := range client.History(c.Context(), args[0], runnel.Begin(start), runnel.To(to), runnel.Limit(limit)) {
			var notice *runnel.Error
			switch {
			case err == nil:
				err = p.event(e)
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

// topicJSON is a topic in protobuf's JSON, its last event with text and epoch.
type topicJSON struct {
	Topic        string     `json:"topic,omitempty"`
	Epoch        string     `json:"epoch,omitempty"`
	OldestOffset uint64     `json:"oldestOffset,omitempty,string"`
	NewestOffset uint64     `json:"newestOffset,omitempty,string"`
	Last         *eventJSON `json:"last,omitempty"`
	Durability   string     `json:"durability,omitempty"`
}

func (a *app) topics() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "topics PATTERN",
		Short:   "List topics with retained events",
		Example: "  runnel topics 'quotes.>'",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give one pattern, whose first token is a namespace: for example runnel topics 'quotes.>'")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	c.RunE = func(c *cobra.Command, args []string) error {
		client, err := a.dial()
		if err != nil {
			return err
		}
		defer client.Close()
		p := newPrinter(a.out, asJSON)
		table := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', 0)
		n := 0
		for t, err := range client.Topics(c.Context(), args[0]) {
			if err != nil {
				return err
			}
			if n++; n == 1 && !asJSON {
				fmt.Fprintln(table, "TOPIC\tOLDEST\tNEWEST\tLAST EVENT\tDURABILITY")
			}
			if asJSON {
				err = p.enc.Encode(describe(t))
			} else {
				_, err = fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", t.Name, t.Oldest, t.Newest, t.Last.Time.Format(time.DateTime), strings.ToLower(t.Durability))
			}
			if err != nil {
				return err
			}
		}
		return errors.Join(table.Flush(), p.flush())
	}
	return c
}

func describe(t runnel.Topic) json.Marshaler {
	d := topicJSON{Topic: t.Name, Epoch: t.Epoch, OldestOffset: t.Oldest, NewestOffset: t.Newest, Durability: "DURABILITY_" + t.Durability}
	if t.Last != nil {
		last := jsonOf(*t.Last)
		d.Last = &last
	}
	b, err := json.Marshal(d)
	if err != nil {
		return json.RawMessage("null") // strings and numbers always marshal
	}
	return json.RawMessage(b)
}
