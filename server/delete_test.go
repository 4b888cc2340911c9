package server_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/runnelhq/runnel"
	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// terminal says whether an error is a subscription's end for a reason.
func terminal(err error, reason string) bool {
	var e *runnel.Error
	return errors.As(err, &e) && e.Terminal() && e.Reason == reason
}

// A namespace is deleted under a publisher and followers: who follows it is told, who follows another one in the same session notices nothing,
// and publishing goes on at offset 1 of a new epoch, where the old positions are refused.
func TestDeleteNamespace(t *testing.T) {
	for _, history := range []string{"disk", "os", "memory", "none"} {
		t.Run(history, func(t *testing.T) {
			t.Parallel()
			s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: history}, "b": {History: history}}})
			c, admin := s.Client(), newClients(t, s.Addr).admin
			var told states
			session, err := c.Session(t.Context(), runnel.OnState(told.add))
			if err != nil {
				t.Fatal(err)
			}
			follow := func(pattern string, opts ...runnel.SubscribeOption) *runnel.Subscription {
				t.Helper()
				sub, err := session.Subscribe(t.Context(), pattern, opts...)
				if err != nil {
					t.Fatal(err)
				}
				return sub
			}
			publish := func(topic, payload string) runnel.Ack {
				t.Helper()
				ack, err := c.Publish(t.Context(), topic, []byte(payload), runnel.ID("the same"+payload))
				if err != nil {
					t.Fatal(err)
				}
				return ack
			}
			followed, newest, other := follow("a.>"), follow("a.b", runnel.Overflow(runnel.Conflate)), follow("b.>")
			var before runnel.Ack
			for i := range 5 {
				before = publish("a.b", fmt.Sprint(i))
				if e, err := followed.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(i) {
					t.Fatalf("%+v, %v", e, err)
				}
			}
			if _, err := admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); err != nil {
				t.Fatal(err)
			}
			if _, err := followed.Next(t.Context()); !terminal(err, runnel.ReasonEpochChanged) {
				t.Errorf("who follows a deleted namespace: %v", err)
			}
			for err = error(nil); err == nil; {
				_, err = newest.Next(t.Context())
			}
			if !terminal(err, runnel.ReasonEpochChanged) {
				t.Errorf("who follows a deleted namespace, conflating: %v", err)
			}
			publish("b.b", "other")
			if e, err := other.Next(t.Context()); err != nil || string(e.Payload) != "other" || !told.onlyLive() {
				t.Errorf("who follows another namespace: %+v, %v, states %v", e, err, told.all)
			}
			list, err := admin.ListNamespaces(t.Context(), &runnelv1.ListNamespacesRequest{})
			if err != nil || len(list.GetNamespaces()) != 1 || list.GetNamespaces()[0].GetNamespace() != "b" {
				t.Errorf("%v, %v", list, err)
			}
			if _, err := admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); reason(err) != "UNKNOWN_NAMESPACE" {
				t.Errorf("deleted again: %v", err)
			}
			again := follow("a.>")
			after := publish("a.b", "0")
			if e, err := again.Next(t.Context()); err != nil || string(e.Payload) != "0" {
				t.Errorf("%+v, %v", e, err)
			}
			if after.Duplicate || after.Position.Epoch == before.Position.Epoch || history != "none" && after.Position.Offset != 1 {
				t.Errorf("%+v, and after the deletion %+v", before, after)
			}
			if history == "none" {
				return
			}
			if _, err := session.Subscribe(t.Context(), "a.>", runnel.From(runnel.After(before.Position))); !terminal(err, runnel.ReasonEpochChanged) {
				t.Errorf("an old position: %v", err)
			}
			n := 0
			for e, err := range c.History(t.Context(), "a.>") {
				if n++; err != nil || e.Position != after.Position {
					t.Errorf("%+v, %v", e, err)
				}
			}
			if n != 1 {
				t.Errorf("%d events are left, want the one behind the deletion", n)
			}
		})
	}
}

