package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// Only its name deletes a namespace.
func TestAskBeforeDelete(t *testing.T) {
	for answer, ok := range map[string]bool{"quotes\n": true, " quotes \r\n": true, "quotes": true, "yes\n": false, "Quotes\n": false, "\n": false, "": false} {
		var shown bytes.Buffer
		a := &app{server: "there:1", err: &shown}
		if err := a.ask(t.Context(), strings.NewReader(answer), "quotes"); (err == nil) != ok {
			t.Errorf("%q: %v", answer, err)
		}
		if !strings.Contains(shown.String(), "namespace quotes on there:1") {
			t.Errorf("asked %q", shown.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&app{err: new(bytes.Buffer)}).ask(ctx, strings.NewReader("quotes\n"), "quotes"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
