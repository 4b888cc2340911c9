package cli

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// supervise tells systemd, where that has started the process (Type=notify), that the server is ready, and that it is alive as often as its
// watchdog wants, until ctx ends; then that it stops. Elsewhere it does nothing.
func supervise(ctx context.Context, logger *slog.Logger) {
	sent, err := daemon.SdNotify(false, daemon.SdNotifyReady)
	if err != nil {
		logger.Warn("systemd could not be told that the server is ready", "err", err)
	}
	if !sent {
		return
	}
	defer func() {
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) // it will see
	}()
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		<-ctx.Done()
		return
	}
	ticker := time.NewTicker(every / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) // again soon
		case <-ctx.Done():
			return
		}
	}
}