// Whoever reads the log gets what it was given of it, and then the end.
func TestDeleteUnderSlowReader(t *testing.T) {
	t.Parallel()
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {History: "memory"}}})
	c := newClients(t, s.Addr)
	for range 20 {
		if _, err := c.Publish(t.Context(), &runnelv1.PublishRequest{Topic: "a.b"}); err != nil {
			t.Fatal(err)
		}
	}
	slow, err := c.EstablishStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sub := earliest("a.>")
	sub.Credit = 3
	if err := slow.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Subscribe{Subscribe: sub}}); err != nil {
		t.Fatal(err)
	}
	for deleted := false; ; {
		r, err := slow.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.GetControls() {
			if u := c.GetUnsubscribed(); u != nil {
				if codes.Code(u.GetStatus().GetCode()) != codes.FailedPrecondition {
					t.Errorf("%v", u)
				}
				return
			}
		}
		if len(r.GetDeliveries()) == 0 || deleted {
			continue
		}
		deleted = true
		if _, err := c.admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := slow.Send(&runnelv1.StreamRequest{Request: &runnelv1.StreamRequest_Credit{Credit: &runnelv1.Credit{Subscription: 1, Events: 100}}}); err != nil {
			t.Fatal(err)
		}
	}
}

// Publishers notice nothing of deletions, and what is acknowledged behind the last one is there.
func TestDeleteUnderPublishers(t *testing.T) {
	t.Parallel()
	const publishers, deletions = 4, 5
	s := runneltest.StartServer(t, server.Config{Namespaces: map[string]server.Namespace{"a": {}}})
	c, admin := s.Client(), newClients(t, s.Addr).admin
	done := make(chan struct{})
	acked := make(chan runnel.Ack, publishers)
	all := make([][]runnel.Ack, publishers)
	var group sync.WaitGroup
	for p := range publishers {
		group.Go(func() {
			for {
				ack, err := c.Publish(t.Context(), fmt.Sprint("a.", p), nil)
				if err != nil {
					t.Errorf("publish: %v", err)
					return
				}
				all[p] = append(all[p], ack)
				select {
				case acked <- ack:
				case <-done:
					return
				}
			}
		})
	}
	for n := range deletions + 1 {
		for range 30 {
			select {
			case <-acked:
			case <-t.Context().Done():
				t.Fatal("publishers are stuck")
			}
		}
		if n == deletions {
			break
		}
		if _, err := admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	group.Wait()
	left := map[runnel.Position]bool{}
	epoch := ""
	for e, err := range c.History(t.Context(), "a.>") {
		if err != nil {
			t.Fatal(err)
		}
		left[e.Position], epoch = true, e.Position.Epoch
	}
	for _, list := range all {
		for _, ack := range list {
			if ack.Position.Epoch == epoch && !left[ack.Position] {
				t.Errorf("%+v was acknowledged and is not there", ack)
			}
			delete(left, ack.Position)
		}
	}
	if epoch == "" || len(left) > 0 {
		t.Errorf("in epoch %q nobody was told of %v", epoch, left)
	}
}

// What a namespace left behind that is no longer configured is deleted without it.
func TestDeleteUnconfigured(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	s := runneltest.StartServer(t, server.Config{Data: data, Namespaces: map[string]server.Namespace{"a": {}, "b": {}}})
	if _, err := s.Client().Publish(t.Context(), "a.b", nil); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s = runneltest.StartServer(t, server.Config{Data: data, Namespaces: map[string]server.Namespace{"b": {}}})
	admin := newClients(t, s.Addr).admin
	for _, want := range []string{"", "UNKNOWN_NAMESPACE"} {
		if _, err := admin.DeleteNamespace(t.Context(), &runnelv1.DeleteNamespaceRequest{Namespace: "a"}); (err == nil) != (want == "") || reason(err) != want {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := s.Client().Publish(t.Context(), "a.b", nil); !terminal(err, runnel.ReasonUnknownNamespace) {
		t.Error(err)
	}
}
