package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

func (a *app) adminDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete NAMESPACE",
		Short: "Remove a namespace with all its events, for good",
		Long: "Remove a namespace for good: its events, topics and event ids, whether it is in use or not, and whether it is still configured\n" +
			"or not. Who follows it is told EPOCH_CHANGED. If it is configured its next use begins it anew, at offset 1.\n" +
			"On a terminal it asks for the namespace's name first; elsewhere it needs --yes.",
		Example: "  runnel admin delete quotes\n  runnel admin delete quotes --yes",
		Args:    args(1, 1, "one namespace"),
		RunE: func(c *cobra.Command, args []string) error {
			if !yes {
				if err := a.confirm(c.Context(), args[0]); err != nil {
					return err
				}
			}
			_, err := operate(c.Context(), a, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.DeleteNamespaceResponse, error) {
				return s.DeleteNamespace(ctx, &runnelv1.DeleteNamespaceRequest{Namespace: args[0]})
			})
			var e *runnel.Error
			if errors.As(err, &e) && e.Reason == runnel.ReasonUnknownNamespace { // the usual advice would be to configure it
				return fmt.Errorf("%s: nothing of namespace %s is there to be deleted", e.Reason, args[0])
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "namespace %s is deleted\n", oneLine(args[0]))
			return err
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// confirm asks a person to type a namespace's name.
func (a *app) confirm(ctx context.Context, namespace string) error {
	in, isFile := a.in.(*os.File)
	if !isFile || !isTerminal(in) {
		return usagef("this removes namespace %s for good; say --yes, since there is no terminal to ask on", oneLine(namespace))
	}
	return a.ask(ctx, in, namespace)
}

func (a *app) ask(ctx context.Context, in io.Reader, namespace string) error {
	fmt.Fprintf(a.err, "All events of namespace %s on %s are removed for good. Type its name to go on: ", oneLine(namespace), a.server)
	line, err := bufio.NewReader(&patientReader{ctx, in}).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != namespace {
		return errors.New("that is not its name; nothing was removed")
	}
	return nil
}
