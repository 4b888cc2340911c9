package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// operate makes one call of the server's AdminService.
func operate[T any](ctx context.Context, a *app, f func(context.Context, runnelv1.AdminServiceClient) (T, error)) (res T, err error) {
	client, err := a.dial()
	if err != nil {
		return res, err
	}
	defer client.Close()
	return runnel.Admin(ctx, client, f)
}

func (a *app) printJSON(m proto.Message) error {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s\n", b)
	return err
}

// table prints rows in columns; values that somebody else has chosen are made printable.
func (a *app) table(header string, rows [][]any) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header) // errors come with Flush
	for _, row := range rows {
		for i, v := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, oneLine(fmt.Sprint(v)))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func jsonFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "json", false, "print one object a line")
}

func (a *app) adminInfo() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "info", Short: "Say how the server is", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			i, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.GetServerInfoResponse, error) {
				return s.GetServerInfo(ctx, &runnelv1.GetServerInfoRequest{})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(i)
			}
			state := "takes work"
			if i.GetTrouble() != "" {
				state = i.GetTrouble()
			}
			up := time.UnixMilli(i.GetNowMs()).Sub(time.UnixMilli(i.GetStartedMs())).Round(time.Second)
			for _, r := range [][2]string{
				{"version", i.GetVersion()}, {"state", state}, {"up", up.String()},
				{"sessions", fmt.Sprintf("%d with %d subscriptions, %d behind", i.GetSessions(), i.GetSubscriptions(), i.GetBehind())},
				{"published", fmt.Sprint(i.GetPublished())},
				{"delivered", fmt.Sprintf("%d, %d dropped, %d conflated, %d gaps", i.GetDelivered(), i.GetDropped(), i.GetConflated(), i.GetGaps())},
				{"too slow", fmt.Sprintf("%d sessions ended", i.GetSlowConsumers())},
				{"memory", fmt.Sprintf("%s of %s", bytesText(i.GetMemoryUsedBytes()), bytesText(i.GetMemoryLimitBytes()))},
				{"disk", fmt.Sprintf("%s used, %s free", bytesText(i.GetDiskBytes()), bytesText(i.GetDiskFreeBytes()))},
				{"namespaces", fmt.Sprint(i.GetNamespaces())},
			} {
				if _, err := fmt.Fprintf(a.out, "%-11s %s\n", r[0], oneLine(r[1])); err != nil {
					return err
				}
			}
			return nil
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

// bytesText is a number of bytes for people.
func bytesText(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

var orders = map[string]runnelv1.SessionOrder{
	"lag": runnelv1.SessionOrder_SESSION_ORDER_LAG, "rate": runnelv1.SessionOrder_SESSION_ORDER_RATE,
	"delay": runnelv1.SessionOrder_SESSION_ORDER_DELAY, "age": runnelv1.SessionOrder_SESSION_ORDER_AGE,
}

func (a *app) adminSessions() *cobra.Command {
	var asJSON bool
	var order, match string
	var limit uint32
	c := &cobra.Command{
		Use: "sessions", Short: "List sessions: who is connected, how fast, how far behind", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			by, ok := orders[order]
			if !ok {
				return usagef("bad --sort %q: it must be lag, rate, delay or age", order)
			}
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
				return s.ListSessions(ctx, &runnelv1.ListSessionsRequest{Match: match, Order: by, Limit: limit})
			})
			if err != nil {
				return err
			}
			if asJSON {
				for _, s := range r.GetSessions() {
					if err := a.printJSON(s); err != nil {
						return err
					}
				}
				return nil
			}
			var rows [][]any
			for _, s := range r.GetSessions() {
				rows = append(rows, []any{
					s.GetSessionId(), s.GetClientId(), s.GetAddress(), age(s.GetSinceMs()), s.GetSubscriptions(), s.GetLag(), fmt.Sprintf("%.1f", s.GetEventsPerS()),
					delay(s.GetP50Ms()), delay(s.GetP99Ms()), s.GetDropped(), s.GetConflated(), s.GetGaps(), stuckText(s),
				})
			}
			if err := a.table("SESSION\tCLIENT\tADDRESS\tAGE\tSUBS\tLAG\tEVENTS/S\tP50 MS\tP99 MS\tDROPPED\tCONFLATED\tGAPS\tSTATE", rows); err != nil {
				return err
			}
			if left := int(r.GetMatched()) - len(rows); left > 0 {
				fmt.Fprintf(a.err, "runnel: %d more; raise --limit, or pick with --match\n", left)
			}
			return nil
		},
	}
	c.Flags().StringVar(&order, "sort", "lag", "lag, rate, delay or age")
	c.Flags().StringVar(&match, "match", "", "only those whose client id, subject or address begins so")
	c.Flags().Uint32Var(&limit, "limit", 100, "at most so many")
	jsonFlag(c, &asJSON)
	return c
}

func age(ms int64) string { return time.Since(time.UnixMilli(ms)).Round(time.Second).String() }

// delay is a delay of which only the power of two is known.
func delay(ms float64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprintf("<=%.0f", ms)
}

