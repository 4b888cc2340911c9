package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// aLook is what a server might say.
func aLook(n int, delivered uint64) look {
	l := look{
		at: time.Unix(int64(n), 0), matched: 50,
		info: &runnelv1.GetServerInfoResponse{
			StartedMs: 1, NowMs: int64(n) * 1000, Sessions: 50, Subscriptions: 70, Delivered: delivered, Published: delivered / 10,
			MemoryUsedBytes: 3 << 30, MemoryLimitBytes: 4 << 30, DiskBytes: 5 << 20, DiskFreeBytes: 6 << 30,
		},
		namespaces: []*runnelv1.NamespaceInfo{{Namespace: "quiet"}, {Namespace: "busy", EventsPerS: 12_345}},
	}
	for i := range 50 {
		l.sessions = append(l.sessions, &runnelv1.SessionInfo{
			SessionId: fmt.Sprintf("s-%016d", i), ClientId: "client-of-a-long-name\x1b[31m", SinceMs: time.Now().Add(-49 * time.Hour).UnixMilli(), Subscriptions: 3,
			Lag: 123_456_789, P99Ms: 64, Dropped: 1 << 40, BlockedMs: 61_000,
		})
	}
	return l
}

// someTopics are n busy topics with names as long as they may be.
func someTopics(n int) *runnelv1.ListBusyTopicsResponse {
	r := &runnelv1.ListBusyTopicsResponse{Matched: 1234}
	for i := range n {
		r.Topics = append(r.Topics, &runnelv1.BusyTopic{
			Topic: strings.Repeat("a.", 15) + strings.Repeat("x", 225), EventsPerS: float64(6000 - 100*i), BytesPerS: float64(60_000 - 1000*i), MissedEventsPerS: float64(i),
			NewestOffset: 123_456_789_012, NewestBytes: 1 << 20,
		})
	}
	return r
}

// shown is the screen without colours; it must fill the terminal and no more.
func shown(t *testing.T, m *top) string {
	t.Helper()
	text := m.View().Content
	lines := strings.Split(text, "\n")
	if len(lines) != m.height {
		t.Errorf("%d lines on %d", len(lines), m.height)
	}
	for i, l := range lines {
		if w := lipgloss.Width(l); w > m.width {
			t.Errorf("line %d is %d wide on %d: %q", i, w, m.width, l)
		}
	}
	if strings.Contains(text, "name\x1b") {
		t.Error("a client drives the terminal")
	}
	return text
}

func press(m *top, keys ...tea.KeyPressMsg) (cmd tea.Cmd) {
	for _, k := range keys {
		_, cmd = m.Update(k)
	}
	return cmd
}

func char(r rune) tea.KeyPressMsg { return tea.KeyPressMsg{Code: r, Text: string(r)} }

var (
	enter  = tea.KeyPressMsg{Code: tea.KeyEnter}
	escape = tea.KeyPressMsg{Code: tea.KeyEscape}
)

