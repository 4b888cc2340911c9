package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/topic"
)

func (a *app) top() *cobra.Command {
	var every time.Duration
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch a server: rates, delays, memory, the slowest sessions, the busiest topics",
		Long: "Watch a server on the whole terminal. Keys: l, r, d, a sort sessions by lag, rate, delay, age; / filters them; enter shows one with its\n" +
			"subscriptions; x disconnects it; n shows the nodes of the cluster; N shows namespaces; t shows the busiest topics, e and b sort them by events and bytes, / takes a pattern;\n" +
			"s goes back to sessions; q quits. Where the output is no terminal, one look is printed.",
		Args: args(0, 0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond || every > time.Hour {
				return usagef("--interval must be between 100ms and 1h")
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			m := newTop(a.server, client, every)
			first := m.look(c.Context())
			if first.err != nil {
				return first.err
			}
			m.take(first)
			in, isFile := a.in.(*os.File)
			if !isTerminal(a.out) || !isFile || !isTerminal(in) {
				return a.onceTop(c.Context(), m)
			}
			_, err = tea.NewProgram(m, tea.WithContext(c.Context()), tea.WithInput(a.in), tea.WithOutput(a.out)).Run()
			if errors.Is(err, tea.ErrInterrupted) || errors.Is(err, tea.ErrProgramKilled) {
				return nil
			}
			return err
		},
	}
	c.Flags().DurationVar(&every, "interval", time.Second, "time between two looks")
	return c
}

// onceTop prints one look: a second one, so that there are rates.
func (a *app) onceTop(ctx context.Context, m *top) error {
	select {
	case <-time.After(m.every):
	case <-ctx.Done():
		return ctx.Err()
	}
	m.width, m.height, m.plain = 100, 40, true
	next := m.look(ctx)
	if next.err != nil {
		return next.err
	}
	m.take(next)
	_, err := io.WriteString(a.out, m.text()+"\n")
	return err
}

// pane is what the lower part of the screen shows.
type pane int

const (
	sessionsPane pane = iota
	namespacesPane
	sessionPane
	topicsPane
	nodesPane
)

// lookTimeout bounds one look at the server.
const lookTimeout = 5 * time.Second

// top is the dashboard. All of it belongs to the program's one goroutine; looks run beside it and come back as messages.
type top struct {
	server string
	client *runnel.Client
	every  time.Duration
	plain  bool // without colours

	width, height int
	pane          pane
	order         runnelv1.SessionOrder
	filter        string
	typing        bool // the filter of what is shown
	cursor        int
	topicOrder    runnelv1.BusyTopicOrder
	topicFilter   string // a pattern, if it is one; empty: all
	topicCursor   int
	chosen        string // id of the session that is shown
	confirming    bool   // whether to disconnect it
	message       string

	now       look
	busy      *runnelv1.ListBusyTopicsResponse // the last that came
	delivered series
	published series
	delay     series
}

// look is what the server said at one moment.
type look struct {
	at         time.Time
	info       *runnelv1.GetServerInfoResponse
	sessions   []*runnelv1.SessionInfo
	matched    uint32
	namespaces []*runnelv1.NamespaceInfo
	nodes      *runnelv1.ListNodesResponse      // nil: the server is older than that
	busy       *runnelv1.ListBusyTopicsResponse // nil: it was not asked for topics
	one        *runnelv1.GetSessionResponse
	gone       bool // the chosen session
	err        error
}

type (
	dueMsg          struct{}
	disconnectedMsg struct{ err error }
)

func newTop(server string, client *runnel.Client, every time.Duration) *top {
	return &top{
		server: server, client: client, every: every, width: 80, height: 24,
		order: runnelv1.SessionOrder_SESSION_ORDER_LAG, topicOrder: runnelv1.BusyTopicOrder_BUSY_TOPIC_ORDER_EVENTS,
	}
}

