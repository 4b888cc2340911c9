package natsengine

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// lockLife is how long a node may take to make a stream. One that died meanwhile has left its lock.
	lockLife = 15 * time.Second
	// lockPatience is how long others wait for it.
	lockPatience = 30 * time.Second
)

// lock takes the turn to make a namespace's stream, until unlock. JetStream refuses streams whose subjects overlap, but a server on its own
// looks for that before it makes one, so that two may pass. Names it holds unique: the lock is a stream of a name that is always the same, in
// memory, empty, and with its holder in its description, without which a second holder would be told that it is there as it wants it.
func (e *Engine) lock(ctx context.Context, namespace string) (unlock func(), err error) {
	name := e.o.streamName(namespace, "$lock")
	config := jetstream.StreamConfig{
		Name: name, Description: "held by " + newEpoch(), Subjects: []string{e.o.Prefix + ".$lock." + namespace},
		Storage: jetstream.MemoryStorage, Discard: jetstream.DiscardOld, Retention: jetstream.LimitsPolicy, MaxMsgs: 1, MaxConsumers: -1, MaxBytes: -1,
		MaxMsgsPerSubject: -1, MaxMsgSize: -1, Replicas: 1,
	}
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	for n := 0; ; n++ {
		var made streamInfo
		err := e.api(ctx, setupWait, "STREAM.CREATE."+name, config, &made)
		if err == nil && made.Error == nil {
			return func() { e.removeLock(name) }, nil
		}
		if err == nil {
			err = made.Error
		}
		if !isCode(err, codeNameInUse) && !isCode(err, codeNotCreated) && !errors.Is(err, errSilent) {
			return nil, apiError("cannot make stream "+name, err)
		}
		if i, lookErr := e.info(ctx, name, nil); lookErr == nil && i.Now.Sub(i.Created) >= e.lockLife {
			e.removeLock(name)
		}
		if pause(ctx, n) != nil {
			return nil, apiError("cannot make stream "+name, errSilent)
		}
	}
}

// removeLock removes a lock. If it cannot the lock ends when it is old.
func (e *Engine) removeLock(name string) {
	var answer struct{}
	_ = e.api(e.killed, setupWait, "STREAM.DELETE."+name, nil, &answer)
}
