package natsengine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
	"github.com/runnelhq/runnel/internal/engine"
)

// metaEpoch is the key of a stream's metadata that holds its epoch. It also says that the stream is Runnel's.
const metaEpoch = "runnel-epoch"

// Codes of JetStream's errors.
const (
	codeStreamNotFound    = 10059
	codeOtherStream       = 10060
	codeNameInUse         = 10058
	codeOverlap           = 10065
	codeNotCreated        = 10049
	codeNotClustered      = 10074
	codeNoPeers           = 10005
	codeNoMessage         = 10037
	codeConflict          = 10071
	codeConflictInFlight  = 10164
	codeDuplicateInFlight = 10158
	codeNoResources       = 10023
	codeNoStorage         = 10047
	codeStoreFailed       = 10077
	codeTooMany           = 10167
	codeBatchDuplicate    = 10201
)

// apiWait is how long an answer of JetStream's API may take, and setupWait how long one may take that changes a stream.
const (
	apiWait   = 3 * time.Second
	setupWait = 10 * time.Second
)

// streamInfo is what JetStream says of a stream.
type streamInfo struct {
	Config  jetstream.StreamConfig `json:"config"`
	Created time.Time              `json:"created"`
	Now     time.Time              `json:"ts"`
	State   streamState            `json:"state"`
	Error   *jetstream.APIError    `json:"error"`
	Total   int                    `json:"total"` // subjects there are, of which State holds a page
}

type streamState struct {
	Messages uint64            `json:"messages"`
	First    uint64            `json:"first_seq"`
	Last     uint64            `json:"last_seq"`
	Bytes    uint64            `json:"bytes"`
	Subjects map[string]uint64 `json:"subjects"`
}

// oldest is the first offset that is retained.
func (s *streamState) oldest() uint64 {
	if s.Messages == 0 {
		return s.Last + 1
	}
	return s.First
}

// streamName names a new stream of a namespace. No name comes twice: what is on its way to a stream that was deleted never reaches
// the next one, and servers remove the files of a deleted stream in their own time. Names of tokens are valid names of streams; very
// long ones are not.
func (o *Options) streamName(namespace, epoch string) string {
	const longest = 200
	name := o.Prefix + "_" + namespace
	if len(name) > longest {
		sum := sha256.Sum256([]byte(namespace))
		name = o.Prefix + "_" + hex.EncodeToString(sum[:])
	}
	return name + "_" + epoch
}

// find looks for a namespace's stream: that which has its subjects. Empty: there is none.
func (e *Engine) find(ctx context.Context, namespace string) (name string, err error) {
	request := struct {
		Subject string `json:"subject"`
	}{e.o.subject(namespace)}
	var answer struct {
		Streams []string            `json:"streams"`
		Error   *jetstream.APIError `json:"error"`
	}
	err = e.api(ctx, apiWait, "STREAM.NAMES", request, &answer)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err != nil || len(answer.Streams) == 0 {
		return "", err
	}
	return answer.Streams[0], nil
}

// api calls JetStream's API and decodes the answer into v.
func (e *Engine) api(ctx context.Context, wait time.Duration, subject string, request, v any) error {
	return e.reader().api(ctx, wait, subject, request, v)
}

func (l *link) api(ctx context.Context, wait time.Duration, subject string, request, v any) error {
	var data []byte
	if request != nil {
		var err error
		if data, err = json.Marshal(request); err != nil {
			return err
		}
	}
	m, err := l.ask(ctx, "$JS.API."+subject, data, wait)
	if err != nil {
		if errors.Is(err, errSilent) || errors.Is(err, errNoResponders) {
			l.heard(false)
		}
		return err
	}
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	err = json.Unmarshal(m.Data, &answer)
	l.heard(err == nil && (answer.Error == nil || !isUnavailable(answer.Error)))
	return json.Unmarshal(m.Data, v)
}

// infoRequest asks for a stream's state, and where Filter is set for its subjects.
type infoRequest struct {
	Filter string `json:"subjects_filter,omitempty"`
	Offset int    `json:"offset,omitempty"`
}

