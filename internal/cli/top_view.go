package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

var (
	boldStyle  = lipgloss.NewStyle().Bold(true)
	headStyle  = lipgloss.NewStyle().Reverse(true)
	badStyle   = lipgloss.NewStyle().Foreground(lipgloss.Color("1")).Bold(true)
	faintStyle = lipgloss.NewStyle().Faint(true)
	barStyle   = lipgloss.NewStyle().Foreground(lipgloss.Color("6"))
)

func (m *top) style(s lipgloss.Style, text string) string {
	if m.plain {
		return text
	}
	return s.Render(text)
}

// fit makes text exactly width columns wide. All that is shown is one column a rune.
func fit(text string, width int) string {
	r := []rune(text)
	switch {
	case width <= 0:
		return ""
	case len(r) > width:
		return string(r[:width-1]) + "…"
	}
	return text + strings.Repeat(" ", width-len(r))
}

// atMost is text in at most so many columns.
func atMost(text string, most int) string { return fit(text, min(len([]rune(text)), most)) }

// text is the whole screen.
func (m *top) text() string {
	var lines []string
	lines = append(lines, m.header()...)
	room := max(m.height-len(lines)-2, 1)
	switch m.pane {
	case namespacesPane:
		lines = append(lines, m.namespaceRows(room)...)
	case nodesPane:
		lines = append(lines, m.nodeRows(room)...)
	case sessionPane:
		lines = append(lines, m.sessionRows(room)...)
	case topicsPane:
		lines = append(lines, m.topicRows(room)...)
	default:
		lines = append(lines, m.sessionsRows(room)...)
	}
	if m.plain {
		lines = append(append(lines, ""), m.topicRows(room)...)
		if len(m.now.nodes.GetNodes()) > 1 {
			lines = append(append(lines, ""), m.nodeRows(room)...)
		}
		for i := range lines {
			lines[i] = strings.TrimRight(lines[i], " ")
		}
		return strings.TrimRight(strings.Join(lines, "\n"), "\n")
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines[:max(m.height-1, 0)], m.footer())
	return strings.Join(lines, "\n")
}

func (m *top) header() []string {
	i := m.now.info
	up := time.UnixMilli(i.GetNowMs()).Sub(time.UnixMilli(i.GetStartedMs())).Round(time.Second)
	state, bad := "takes work", false
	switch {
	case m.now.err != nil:
		state, bad = "no answer: "+oneLine(m.now.err.Error()), true
	case i.GetTrouble() != "":
		state, bad = oneLine(i.GetTrouble()), true
	}
	first := fit(fmt.Sprintf("runnel %s%s  up %s  %s", m.server, m.ofNodes(), up, state), m.width)
	if bad {
		first = m.style(badStyle, first)
	} else {
		first = m.style(boldStyle, first)
	}
	spark := max(min(m.width-40, 60), 8)
	const label = 11
	// line is a name, a picture of about spark columns, and a figure behind it, as far as there is room.
	line := func(name string, picture func(width int) string, value string) string {
		room := m.width - label - 1 - len([]rune(value))
		if room < 4 {
			return fit(name+" "+value, m.width)
		}
		return fit(name, label) + m.style(barStyle, picture(min(spark, room))) + " " + value
	}
	graph := func(name string, s *series, value string) string { return line(name, s.spark, value) }
	used, limit := i.GetMemoryUsedBytes(), max(i.GetMemoryLimitBytes(), 1)
	filled := func(width int) string {
		full := int(float64(width) * float64(min(used, limit)) / float64(limit))
		return strings.Repeat("█", full) + strings.Repeat("·", width-full)
	}
	behind := ""
	if i.GetBehind() > 0 {
		behind = fmt.Sprintf(", %d behind", i.GetBehind())
	}
	storage := fmt.Sprintf("disk       %s used, %s free, %s to compact", bytesText(i.GetDiskBytes()), bytesText(i.GetDiskFreeBytes()), bytesText(i.GetCompactionDebtBytes()))
	if i.GetDiskBytes() == 0 && i.GetDiskFreeBytes() == 0 { // it has none
		storage = "disk       that of NATS"
	}
	trouble := fmt.Sprintf("dropped %d  conflated %d  gaps %d  too slow %d", i.GetDropped(), i.GetConflated(), i.GetGaps(), i.GetSlowConsumers())
	return []string{
		first,
		fit(fmt.Sprintf("sessions   %d with %d subscriptions%s   namespaces %d", i.GetSessions(), i.GetSubscriptions(), behind, i.GetNamespaces()), m.width),
		graph("delivered", &m.delivered, short(m.delivered.last())+"/s"),
		graph("published", &m.published, short(m.published.last())+"/s"),
		graph("worst p99", &m.delay, delay(m.delay.last())+" ms"),
		line("memory", filled, bytesText(used)+" of "+bytesText(i.GetMemoryLimitBytes())),
		fit(storage, m.width),
		fit("so far     "+trouble, m.width),
		"",
	}
}

