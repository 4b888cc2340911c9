package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
)

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errSaid ends a command with exit code 1 when everything was said already.
var errSaid = errors.New("")

// explain says in one line what went wrong and what to do about it.
func (a *app) explain(err error) string {
	var e *runnel.Error
	switch {
	case errors.Is(err, context.Canceled) && !errors.As(err, &e):
		return "interrupted before the end"
	case !errors.As(err, &e):
		return oneLine(err.Error())
	case e.Code == codes.Unavailable && !e.FromServer:
		return a.unreachable(plainCause(e.Message))
	case e.Code == codes.ResourceExhausted && !e.FromServer: // gRPC refuses before the server sees it
		return "TOO_LARGE: the event is larger than any the server takes; send less, or raise the limit in the server's configuration"
	case e.Code == codes.Unimplemented && !e.FromServer:
		return fmt.Sprintf("what answers at %s is not a Runnel server, or one of another version; name another with --server", a.server)
	}
	advice := map[string]string{
		runnel.ReasonUnknownNamespace: "add it to the server's configuration, or start the server with --dev",
		runnel.ReasonPositionGone:     "start with --from earliest to read what is left",
		runnel.ReasonEpochChanged:     "start with --from earliest or --from new",
		runnel.ReasonOffsetConflict:   "read the topic again and publish with --expect as it stands now",
		runnel.ReasonTooLarge:         "send less, or raise the limit in the server's configuration",
		runnel.ReasonStorageFull:      "free some space on the server's disk; it takes events again by itself",
		runnel.ReasonUnauthenticated:  "give one with --token or RUNNEL_TOKEN, or --tls-cert and --tls-key",
		runnel.ReasonTokenExpired:     "get a new one",
		runnel.ReasonPermissionDenied: "ask for a role that grants it",
		runnel.ReasonSlowConsumer:     "go on with --from " + e.Facts["position"] + ", or choose another --policy",
	}[e.Reason]
	if advice == "" {
		return oneLine(err.Error())
	}
	return oneLine(err.Error()) + "; " + advice
}

var parseDetail = regexp.MustCompile(`strconv\.Parse\w+: parsing "[^"]*": `)

// explainFlag takes out of an error about a flag what only a programmer understands.
func explainFlag(err error) string {
	s := parseDetail.ReplaceAllString(err.Error(), "")
	if strings.HasPrefix(s, "unknown shorthand flag") {
		s += "; put -- before an argument that begins with -"
	}
	return s
}

// explainBroken says why work that goes on was held up.
func (a *app) explainBroken(err error) string {
	var e *runnel.Error
	if errors.As(err, &e) && e.FromServer {
		return oneLine(e.Error())
	}
	return fmt.Sprintf("the connection to %s broke", a.server)
}

func (a *app) unreachable(cause string) string {
	switch {
	case strings.Contains(cause, "x509:"):
		return oneLine(fmt.Sprintf("the certificate of %s is not trusted: %s; name its CA with --tls-ca", a.server, cause[strings.Index(cause, "x509:")+len("x509: "):]))
	case strings.Contains(cause, "first record does not look like a TLS handshake"):
		return fmt.Sprintf("%s does not speak TLS; leave out the --tls flags", a.server)
	case strings.Contains(cause, "server preface") && !a.tls.used():
		return fmt.Sprintf("%s does not answer in plain text; if it speaks TLS, add --tls, or --tls-ca with its CA", a.server)
	case strings.Contains(cause, "remote error: tls:"):
		return oneLine(fmt.Sprintf("%s does not take this client's certificate (%s); give one that it trusts with --tls-cert and --tls-key", a.server, cause))
	}
	return oneLine(fmt.Sprintf("cannot reach a Runnel server at %s: %s; start one with \"runnel serve --dev\" or set --server", a.server, cause))
}

// plainCause is the innermost part of what gRPC says about a connection.
func plainCause(message string) string {
	if i := strings.LastIndex(message, "desc = "); i >= 0 {
		message = strings.Trim(message[i+len("desc = "):], `"`)
	}
	message = strings.TrimPrefix(message, "transport: Error while dialing: ")
	if strings.HasSuffix(message, "connection refused") {
		return "connection refused"
	}
	return message
}

// oneLine makes one printable line of s, which may hold what a client or a server has chosen.
func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	return string(appendShown(nil, []byte(strings.Join(lines, "; "))))
}
