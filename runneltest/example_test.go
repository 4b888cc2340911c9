package runneltest_test

import (
	"testing"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
)

func TestStart(t *testing.T) {
	client := runneltest.Start(t)
	if _, err := client.Publish(t.Context(), "a.b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	sub, err := client.Subscribe(t.Context(), "a.>", runnel.From(runnel.Last()))
	if err != nil {
		t.Fatal(err)
	}
	if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != "x" {
		t.Errorf("%+v, %v", e, err)
	}
}