func (m *top) footer() string {
	switch {
	case m.typing:
		name, filter := "filter", m.filter
		if m.pane == topicsPane {
			name, filter = "pattern", m.topicFilter
		}
		return m.style(headStyle, fit(name+": "+filter+"_   (enter to keep, esc to clear)", m.width))
	case m.confirming:
		return m.style(badStyle, fit("disconnect "+m.chosen+"? y or n", m.width))
	case m.message != "":
		return m.style(boldStyle, fit(m.message, m.width))
	}
	keys := "l lag r rate d delay a age  / filter  enter inspect  x cut  t topics  n nodes"
	switch m.pane {
	case namespacesPane:
		keys = "s sessions  t topics  n nodes  q quit"
	case nodesPane:
		keys = "s sessions  t topics  N namespaces  q quit"
	case sessionPane:
		keys = "x cut  s sessions  t topics  n nodes  N namespaces  q quit"
	case topicsPane:
		keys = "e by events  b by bytes  / pattern  s sessions  n nodes  N namespaces  q quit"
	}
	return m.style(faintStyle, fit(keys, m.width))
}

// columns lays out rows under a header: the widest cell of each column, the second column taking what is left.
func (m *top) columns(header []string, rows [][]string, chosen, room int) []string {
	widths := make([]int, len(header))
	for i, h := range header {
		widths[i] = len([]rune(h))
		for _, r := range rows {
			widths[i] = max(widths[i], len([]rune(r[i])))
		}
	}
	total := len(header) - 1
	for _, w := range widths {
		total += w
	}
	widths[1] = max(widths[1]+min(m.width-total, 0), 6)
	line := func(cells []string) string {
		var b strings.Builder
		for i, c := range cells {
			if i > 0 {
				b.WriteByte(' ')
			}
			if i < 2 {
				b.WriteString(fit(c, widths[i]))
			} else { // figures to the right
				b.WriteString(strings.Repeat(" ", max(widths[i]-len([]rune(c)), 0)) + c)
			}
		}
		return fit(b.String(), m.width)
	}
	lines := []string{m.style(headStyle, line(header))}
	from := 0
	if chosen >= room-1 {
		from = chosen - room + 2
	}
	for i := from; i < len(rows) && len(lines) < room; i++ {
		l := line(rows[i])
		if i == chosen && !m.plain {
			l = m.style(headStyle, l)
		}
		lines = append(lines, l)
	}
	return lines
}

func (m *top) sessionsRows(room int) []string {
	var rows [][]string
	for _, s := range m.now.sessions {
		rows = append(rows, []string{
			s.GetSessionId(), oneLine(s.GetClientId()), shortAge(s.GetSinceMs()), fmt.Sprint(s.GetSubscriptions()), short(float64(s.GetLag())), short(s.GetEventsPerS()),
			delay(s.GetP99Ms()), short(float64(s.GetDropped())), short(float64(s.GetConflated())), stuckText(s),
		})
	}
	lines := m.columns([]string{"SESSION", "CLIENT", "AGE", "SUBS", "LAG", "EV/S", "P99MS", "DROP", "CONFL", "STATE"}, rows, m.cursor, room-1)
	note := fmt.Sprintf("%d sessions", m.now.matched)
	if m.filter != "" {
		note += " that begin with " + m.filter
	}
	by := map[runnelv1.SessionOrder]string{orders["lag"]: "lag", orders["rate"]: "rate", orders["delay"]: "delay", orders["age"]: "age"}[m.order]
	return append([]string{fit(note+", by "+by, m.width)}, lines...)
}

// stuckText says what holds a session up.
func stuckText(s *runnelv1.SessionInfo) string {
	switch stuck := time.Duration(s.GetBlockedMs()) * time.Millisecond; {
	case stuck >= time.Second:
		return "stuck " + stuck.Truncate(time.Second).String()
	case stuck > 0, s.GetHeld() > 0:
		return "slow"
	}
	return "ok"
}

func shortAge(ms int64) string {
	d := time.Since(time.UnixMilli(ms)).Round(time.Second)
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return d.String()
}

func (m *top) namespaceRows(room int) []string {
	list := slices.Clone(m.now.namespaces)
	slices.SortStableFunc(list, func(a, b *runnelv1.NamespaceInfo) int { return cmp.Compare(b.GetEventsPerS(), a.GetEventsPerS()) })
	var rows [][]string
	for _, n := range list {
		durability := strings.ToLower(strings.TrimPrefix(n.GetDurability().String(), "DURABILITY_"))
		rows = append(rows, []string{
			oneLine(n.GetNamespace()), durability, short(n.GetEventsPerS()), fmt.Sprint(n.GetOldestOffset()), fmt.Sprint(n.GetNewestOffset()), bytesText(n.GetBytes()), n.GetEpoch(),
		})
	}
	lines := m.columns([]string{"NAMESPACE", "KEPT ON", "EV/S", "OLDEST", "NEWEST", "SIZE", "EPOCH"}, rows, -1, room-1)
	return append([]string{fit(fmt.Sprintf("%d namespaces, busiest first", len(list)), m.width)}, lines...)
}

