package grpcapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A fault of our own is not shown to the client, but what joins it with the log is; other errors say what they are.
func TestFaultsAreFound(t *testing.T) {
	var log bytes.Buffer
	s := &Service{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	call, session := &caller{client: "me"}, &caller{client: "me", session: "abc"}
	for _, by := range []*caller{call, session} {
		log.Reset()
		err := s.Fail(context.WithValue(t.Context(), callerKey{}, by), errors.New("a secret"))
		kind, id := by.Origin()
		if st := status.Convert(err); st.Code() != codes.Internal || strings.Contains(st.Message(), "secret") || !strings.Contains(st.Message(), kind+"="+id) {
			t.Errorf("the client is told %v", err)
		}
		if line := log.String(); !strings.Contains(line, "secret") || !strings.Contains(line, kind+"="+id) || !strings.Contains(line, "client=me") {
			t.Errorf("the log has %q", line)
		}
	}
	if kind, id := session.Origin(); kind != "session" || id != "abc" {
		t.Errorf("%s %s", kind, id)
	}
	log.Reset()
	if err := s.Fail(context.WithValue(t.Context(), callerKey{}, call), io.EOF); log.Len() == 0 || err == nil {
		t.Errorf("%v, log %q", err, log.String())
	}
	log.Reset()
	if err := s.Fail(context.WithValue(t.Context(), callerKey{}, call), ErrDraining); status.Code(err) != codes.Unavailable || log.Len() > 0 {
		t.Errorf("%v, log %q", err, log.String())
	}
}
