package server_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/runnelhq/runnel"
	"github.com/runnelhq/runnel/runneltest"
	"github.com/runnelhq/runnel/server"
)

// A copy of the data directory of a server that is stopped is a backup. A server on it goes on under a new epoch: whoever has seen no more
// than the copy holds resumes, and whoever has seen more is told.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	kept := map[string]server.Namespace{"a": {History: "disk"}}
	data := t.TempDir() + "/data"
	s := runneltest.StartServer(t, server.Config{Engine: server.Embedded, Data: data, Namespaces: kept})
	client := s.Client()
	var at []runnel.Position
	publish := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			ack, err := client.Publish(t.Context(), "a.b", []byte(fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			at = append(at, ack.Position)
		}
	}
	publish(0, 10)
	s.Stop()
	backup := t.TempDir() + "/copy"
	if err := os.CopyFS(backup, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	publish(10, 15)
	s.Stop()

	restored := runneltest.StartServer(t, server.Config{Engine: server.Embedded, Data: backup, Namespaces: kept})
	client = restored.Client()
	publish(15, 20) // under the offsets that 10 to 14 had
	if at[15].Offset != at[10].Offset || at[15].Epoch == at[10].Epoch {
		t.Errorf("%v, then %v", at[10], at[15])
	}
	sub, err := client.Subscribe(t.Context(), "a.>", runnel.From(runnel.After(at[7])))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{8, 9, 15, 16} {
		if e, err := sub.Next(t.Context()); err != nil || string(e.Payload) != fmt.Sprint(want) {
			t.Fatalf("%+v, %v, want %d", e, err, want)
		}
	}
	_, err = client.Subscribe(t.Context(), "a.>", runnel.From(runnel.After(at[12])))
	if e := (*runnel.Error)(nil); !errors.As(err, &e) || e.Reason != runnel.ReasonEpochChanged {
		t.Errorf("what the copy does not hold: %v", err)
	}
}
