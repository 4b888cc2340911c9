// Package history is the judge of every fault test: it records what publishers were told and what subscribers got, through
// crashes and reconnects, and says afterwards whether that was a history the product's promises allow.
//
// A test records into a Recorder while it runs: each opening of a log (with its epoch and the head it came back with), each
// publish with its fate, and for each Subscriber, in order, where it stood, what it got and what it was told. Check then
// compares everybody's story with everybody else's. It believes an event to exist if its publish was acknowledged or if any
// subscriber saw it.
//
// An offset alone names nothing after a crash has cut the log: the events of offsets 8 and 9 that were lost and those that
// were appended there later are different events. Check therefore works with stretches, the part of a log that was appended
// under one epoch, and judges every sighting from the epoch in which it was made.
//
// The rules:
//
//   - content: an offset of a stretch holds one event, with one topic, id, payload and timestamp, for the publisher that was
//     acknowledged and for every reader.
//   - invented: every event seen was published, by a publish that was not refused.
//   - missing: a subscriber that was at one position and later at another got every matching event between, or a notice.
//   - order: the offsets a subscriber gets rise.
//   - duplicate: a subscriber gets no offset twice, also after a resume.
//   - start: a subscriber gets nothing from before its start.
//   - pattern: a subscriber gets only topics that match its pattern.
//   - time: timestamps never fall as offsets rise.
//   - dedup: an id on a topic has one offset within the deduplication window, and an acknowledgement as duplicate names it.
//   - expected: a conditional event follows directly, on its topic, the event that it expected.
//   - durable: what was acknowledged at a level, or seen by a subscriber in a namespace that promises one, is still there after
//     every end that the level survives.
//   - bookmark: a bookmark is never ahead of what was delivered or covered by a notice.
//   - notice: GAP only where retention has removed events; DROPPED and CONFLATED with exact counts; none about events that
//     were already delivered.
//   - epoch: a position whose stretch was lost is never accepted, and every epoch named is one the log had.
//   - refusal: EPOCH_CHANGED only if the position was lost or the epoch forgotten; POSITION_GONE only if events behind the
//     position were trimmed.
//
// The snapshot that a last_event start brings lies before the start; a test looks at it by itself. Events without an offset,
// where nothing is kept, are checked for having been published, and for no more.
//
// Where a test knows what a reader must have reached, Subscriber.Complete turns a missing tail into a violation too. Payloads
// are hashed, not kept: an event costs about 110 bytes, 32 more for each subscriber that got it, and 150 more while Check runs.
package history

import (
	"fmt"
	"time"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Rule names what a history must obey; the package comment explains each.
type Rule string

// The rules.
const (
	RuleContent   Rule = "content"
	RuleInvented  Rule = "invented"
	RuleMissing   Rule = "missing"
	RuleOrder     Rule = "order"
	RuleDuplicate Rule = "duplicate"
	RuleStart     Rule = "start"
	RulePattern   Rule = "pattern"
	RuleTime      Rule = "time"
	RuleDedup     Rule = "dedup"
	RuleExpected  Rule = "expected"
	RuleDurable   Rule = "durable"
	RuleBookmark  Rule = "bookmark"
	RuleNotice    Rule = "notice"
	RuleEpoch     Rule = "epoch"
	RuleRefusal   Rule = "refusal"
)

// Violation is one broken rule.
type Violation struct {
	Rule Rule
	Text string // one line: who, where, what
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s", v.Rule, v.Text) }

// Position is a place in a log: everything up to Offset was seen.
type Position struct {
	Epoch  string
	Offset uint64
}

// Rules are what a namespace promises.
type Rules struct {
	// Durability is the level that acknowledgements and sightings stand for.
	Durability runnelv1.Durability
	// DedupWindow is how long an id stays remembered; 0: the same id is always the same event.
	DedupWindow time.Duration
	// IDsKept, if above 0, says that an id may be forgotten once that many events follow its own.
	IDsKept uint64
	// TimesEnd says that the timestamp of a duplicate is 0 where retention has removed its event.
	TimesEnd bool
}

// HeadUnknown says that the test could not look at the head before publishers went on. It is then inferred from the first
// event that was acknowledged under the epoch.
const HeadUnknown = ^uint64(0)

// Opening is a log's beginning under a new epoch: the first one, and every one after a restart, a crash or a reopening inside
// the process.
type Opening struct {
	Epoch string
	Head  uint64 // newest offset that was there, or HeadUnknown
	// Survives is the weakest durability that outlives what ended the epoch before: DISK for a power loss, OS for a killed
	// process, MEMORY for a reopening inside the process.
	Survives runnelv1.Durability
	// Fresh says that the storage is not the one of the epoch before, but new or an older copy: earlier epochs may be refused.
	Fresh bool
}

// Outcome is what a publisher learned.
type Outcome uint8

// The outcomes.
const (
	Acked   Outcome = iota + 1
	Refused         // it was told that nothing is stored
	Unknown         // the answer never came
)

// Publish is one attempt to publish, with its fate. Attempts of the same topic and id are retries of one event.
type Publish struct {
	Topic   string
	ID      string
	Payload []byte
	// Conditional says that the event was to be appended only behind Expected.
	Conditional bool
	Expected    uint64
	Outcome     Outcome

	// What the acknowledgement said. Epoch is the one under which it was given. Offset is 0 where nothing is kept.
	// Durability may be left unspecified: then it is what the namespace promises.
	Epoch      string
	Offset     uint64
	Timestamp  int64
	Duplicate  bool
	Durability runnelv1.Durability
}
