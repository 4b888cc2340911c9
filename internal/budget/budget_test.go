package budget_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnelhq/runnel/internal/budget"
)

func TestShares(t *testing.T) {
	b := budget.New(1000)
	if !b.Take(budget.Windows, 500) || b.Take(budget.Windows, 1) {
		t.Error("windows must get exactly one half")
	}
	if !b.Take(budget.Sessions, 500) {
		t.Error("sessions must get the other half")
	}
	if b.Take(budget.Pages, 1) {
		t.Error("the limit was passed, though the share was not")
	}
	b.Give(budget.Windows, 500)
	if !b.Take(budget.Pages, 250) || b.Take(budget.Pages, 1) {
		t.Error("pages must get exactly one quarter")
	}
	if got := b.Used(budget.Pages); got != 250 {
		t.Errorf("pages use %d, want 250: refusals must leave nothing behind", got)
	}
}

func TestShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(100)
		if b.Short() {
			t.Error("short before anything was refused")
		}
		b.Take(budget.Windows, 1000)
		if !b.Short() {
			t.Error("not short after a refusal")
		}
		time.Sleep(2 * time.Second)
		if b.Short() {
			t.Error("short long after the refusal")
		}
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(400)
		b.Take(budget.Publishes, 100)
		if err := b.Wait(t.Context(), budget.Publishes, 101); !errors.Is(err, budget.ErrExhausted) {
			t.Errorf("waiting for more than there can be: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Wait(ctx, budget.Publishes, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting in vain: %v", err)
		}
		time.AfterFunc(time.Second, func() { b.Give(budget.Publishes, 50) })
		if err := b.Wait(t.Context(), budget.Publishes, 50); err != nil {
			t.Error(err)
		}
	})
}

func TestBlock(t *testing.T) {
	b := budget.New(1000)
	bl, ok := b.Block(budget.Pages, 100)
	if !ok {
		t.Fatal("refused")
	}
	const holders = 8
	var group sync.WaitGroup
	for range holders {
		bl.Hold()
		group.Go(bl.Drop)
	}
	group.Wait()
	if got := b.Used(budget.Pages); got != 100 {
		t.Errorf("%d bytes are counted while the block is held, want 100", got)
	}
	bl.Drop()
	if got := b.Used(budget.Pages); got != 0 {
		t.Errorf("%d bytes are counted after the last holder, want 0", got)
	}
	if _, ok := b.Block(budget.Pages, 251); ok {
		t.Error("a block above the share was allowed")
	}
}

func TestNil(t *testing.T) {
	var b *budget.Budget
	bl, ok := b.Block(budget.Windows, 1<<40)
	if !ok || !b.Take(budget.Sessions, 1<<50) || b.Short() {
		t.Error("no budget must allow everything")
	}
	bl.Hold()
	bl.Drop()
	b.Give(budget.Sessions, 1<<50)
	b.Force(budget.Sessions, 1)
	if err := b.Wait(t.Context(), budget.Pages, 1<<50); err != nil {
		t.Error(err)
	}
	if b.ForcedBlock(budget.Pages, 1) != nil || b.Used(budget.Pages) != 0 {
		t.Error("no budget counts nothing")
	}
}