// info asks the stream's leader.
func (e *Engine) info(ctx context.Context, stream string, r *infoRequest) (*streamInfo, error) {
	i := new(streamInfo)
	var request any
	if r != nil {
		request = r
	}
	if err := e.api(ctx, apiWait, "STREAM.INFO."+stream, request, i); err != nil {
		return nil, err
	}
	if i.Error != nil {
		return nil, i.Error
	}
	return i, nil
}

func isCode(err error, code int) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && int(api.ErrorCode) == code
}

// settings is how the stream of a namespace must be.
func (o *Options) settings(namespace string, cfg engine.Config) jetstream.StreamConfig {
	const leastAge = 100 * time.Millisecond // of JetStream
	c := jetstream.StreamConfig{
		Description: "Runnel namespace " + namespace,
		Subjects:    []string{o.subject(namespace), o.subject(namespace) + ".>"},
		Retention:   jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, Storage: jetstream.FileStorage,
		MaxConsumers: -1, MaxMsgs: limit(cfg.MaxEvents), MaxBytes: limit(cfg.MaxBytes), MaxMsgsPerSubject: -1, MaxMsgSize: -1,
		Replicas: o.Replicas, AllowDirect: true, AllowAtomicPublish: true, Duplicates: cfg.DedupWindow,
	}
	if cfg.History == engine.HistoryMemory {
		c.Storage = jetstream.MemoryStorage
	}
	if c.Duplicates <= 0 {
		c.Duplicates = defaultDedupWindow
	}
	if cfg.MaxAge > 0 {
		c.MaxAge = max(cfg.MaxAge, leastAge)
		c.Duplicates = min(c.Duplicates, c.MaxAge) // JetStream remembers ids no longer than events
	}
	c.Duplicates = max(c.Duplicates, leastAge)
	return c
}

func limit(n uint64) int64 {
	if n == 0 || n > 1<<62 {
		return -1
	}
	return int64(n)
}

// durability is what an acknowledgement means. With one replica JetStream writes and leaves forcing to disk for later.
func (o *Options) durability(h engine.History) runnelv1.Durability {
	switch {
	case h == engine.HistoryNone || h == engine.HistoryMemory:
		return h.Durability()
	case o.Replicas > 1:
		return runnelv1.Durability_DURABILITY_REPLICATED
	default:
		return runnelv1.Durability_DURABILITY_OS
	}
}

// newEpoch makes an epoch.
func newEpoch() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// stream makes sure that a namespace's stream is there and as it must be. Nodes make one in turn.
func (e *Engine) stream(ctx context.Context, namespace string, cfg engine.Config) (*streamInfo, error) {
	const attempts = 8
	want := e.o.settings(namespace, cfg)
	if i, err := e.found(ctx, namespace, want); i != nil || err != nil {
		return i, err
	}
	unlock, err := e.lock(ctx, namespace)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for n := 0; ; n++ {
		i, err := e.found(ctx, namespace, want)
		if i != nil || err != nil {
			return i, err
		}
		made, epoch := want, newEpoch()
		made.Name, made.Metadata = e.o.streamName(namespace, epoch), map[string]string{metaEpoch: epoch}
		i = new(streamInfo)
		err = e.api(ctx, setupWait, "STREAM.CREATE."+made.Name, made, i)
		if err == nil && i.Error == nil {
			return i, nil
		}
		if err == nil {
			err = i.Error
		}
		// Another node was faster, or a server that has just removed its last stream removes the directory that the next one is for.
		again := isCode(err, codeOverlap) || isCode(err, codeNotCreated)
		switch {
		case isCode(err, codeNotClustered):
			return nil, fmt.Errorf("cannot create stream %s: %d replicas need as many NATS servers, and this is one: %w", made.Name, made.Replicas, err)
		case isCode(err, codeNoPeers): // some may be back soon
			return nil, fmt.Errorf("%w: cannot create stream %s: %d replicas need as many NATS servers that are up and have room: %w",
				engine.ErrUnavailable, made.Name, made.Replicas, err)
		}
		if !again || n == attempts || pause(ctx, n) != nil {
			return nil, apiError("cannot create stream "+made.Name, err)
		}
	}
}

// found is a namespace's stream, as it must be; nil if there is none.
func (e *Engine) found(ctx context.Context, namespace string, want jetstream.StreamConfig) (*streamInfo, error) {
	i, err := e.look(ctx, namespace)
	if i == nil || err != nil {
		return nil, err
	}
	want.Name = i.Config.Name
	return e.adapt(ctx, i, want)
}