func TestTop(t *testing.T) {
	m := newTop("127.0.0.1:50051", nil, time.Second)
	for n := range 30 {
		m.Update(aLook(n+10, uint64(n)*10_000))
	}
	for _, size := range [][2]int{{80, 24}, {40, 10}, {200, 60}, {20, 5}} {
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		shown(t, m)
	}
	m.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	for _, want := range []string{"takes work", "10.0k/s", "1.0k/s", "<=64 ms", "3.0 GiB of 4.0 GiB", "50 sessions, by lag", "s-0000000000000000", "123.5M", "stuck 1m1s", "q quit", "█"} {
		if want != "q quit" && !strings.Contains(shown(t, m), want) {
			t.Errorf("no %q in\n%s", want, m.text())
		}
	}
	if press(m, char('t')); !strings.Contains(shown(t, m), "when the server has answered") {
		t.Errorf("topics that nobody asked for:\n%s", m.text())
	}
	l := aLook(40, 390_000)
	l.busy = someTopics(60)
	m.Update(l)
	m.Update(aLook(41, 400_000)) // which was under way before
	for _, size := range [][2]int{{40, 10}, {120, 30}, {20, 5}, {80, 24}} {
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		if wide := strings.Contains(shown(t, m), "MEAN SIZE"); wide != (size[0] == 120) {
			t.Errorf("mean sizes on %v: %v", size, wide)
		}
	}
	for _, want := range []string{"1234 busy topics, by events", "1  " + strings.Repeat("a.", 15), "6.0k", ">=5.9k", "58.6 KiB", "1.0 MiB", "123456789012", "e by events"} {
		if !strings.Contains(shown(t, m), want) {
			t.Errorf("no %q in\n%s", want, m.text())
		}
	}
	for range 70 {
		press(m, tea.KeyPressMsg{Code: tea.KeyDown})
	}
	if m.topicCursor != 59 || m.cursor != 0 || !strings.Contains(shown(t, m), "60 a.a.") {
		t.Errorf("at the end, cursor %d:\n%s", m.topicCursor, m.text())
	}
	if press(m, char('b')); m.topicOrder != topicOrders["bytes"] || m.topicCursor != 0 || !strings.Contains(shown(t, m), "by bytes") {
		t.Error("b does not sort by bytes")
	}
	if press(m, char('/'), char('a'), char('.')); m.pattern() != "" || m.filter != "" || !strings.Contains(shown(t, m), "a. is no pattern") || !strings.Contains(shown(t, m), "pattern: a._") {
		t.Errorf("half a pattern:\n%s", m.text())
	}
	if press(m, char('>'), enter); m.pattern() != "a.>" || !strings.Contains(shown(t, m), "that match a.>") {
		t.Errorf("a pattern:\n%s", m.text())
	}
	if press(m, enter, char('x')); m.pane != topicsPane || m.confirming {
		t.Error("a topic is cut")
	}
	if press(m, escape); m.pane != sessionsPane {
		t.Error("esc does not go back")
	}
	press(m, char('N'))
	if text := shown(t, m); strings.Index(text, "busy") > strings.Index(text, "quiet") || !strings.Contains(text, "12.3k") {
		t.Errorf("namespaces:\n%s", text)
	}
	if press(m, char('r')); m.order != orders["rate"] || !strings.Contains(shown(t, m), "by rate") {
		t.Error("r does not sort by rate")
	}
	for range 60 {
		press(m, tea.KeyPressMsg{Code: tea.KeyDown})
	}
	if m.cursor != 49 || !strings.Contains(shown(t, m), "s-0000000000000049") {
		t.Errorf("at the end, cursor %d:\n%s", m.cursor, m.text())
	}
	press(m, enter)
	l = aLook(50, 400_000)
	l.one = &runnelv1.GetSessionResponse{Session: l.sessions[49], Subscriptions: []*runnelv1.SubscriptionInfo{{
		Subscription: 7, Pattern: "quotes.>", Overflow: runnelv1.OverflowPolicy_OVERFLOW_POLICY_DROP_OLDEST, Lag: 5,
	}}}
	m.Update(l)
	if text := shown(t, m); m.chosen != "s-0000000000000049" || !strings.Contains(text, "quotes.>") || !strings.Contains(text, "drop-oldest") || !strings.Contains(text, "behind") {
		t.Errorf("one session:\n%s", text)
	}
	if press(m, char('x')); !strings.Contains(shown(t, m), "disconnect s-0000000000000049? y or n") {
		t.Error("x does not ask")
	}
	if cmd := press(m, char('n')); cmd != nil || m.confirming || m.pane != sessionPane {
		t.Error("n disconnects")
	}
	press(m, char('x'))
	if cmd := press(m, char('y')); cmd == nil {
		t.Error("y does not disconnect")
	}
	m.Update(disconnectedMsg{errors.New("no\nright")})
	if !strings.Contains(shown(t, m), "no; right") {
		t.Error("a failure is not shown")
	}
	l = aLook(51, 410_000)
	l.gone = true
	if m.Update(l); m.pane != sessionsPane || !strings.Contains(shown(t, m), "the session is over") {
		t.Error("a session that is over is still shown")
	}
	press(m, char('/'), char('a'), char('q'), tea.KeyPressMsg{Code: tea.KeyBackspace}, char('b'), enter)
	if m.filter != "ab" || m.typing || !strings.Contains(shown(t, m), "that begin with ab") {
		t.Errorf("filter %q", m.filter)
	}
	if press(m, char('/'), escape); m.filter != "" {
		t.Errorf("filter %q after esc", m.filter)
	}
	if m.Update(look{err: errors.New("connection refused")}); !strings.Contains(shown(t, m), "no answer: connection refused") {
		t.Error("a server that is away is not told")
	}
	if cmd := press(m, char('q')); cmd == nil {
		t.Error("q does not quit")
	} else if _, quits := cmd().(tea.QuitMsg); !quits {
		t.Error("q does something else")
	}
}

func TestSpark(t *testing.T) {
	s := series{}
	if got := s.spark(3); got != "   " {
		t.Errorf("%q", got)
	}
	for i := range 500 {
		s.add(float64(i % 8))
	}
	if got := s.spark(4); got != "▁▃▅█" || len(s.values) != seriesMost {
		t.Errorf("%q of %d", got, len(s.values))
	}
}