// look asks the server for all that is shown.
func (m *top) look(ctx context.Context) look {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	l := look{at: time.Now()}
	group, ctx := errgroup.WithContext(ctx)
	chosen, filter, order := m.chosen, m.filter, m.order
	group.Go(func() (err error) {
		l.info, err = runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.GetServerInfoResponse, error) {
			return s.GetServerInfo(ctx, &runnelv1.GetServerInfoRequest{})
		})
		return err
	})
	group.Go(func() error {
		r, err := runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListSessionsResponse, error) {
			return s.ListSessions(ctx, &runnelv1.ListSessionsRequest{Match: filter, Order: order})
		})
		l.sessions, l.matched = r.GetSessions(), r.GetMatched()
		return err
	})
	group.Go(func() error {
		r, err := runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListNamespacesResponse, error) {
			return s.ListNamespaces(ctx, &runnelv1.ListNamespacesRequest{})
		})
		l.namespaces = r.GetNamespaces()
		return err
	})
	group.Go(func() (err error) {
		l.nodes, err = runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListNodesResponse, error) {
			return s.ListNodes(ctx, &runnelv1.ListNodesRequest{})
		})
		if e := (*runnel.Error)(nil); errors.As(err, &e) && e.Code == codes.Unimplemented {
			return nil
		}
		return err
	})
	// The server reads the newest event of each of these, so only somebody who looks at them asks.
	if m.pane == topicsPane || m.plain {
		pattern, by := m.pattern(), m.topicOrder
		group.Go(func() (err error) {
			l.busy, err = runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.ListBusyTopicsResponse, error) {
				return s.ListBusyTopics(ctx, &runnelv1.ListBusyTopicsRequest{Pattern: pattern, Order: by})
			})
			return err
		})
	}
	if chosen != "" {
		group.Go(func() (err error) {
			l.one, err = runnel.Admin(ctx, m.client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.GetSessionResponse, error) {
				return s.GetSession(ctx, &runnelv1.GetSessionRequest{SessionId: chosen})
			})
			if e := (*runnel.Error)(nil); errors.As(err, &e) && e.Reason == "UNKNOWN_SESSION" {
				l.gone = true
				return nil
			}
			return err
		})
	}
	l.err = group.Wait()
	return l
}

// take shows a look.
func (m *top) take(l look) {
	if l.err != nil {
		m.now.err = l.err
		return
	}
	if old := m.now; old.info != nil && old.info.GetStartedMs() == l.info.GetStartedMs() {
		seconds := l.at.Sub(old.at).Seconds()
		m.delivered.add(rateOf(old.info.GetDelivered(), l.info.GetDelivered(), seconds))
		m.published.add(rateOf(old.info.GetPublished(), l.info.GetPublished(), seconds))
	}
	worst := 0.0
	for _, s := range l.sessions {
		worst = max(worst, s.GetP99Ms())
	}
	m.delay.add(worst)
	m.now = l
	if l.busy != nil {
		m.busy = l.busy
	}
	m.cursor = min(m.cursor, max(len(l.sessions)-1, 0))
	m.topicCursor = min(m.topicCursor, max(len(m.busy.GetTopics())-1, 0))
	if l.gone {
		m.pane, m.chosen, m.message = sessionsPane, "", "the session is over"
	}
}

func rateOf(old, now uint64, seconds float64) float64 {
	if seconds <= 0 || now < old {
		return 0
	}
	return float64(now-old) / seconds
}

// Init implements tea.Model.
func (m *top) Init() tea.Cmd { return m.wait() }

func (m *top) wait() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return dueMsg{} })
}

func (m *top) looking() tea.Cmd {
	copied := *m
	return func() tea.Msg { return copied.look(context.Background()) }
}

// Update implements tea.Model.
func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case dueMsg:
		return m, m.looking()
	case look:
		m.take(msg)
		return m, m.wait()
	case disconnectedMsg:
		if m.message = "disconnected"; msg.err != nil {
			m.message = oneLine(msg.err.Error())
		}
	case tea.KeyPressMsg:
		return m.key(msg)
	}
	return m, nil
}

// View implements tea.Model.
func (m *top) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	v.WindowTitle = "runnel top " + m.server
	return v
}

