package cli

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
)

func (a *app) admin() *cobra.Command {
	c := &cobra.Command{Use: "admin", Short: "Look into a server, and act on it"}
	choose(c, "info, nodes, sessions, session, disconnect, namespaces, topics, trim, delete, drain, reload, config, revoke, restore or revocations")
	c.AddCommand(a.adminInfo(), a.adminNodes(), a.adminSessions(), a.adminSession(), a.adminDisconnect(), a.adminNamespaces(), a.adminTopics(), a.adminTrim(), a.adminDelete(), a.adminDrain(), a.adminReload(), a.adminConfig(),
		a.revoke(), a.restore(), a.revocations())
	return c
}

// target is whom a revocation is about: one of its flags.
type target struct{ client, subject, token string }

func (t *target) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.client, "client", "", "a client id")
	c.Flags().StringVar(&t.subject, "subject", "", "the subject of tokens, or of a certificate")
	c.Flags().StringVar(&t.token, "token-id", "", "one token, by its jti")
}

func (t *target) one() (kind runnel.RevokedKind, value string, err error) {
	given := 0
	for k, v := range map[runnel.RevokedKind]string{runnel.RevokedClient: t.client, runnel.RevokedSubject: t.subject, runnel.RevokedToken: t.token} {
		if v != "" {
			kind, value = k, v
			given++
		}
	}
	if given != 1 {
		return kind, value, usagef("name one of --client, --subject and --token-id")
	}
	return kind, value, nil
}

var kindNames = map[runnel.RevokedKind]string{runnel.RevokedClient: "client", runnel.RevokedSubject: "subject", runnel.RevokedToken: "token"}

func (a *app) revoke() *cobra.Command {
	var t target
	var lasts time.Duration
	c := &cobra.Command{
		Use:   "revoke",
		Short: "Cut off a client, a subject or a token, and keep it off",
		Long: "Cut off a client, a subject or a token: its connections are closed at once, and what was issued to it until now is refused\n" +
			"from then on, also after a restart. A token that the subject gets later is good. It lasts for --for, or until it is taken back;\n" +
			"for a token that is in use, until that expires.",
		Example: "  runnel admin revoke --subject alice\n  runnel admin revoke --token-id 8FJ2 --for 24h",
		Args:    args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			kind, value, err := t.one()
			if err != nil {
				return err
			}
			var until time.Time
			if lasts < 0 {
				return usagef("--for must be more than 0")
			} else if lasts > 0 {
				until = time.Now().Add(lasts)
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			r, cut, err := client.Revoke(c.Context(), kind, value, until)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "revoked %s %s, %s; %d streams cut\n", kindNames[r.Kind], r.Value, lasting(r), cut)
			return err
		},
	}
	t.flags(c)
	c.Flags().DurationVar(&lasts, "for", 0, "how long: until what is revoked has expired anyhow")
	return c
}

func lasting(r runnel.Revocation) string {
	if r.Until.IsZero() {
		return "until it is taken back"
	}
	return "until " + r.Until.Format(time.RFC3339)
}

func (a *app) restore() *cobra.Command {
	var t target
	c := &cobra.Command{
		Use:   "restore",
		Short: "Take a revocation back",
		Args:  args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			kind, value, err := t.one()
			if err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			if err := client.Restore(c.Context(), kind, value); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "restored %s %s\n", kindNames[kind], value)
			return err
		},
	}
	t.flags(c)
	return c
}

func (a *app) revocations() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "revocations",
		Short: "List the revocations in force",
		Args:  args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			list, err := client.Revocations(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.revocationLines(list)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KIND\tVALUE\tREVOKED\tUNTIL") // errors come with Flush
			for _, r := range list {
				until := "-"
				if !r.Until.IsZero() {
					until = r.Until.Format(time.DateTime)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", kindNames[r.Kind], oneLine(r.Value), r.At.Format(time.DateTime), until)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one object a line")
	return c
}

func (a *app) revocationLines(list []runnel.Revocation) error {
	type line struct {
		Kind  string    `json:"kind"`
		Value string    `json:"value"`
		At    time.Time `json:"at"`
		Until time.Time `json:"until,omitzero"`
	}
	for _, r := range list {
		b, err := json.Marshal(line{kindNames[r.Kind], r.Value, r.At, r.Until})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(a.out, "%s\n", b); err != nil {
			return err
		}
	}
	return nil
}
