package broker

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
	"github.com/runnelhq/runnel/internal/limit"
)

// Accepted is the result of an event that is stored as promised.
const Accepted = "accepted"

// Results are what may become of an event, for the metrics.
var Results = []string{Accepted, "duplicate", "invalid", "denied", "limited", "conflict", "skipped", "failed"}

const (
	accepted = iota
	duplicate
	invalid
	denied
	limited
	conflict
	skipped
	failed
)

// count tells the metrics.
func (b *Broker) count(out []Outcome) {
	if b.cfg.Published == nil {
		return
	}
	var n [failed + 1]int
	for i := range out {
		n[resultOf(&out[i])]++
	}
	for r, events := range n {
		if events > 0 {
			b.cfg.Published(Results[r], events)
		}
	}
}

// countTopics counts what was stored, by topic.
func (b *Broker) countTopics(at time.Time, entries []engine.Entry, results []engine.Result) {
	if b.cfg.Busy == nil {
		return
	}
	batch := b.cfg.Busy.At(at)
	for i := range results {
		if r := &results[i]; r.Err == nil && !r.Duplicate {
			batch.Add(entries[i].Topic, len(entries[i].Body))
		}
	}
	batch.Done()
}

func resultOf(o *Outcome) int {
	if o.Err == nil {
		if o.Response.GetDuplicate() {
			return duplicate
		}
		return accepted
	}
	var (
		bad       *InvalidError
		large     *TooLargeError
		forbidden *ForbiddenError
		over      *limit.Error
		moved     *engine.ConflictError
	)
	switch err := o.Err; {
	case errors.As(err, &bad), errors.As(err, &large), errors.Is(err, engine.ErrUnknownNamespace), errors.Is(err, engine.ErrTooManyNamespaces):
		return invalid
	case errors.As(err, &forbidden):
		return denied
	case errors.As(err, &over):
		return limited
	case errors.As(err, &moved):
		return conflict
	case errors.Is(err, engine.ErrSkipped):
		return skipped
	}
	return failed
}

// durabilities are spelled as configuration does.
var durabilities = func() map[runnelv1.Durability]string {
	words := map[runnelv1.Durability]string{}
	for d, name := range runnelv1.Durability_name {
		words[runnelv1.Durability(d)] = strings.ToLower(strings.TrimPrefix(name, "DURABILITY_"))
	}
	return words
}()

// Durabilities are the words that Committed is called with.
func Durabilities() []string {
	named := maps.Clone(durabilities)
	delete(named, runnelv1.Durability_DURABILITY_UNSPECIFIED) // no namespace has it
	return slices.Sorted(maps.Values(named))
}