// look is a namespace's stream, whatever it is like; nil if there is none.
func (e *Engine) look(ctx context.Context, namespace string) (*streamInfo, error) {
	const attempts, silences = 8, 2
	for n := 0; ; n++ {
		name, err := e.find(ctx, namespace)
		if err != nil {
			return nil, apiError("cannot look for the stream of "+namespace, err)
		}
		if name == "" {
			return nil, nil
		}
		i, err := e.info(ctx, name, nil)
		if err == nil {
			return i, nil
		}
		// Not found: it was deleted meanwhile, or its leader is new. Silent: it is just being made, and has none yet.
		again := isCode(err, codeStreamNotFound) && n < attempts || errors.Is(err, errSilent) && n < silences
		if !again || pause(ctx, n) != nil {
			return nil, apiError("cannot look at stream "+name, err)
		}
	}
}

// adapt compares a stream that exists with what it must be. Limits follow the configuration; everything else is for the
// operator to decide, since changing it moves data.
func (e *Engine) adapt(ctx context.Context, i *streamInfo, want jetstream.StreamConfig) (*streamInfo, error) {
	have := i.Config
	differs := func(what string, is, should any) (*streamInfo, error) {
		return nil, fmt.Errorf("stream %s exists with other settings: %s is %v and must be %v", want.Name, what, is, should)
	}
	switch {
	case have.Metadata[metaEpoch] == "":
		return nil, fmt.Errorf("stream %s exists and was not made by Runnel: choose another prefix", want.Name)
	case !slices.Equal(have.Subjects, want.Subjects):
		return differs("subjects", have.Subjects, want.Subjects)
	case have.Storage != want.Storage:
		return differs("storage", have.Storage, want.Storage)
	case have.Replicas != want.Replicas:
		return differs("the number of replicas", have.Replicas, want.Replicas)
	case have.Retention != want.Retention:
		return differs("retention", have.Retention, want.Retention)
	case have.Discard != want.Discard:
		return differs("discard", have.Discard, want.Discard)
	case have.MaxMsgsPerSubject > 0:
		return differs("messages per subject", have.MaxMsgsPerSubject, "without limit")
	case !have.AllowDirect, !have.AllowAtomicPublish, have.NoAck, have.Sealed, have.Mirror != nil:
		return nil, fmt.Errorf("stream %s exists with other settings: it must allow direct gets and atomic publishes, acknowledge, and be no mirror", want.Name)
	case have.MaxMsgs == want.MaxMsgs && have.MaxBytes == want.MaxBytes && have.MaxAge == want.MaxAge && have.Duplicates == want.Duplicates:
		return i, nil
	}
	have.MaxMsgs, have.MaxBytes, have.MaxAge, have.Duplicates = want.MaxMsgs, want.MaxBytes, want.MaxAge, want.Duplicates
	return e.update(ctx, have)
}

func (e *Engine) update(ctx context.Context, c jetstream.StreamConfig) (*streamInfo, error) {
	i := new(streamInfo)
	if err := e.api(ctx, setupWait, "STREAM.UPDATE."+c.Name, c, i); err != nil {
		return nil, apiError("cannot change stream "+c.Name, err)
	}
	if i.Error != nil {
		return nil, apiError("cannot change stream "+c.Name, i.Error)
	}
	return i, nil
}

// apiError says in one line what failed. That NATS was away or gave no answer is worth trying again later.
func apiError(what string, err error) error {
	switch {
	case errors.Is(err, errAway), errors.Is(err, errLost), errors.Is(err, errSilent), errors.Is(err, errNoResponders), isUnavailable(err):
		return fmt.Errorf("%w: %s: %s", engine.ErrUnavailable, what, oneLine(err))
	case isCode(err, codeStreamNotFound): // by its leader, which may be new
		return fmt.Errorf("%w: %s: %s", engine.ErrUnavailable, what, oneLine(err))
	case isCode(err, codeNoResources), isCode(err, codeNoStorage):
		return fmt.Errorf("%w: %s: %s", engine.ErrStorageFull, what, oneLine(err))
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// isUnavailable reports whether JetStream says that it cannot do something now: its code is then that of HTTP.
func isUnavailable(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code == 503 && !isCode(err, codeNoResources)
}
