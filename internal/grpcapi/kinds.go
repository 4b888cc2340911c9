package grpcapi

import runnelv1 "github.com/runnelhq/runnel/api/runnel/v1"

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
