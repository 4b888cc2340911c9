package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

var topicOrders = map[string]runnelv1.BusyTopicOrder{
	"events": runnelv1.BusyTopicOrder_BUSY_TOPIC_ORDER_EVENTS, "bytes": runnelv1.BusyTopicOrder_BUSY_TOPIC_ORDER_BYTES,
}

func (a *app) adminTopics() *cobra.Command {
	var asJSON bool
	var order string
	var limit uint32
	c := &cobra.Command{
		Use: "topics [PATTERN]", Short: "List the busiest topics: their rates, and the sizes of their events", Args: args(0, 1, "at most one pattern"),
		RunE: func(c *cobra.Command, args []string) error {
			by, ok := topicOrders[order]
			if !ok {
				return usagef("bad --sort %q: it must be events or bytes", order)
			}
			if err := checkPatterns(args); err != nil {
				return err
			}
			req := &runnelv1.ListBusyTopicsRequest{Order: by, Limit: limit}
			if len(args) == 1 {
				req.Pattern = args[0]
			}
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListBusyTopicsResponse, error) {
				return s.ListBusyTopics(ctx, req)
			})
			if err != nil {
				return err
			}
			var rows [][]any
			for _, t := range r.GetTopics() {
				if asJSON {
					if err := a.printJSON(t); err != nil {
						return err
					}
					continue
				}
				rows = append(rows, []any{
					t.GetTopic(), atLeast(t.GetMissedEventsPerS()) + fmt.Sprintf("%.1f", t.GetEventsPerS()), atLeast(t.GetMissedBytesPerS()) + bytesText(uint64(t.GetBytesPerS())),
					bytesText(uint64(meanSize(t))), bytesText(t.GetNewestBytes()), t.GetOldestOffset(), t.GetNewestOffset(),
				})
			}
			if asJSON {
				return nil
			}
			if err := a.table("TOPIC\tEVENTS/S\tBYTES/S\tMEAN SIZE\tLAST SIZE\tOLDEST\tNEWEST", rows); err != nil {
				return err
			}
			if left := int(r.GetMatched()) - len(rows); left > 0 {
				fmt.Fprintf(a.err, "runnel: %d more; raise --limit, or pick with a pattern\n", left)
			}
			return nil
		},
	}
	c.Flags().StringVar(&order, "sort", "events", "events or bytes")
	c.Flags().Uint32Var(&limit, "limit", 100, "at most so many")
	jsonFlag(c, &asJSON)
	return c
}

// atLeast marks a rate of which something may be missing.
func atLeast(missed float64) string {
	if missed > 0 {
		return ">="
	}
	return ""
}

// meanSize is the mean size of a topic's events, lately, in bytes.
func meanSize(t *runnelv1.BusyTopic) float64 {
	if t.GetEventsPerS() == 0 {
		return 0
	}
	return t.GetBytesPerS() / t.GetEventsPerS()
}
