package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

func (a *app) adminNodes() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "nodes", Short: "List the servers that share the cluster: where they are, how they are, how busy", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListNodesResponse, error) {
				return s.ListNodes(ctx, &runnelv1.ListNodesRequest{})
			})
			if err != nil {
				return err
			}
			var rows [][]any
			for _, n := range r.GetNodes() {
				if asJSON {
					if err := a.printJSON(n); err != nil {
						return err
					}
					continue
				}
				rows = append(rows, []any{
					n.GetNode(), addressOf(n), n.GetVersion(), nodeState(r, n), age(n.GetStartedMs()), n.GetSessions(), n.GetSubscriptions(),
					fmt.Sprintf("%.1f", n.GetPublishedPerS()), fmt.Sprintf("%.1f", n.GetDeliveredPerS()), percent(n.GetLoad()),
				})
			}
			if r.GetStale() {
				fmt.Fprintln(a.err, "runnel: this node does not hear the others; what it says of them is old")
			}
			if asJSON {
				return nil
			}
			return a.table("NODE\tADDRESS\tVERSION\tSTATE\tUP\tSESSIONS\tSUBS\tPUBLISHED/S\tDELIVERED/S\tLOAD", rows)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// addressOf is where clients reach a node, or else its machine: then nobody is sent there.
func addressOf(n *runnelv1.NodeInfo) string {
	if n.GetAddress() == "" {
		return "(" + n.GetHost() + ")"
	}
	return n.GetAddress()
}

// silentFrom is how long a node may be silent without that being worth a word.
const silentFrom = 3 * time.Second

// nodeState says how a node is, in a word.
func nodeState(r *runnelv1.ListNodesResponse, n *runnelv1.NodeInfo) string {
	silent := time.Duration(r.GetNowMs()-n.GetHeardMs()) * time.Millisecond
	switch {
	case silent > silentFrom:
		return "silent " + silent.Round(time.Second).String()
	case n.GetDraining():
		return "draining"
	case n.GetTrouble():
		return "trouble"
	}
	return "ok"
}

func percent(share float64) string { return fmt.Sprintf("%.0f%%", share*100) }