func (a *app) adminSession() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "session ID", Short: "Describe a session and its subscriptions", Args: args(1, 1, "one session id"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.GetSessionResponse, error) {
				return s.GetSession(ctx, &runnelv1.GetSessionRequest{SessionId: args[0]})
			})
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(r)
			}
			s := r.GetSession()
			expires := "never"
			if s.GetExpiresMs() > 0 {
				expires = time.UnixMilli(s.GetExpiresMs()).Format(time.RFC3339)
			}
			for _, r := range [][2]string{
				{"client", s.GetClientId()}, {"subject", s.GetSubject()}, {"address", s.GetAddress()}, {"roles", strings.Join(s.GetRoles(), " ")},
				{"since", time.UnixMilli(s.GetSinceMs()).Format(time.DateTime)}, {"expires", expires},
				{"blocked", (time.Duration(s.GetBlockedMs()) * time.Millisecond).String()},
				{"errors", strings.TrimSpace(fmt.Sprintf("%d %s", s.GetErrors(), s.GetLastError()))},
			} {
				if _, err := fmt.Fprintf(a.out, "%-8s %s\n", r[0], oneLine(r[1])); err != nil {
					return err
				}
			}
			var rows [][]any
			for _, sub := range r.GetSubscriptions() {
				state := "behind"
				if sub.GetLive() {
					state = "live"
				}
				policy := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(sub.GetOverflow().String(), "OVERFLOW_POLICY_"), "_", "-"))
				rows = append(rows, []any{
					sub.GetSubscription(), sub.GetPattern(), policy, state, sub.GetPosition().GetOffset(), sub.GetLag(), sub.GetCredit(), sub.GetDelivered(),
					sub.GetDropped(), sub.GetConflated(), sub.GetGaps(), delay(sub.GetP99Ms()),
				})
			}
			return a.table("ID\tPATTERN\tPOLICY\tSTATE\tOFFSET\tLAG\tCREDIT\tDELIVERED\tDROPPED\tCONFLATED\tGAPS\tP99 MS", rows)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) adminDisconnect() *cobra.Command {
	var client, subject string
	c := &cobra.Command{
		Use: "disconnect [SESSION]", Short: "End sessions; their clients come back and resume", Args: args(0, 1, "at most one session id"),
		RunE: func(c *cobra.Command, args []string) error {
			r := &runnelv1.DisconnectRequest{ClientId: client, Subject: subject}
			if len(args) == 1 {
				r.SessionId = args[0]
			}
			given := 0
			for _, v := range []string{r.GetSessionId(), client, subject} {
				if v != "" {
					given++
				}
			}
			if given != 1 {
				return usagef("name a session, or --client, or --subject")
			}
			res, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.DisconnectResponse, error) {
				return s.Disconnect(ctx, r)
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%d sessions ended\n", res.GetEnded())
			return err
		},
	}
	c.Flags().StringVar(&client, "client", "", "all sessions of a client id")
	c.Flags().StringVar(&subject, "subject", "", "all sessions of a subject")
	return c
}

func (a *app) adminNamespaces() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "namespaces", Short: "List namespaces: what they keep, how large they are, how fast they grow", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListNamespacesResponse, error) {
				return s.ListNamespaces(ctx, &runnelv1.ListNamespacesRequest{})
			})
			if err != nil {
				return err
			}
			var rows [][]any
			for _, n := range r.GetNamespaces() {
				if asJSON {
					if err := a.printJSON(n); err != nil {
						return err
					}
					continue
				}
				durability := strings.ToLower(strings.TrimPrefix(n.GetDurability().String(), "DURABILITY_"))
				rows = append(rows, []any{
					n.GetNamespace(), durability, n.GetOldestOffset(), n.GetNewestOffset(), bytesText(n.GetBytes()), fmt.Sprintf("%.1f", n.GetEventsPerS()), n.GetEpoch(),
				})
			}
			if asJSON {
				return nil
			}
			return a.table("NAMESPACE\tDURABILITY\tOLDEST\tNEWEST\tSIZE\tEVENTS/S\tEPOCH", rows)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) adminTrim() *cobra.Command {
	var upTo uint64
	c := &cobra.Command{
		Use: "trim NAMESPACE", Short: "Remove a namespace's events up to an offset, for good", Args: args(1, 1, "one namespace"),
		RunE: func(c *cobra.Command, args []string) error {
			if upTo == 0 {
				return usagef("say up to which offset with --to, inclusive")
			}
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.TrimNamespaceResponse, error) {
				return s.TrimNamespace(ctx, &runnelv1.TrimNamespaceRequest{Namespace: args[0], UpToOffset: upTo})
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "the oldest offset is now %d\n", r.GetOldestOffset())
			return err
		},
	}
	c.Flags().Uint64Var(&upTo, "to", 0, "the last offset to remove")
	return c
}

func (a *app) adminDrain() *cobra.Command {
	return &cobra.Command{
		Use: "drain", Short: "Tell all clients to move, and stop the server", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.DrainResponse, error) {
				return s.Drain(ctx, &runnelv1.DrainRequest{})
			}); err != nil {
				return err
			}
			_, err := io.WriteString(a.out, "the server tells its clients to move, and stops\n")
			return err
		},
	}
}

func (a *app) adminReload() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Read roles, limits and namespaces again", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ReloadResponse, error) {
				return s.Reload(ctx, &runnelv1.ReloadRequest{})
			})
			if err != nil {
				return err
			}
			text := "roles, limits and namespaces were reloaded"
			if len(r.GetRestart()) > 0 {
				text += "; what else has changed needs a restart: " + strings.Join(r.GetRestart(), ", ")
			}
			_, err = fmt.Fprintln(a.out, oneLine(text))
			return err
		},
	}
}

func (a *app) adminConfig() *cobra.Command {
	return &cobra.Command{
		Use: "config", Short: "Print the configuration in force, and where each value comes from", Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.GetConfigurationResponse, error) {
				return s.GetConfiguration(ctx, &runnelv1.GetConfigurationRequest{})
			})
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, r.GetText())
			return err
		},
	}
}
