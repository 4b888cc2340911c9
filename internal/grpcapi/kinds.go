package grpcapi

import (
	"sync/atomic"

	runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"
)

// Kinds are all that kindOf says.
func Kinds() []string {
	return []string{
		"publish", "subscribe", "unsubscribe", "credit", "heartbeat", "refresh_token", "read_history", "get_topic", "list_topics", "empty", "other",
	}
}

// kindOf names a request for the metrics.
func kindOf(v any) string {
	switch r := v.(type) {
	case *runnelv1.PublishRequest:
		return "publish"
	case *runnelv1.StreamRequest:
		return kindOfCommand(r)
	case *runnelv1.SubscribeRequest:
		return "subscribe"
	case *runnelv1.ReadHistoryRequest:
		return "read_history"
	case *runnelv1.GetTopicRequest:
		return "get_topic"
	case *runnelv1.ListTopicsRequest:
		return "list_topics"
	}
	return "other"
}

func kindOfCommand(r *runnelv1.StreamRequest) string {
	switch r.GetRequest().(type) {
	case *runnelv1.StreamRequest_Subscribe:
		return "subscribe"
	case *runnelv1.StreamRequest_Unsubscribe:
		return "unsubscribe"
	case *runnelv1.StreamRequest_Publish:
		return "publish"
	case *runnelv1.StreamRequest_Credit:
		return "credit"
	case *runnelv1.StreamRequest_Heartbeat:
		return "heartbeat"
	case *runnelv1.StreamRequest_RefreshToken:
		return "refresh_token"
	}
	return "empty"
}

// rpc is what a message is sent for.
type rpc uint8

const (
	rpcSession rpc = iota // EstablishStream
	rpcSubscribe
	rpcReadHistory
	rpcPublish // Publish and PublishStream
	rpcGetTopic
	rpcListTopics
	rpcOther
	rpcs
)

var rpcWords = [rpcs]string{"session", "subscribe", "read_history", "publish", "get_topic", "list_topics", "other"}

// Sent counts the messages that were sent, and their bytes before compression. Safe for concurrent use.
type Sent struct {
	by [rpcs]struct{ messages, bytes atomic.Uint64 }
}

func (s *Sent) add(r rpc, bytes int) {
	s.by[r].messages.Add(1)
	s.by[r].bytes.Add(uint64(bytes))
}

// Each calls f for each kind of RPC.
func (s *Sent) Each(f func(rpc string, messages, bytes uint64)) {
	for i := range s.by {
		f(rpcWords[i], s.by[i].messages.Load(), s.by[i].bytes.Load())
	}
}

// rpcOf is what an answer is sent for that is no frame.
func rpcOf(v any) rpc {
	switch v.(type) {
	case *runnelv1.PublishResponse, *runnelv1.PublishSummary:
		return rpcPublish
	case *runnelv1.Topic:
		return rpcGetTopic
	case *runnelv1.ListTopicsResponse:
		return rpcListTopics
	}
	return rpcOther
}