// key handles a key.
func (m *top) key(k tea.KeyPressMsg) (tea.Model, tea.Cmd) {
	name := k.String()
	if name == "ctrl+c" {
		return m, tea.Quit
	}
	if m.typing {
		m.typed(k)
		return m, nil
	}
	if m.confirming {
		m.confirming = false
		if name == "y" {
			return m, m.disconnect()
		}
		m.message = "not disconnected"
		return m, nil
	}
	m.message = ""
	switch name {
	case "q":
		return m, tea.Quit
	case "esc", "backspace":
		m.pane, m.chosen = sessionsPane, ""
	case "n":
		m.pane, m.chosen = nodesPane, ""
	case "N":
		m.pane, m.chosen = namespacesPane, ""
	case "s":
		m.pane, m.chosen = sessionsPane, ""
	case "t":
		m.pane, m.chosen = topicsPane, ""
	case "e", "b":
		m.topicOrder = map[string]runnelv1.BusyTopicOrder{"e": topicOrders["events"], "b": topicOrders["bytes"]}[name]
		m.pane, m.chosen, m.topicCursor = topicsPane, "", 0
	case "l", "r", "d", "a":
		m.order = map[string]runnelv1.SessionOrder{"l": orders["lag"], "r": orders["rate"], "d": orders["delay"], "a": orders["age"]}[name]
		m.pane, m.chosen, m.cursor = sessionsPane, "", 0
	case "/":
		m.typing = true
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "enter", "x":
		if m.pane == sessionsPane && m.cursor < len(m.now.sessions) {
			m.chosen = m.now.sessions[m.cursor].GetSessionId()
			m.now.one = nil
		}
		switch {
		case m.chosen == "":
		case name == "x":
			m.confirming = true
		default:
			m.pane = sessionPane
		}
	}
	return m, nil
}

// move moves the cursor of the list that is shown.
func (m *top) move(by int) {
	cursor, rows := &m.cursor, len(m.now.sessions)
	if m.pane == topicsPane {
		cursor, rows = &m.topicCursor, len(m.busy.GetTopics())
	}
	*cursor = max(min(*cursor+by, rows-1), 0)
}

// pattern is what topics must match; empty while the filter is none.
func (m *top) pattern() string {
	if _, err := topic.ParsePattern(m.topicFilter); err != nil {
		return ""
	}
	return m.topicFilter
}

// typed adds to the filter of the list that is shown.
func (m *top) typed(k tea.KeyPressMsg) {
	filter := &m.filter
	if m.pane == topicsPane {
		filter = &m.topicFilter
	}
	switch name := k.String(); name {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, *filter = false, ""
	case "backspace":
		*filter = (*filter)[:max(len(*filter)-1, 0)]
	default:
		if text := k.Key().Text; len(text) == 1 && text[0] > ' ' && text[0] <= '~' {
			*filter += text
		}
	}
	m.cursor, m.topicCursor = 0, 0
}

func (m *top) disconnect() tea.Cmd {
	id, client := m.chosen, m.client
	return func() tea.Msg {
		ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
		defer cancel()
		_, err := runnel.Admin(ctx, client, func(ctx context.Context, s runnelv1.AdminServiceClient) (*runnelv1.DisconnectResponse, error) {
			return s.Disconnect(ctx, &runnelv1.DisconnectRequest{SessionId: id})
		})
		return disconnectedMsg{err}
	}
}

// series is the last values of a figure.
type series struct{ values []float64 }

const seriesMost = 240

func (s *series) add(v float64) {
	if s.values = append(s.values, v); len(s.values) > seriesMost {
		s.values = s.values[len(s.values)-seriesMost:]
	}
}

func (s *series) last() float64 {
	if len(s.values) == 0 {
		return 0
	}
	return s.values[len(s.values)-1]
}

// spark draws the last values, width of them, as bars between 0 and the largest.
func (s *series) spark(width int) string {
	bars := []rune("▁▂▃▄▅▆▇█")
	values := s.values[max(len(s.values)-width, 0):]
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	out := make([]rune, 0, width)
	for range width - len(values) {
		out = append(out, ' ')
	}
	for _, v := range values {
		i := 0
		if most > 0 {
			i = int(v / most * float64(len(bars)-1))
		}
		out = append(out, bars[i])
	}
	return string(out)
}

// short is a number in few places.
func short(v float64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.size {
			return fmt.Sprintf("%.1f%s", v/u.size, u.name)
		}
	}
	if v > 0 && v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