// ofNodes says that there are others.
func (m *top) ofNodes() string {
	n := len(m.now.nodes.GetNodes())
	switch {
	case m.now.nodes.GetStale():
		return ", which does not hear other nodes"
	case n > 1:
		return fmt.Sprintf(", one of %d nodes", n)
	}
	return ""
}

// countText is a number as it is, unless it is long.
func countText(n uint32) string {
	if n < 10_000 {
		return fmt.Sprint(n)
	}
	return short(float64(n))
}

func (m *top) nodeRows(room int) []string {
	r := m.now.nodes
	var rows [][]string
	chosen, sessions, published, delivered := -1, uint32(0), 0.0, 0.0
	for i, n := range r.GetNodes() {
		if n.GetSelf() {
			chosen = i
		}
		sessions, published, delivered = sessions+n.GetSessions(), published+n.GetPublishedPerS(), delivered+n.GetDeliveredPerS()
		rows = append(rows, []string{
			atMost(oneLine(n.GetNode()), max(m.width/6, 12)), oneLine(addressOf(n)), atMost(oneLine(n.GetVersion()), max(m.width/10, 6)), shortAge(n.GetStartedMs()),
			countText(n.GetSessions()), short(n.GetPublishedPerS()), short(n.GetDeliveredPerS()), percent(n.GetLoad()), nodeState(r, n),
		})
	}
	note := fmt.Sprintf("%d nodes, together %d sessions, %s events/s in, %s out", len(rows), sessions, short(published), short(delivered))
	if r.GetStale() {
		note = fmt.Sprintf("%d nodes; this one does not hear the others, so this is old", len(rows))
	}
	return append([]string{fit(note, m.width)}, m.columns([]string{"NODE", "ADDRESS", "VERSION", "UP", "SESS", "IN/S", "OUT/S", "LOAD", "STATE"}, rows, chosen, room-1)...)
}

func (m *top) topicRows(room int) []string {
	header := []string{"#", "TOPIC", "EV/S", "BYTES/S", "LAST SIZE", "NEWEST"}
	wide := m.width >= 100 // else names need the room more than a mean that can be guessed
	if wide {
		header = slices.Insert(header, 4, "MEAN SIZE")
	}
	var rows [][]string
	for i, t := range m.busy.GetTopics() {
		row := []string{
			fmt.Sprint(i + 1), oneLine(t.GetTopic()), atLeast(t.GetMissedEventsPerS()) + short(t.GetEventsPerS()), atLeast(t.GetMissedBytesPerS()) + bytesText(uint64(t.GetBytesPerS())),
			bytesText(t.GetNewestBytes()), fmt.Sprint(t.GetNewestOffset()),
		}
		if wide {
			row = slices.Insert(row, 4, bytesText(uint64(meanSize(t))))
		}
		rows = append(rows, row)
	}
	note := fmt.Sprintf("%d busy topics", m.busy.GetMatched())
	switch {
	case m.busy == nil:
		note = "topics, when the server has answered"
	case m.topicFilter == "":
	case m.pattern() == "":
		note += " (" + m.topicFilter + " is no pattern)"
	default:
		note += " that match " + m.topicFilter
	}
	by := map[runnelv1.BusyTopicOrder]string{topicOrders["events"]: "events", topicOrders["bytes"]: "bytes"}[m.topicOrder]
	lines := m.columns(header, rows, m.topicCursor, room-1)
	return append([]string{fit(note+", by "+by, m.width)}, lines...)
}

func (m *top) sessionRows(room int) []string {
	one := m.now.one
	if one == nil {
		return []string{fit("session "+m.chosen, m.width)}
	}
	s := one.GetSession()
	lines := []string{
		fit(fmt.Sprintf("session %s  client %s  subject %s", s.GetSessionId(), oneLine(s.GetClientId()), oneLine(cmp.Or(s.GetSubject(), "-"))), m.width),
		fit(fmt.Sprintf("from %s  for %s  %s events/s  %s  roles %s", oneLine(s.GetAddress()), shortAge(s.GetSinceMs()), short(s.GetEventsPerS()), stuckText(s),
			oneLine(cmp.Or(strings.Join(s.GetRoles(), " "), "-"))), m.width),
	}
	var rows [][]string
	for _, sub := range one.GetSubscriptions() {
		state := "behind"
		if sub.GetLive() {
			state = "live"
		}
		policy := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(sub.GetOverflow().String(), "OVERFLOW_POLICY_"), "_", "-"))
		rows = append(rows, []string{
			fmt.Sprint(sub.GetSubscription()), sub.GetPattern(), policy, state, short(float64(sub.GetLag())), fmt.Sprint(sub.GetPosition().GetOffset()),
			short(float64(sub.GetDelivered())), short(float64(sub.GetDropped())), short(float64(sub.GetConflated())), delay(sub.GetP99Ms()),
		})
	}
	return append(lines, m.columns([]string{"ID", "PATTERN", "POLICY", "STATE", "LAG", "OFFSET", "SENT", "DROP", "CONFL", "P99MS"}, rows, -1, room-2)...)
}
