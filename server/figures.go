package server

import (
	"github.com/runnelhq/runnel/internal/admin"
	"github.com/runnelhq/runnel/internal/budget"
)

// figures are the plain values of a scrape.
func (s *Server) figures() []admin.Figure {
	var list []admin.Figure
	gauge := func(name, help string, v float64) {
		list = append(list, admin.Figure{Name: name, Help: help, Value: v})
	}
	counter := func(name, help string, v float64) {
		list = append(list, admin.Figure{Name: name, Help: help, Value: v, Counter: true})
	}
	gauge("runnel_memory_limit_bytes", "Memory that may be held for clients (limits.memory_bytes).", float64(s.budget.Limit()))
	for _, k := range budget.Kinds() {
		list = append(list, admin.Figure{
			Name: "runnel_memory_used_bytes", Help: "Memory held for clients, by what it is held for.", Label: "kind", Of: k.String(), Value: float64(s.budget.Used(k)),
		})
	}
	m := &s.meter
	gauge("runnel_sessions", "Sessions that are open: Subscribe and EstablishStream calls.", float64(m.Sessions.Load()))
	gauge("runnel_subscriptions", "Subscriptions of all sessions.", float64(m.Subscriptions.Load()))
	gauge("runnel_subscriptions_behind", "Subscriptions that read the log because they fell out of memory.", float64(m.Behind.Load()))
	if api := s.api.Load(); api != nil {
		most, sum, stuck := api.Lag()
		gauge("runnel_sessions_stuck", "Sessions that have taken nothing for more than a second while events wait for them.", float64(stuck))
		gauge("runnel_lag_events", "Events that subscriptions have not been sent yet, of all together; of those that read the log, offsets not yet read.", float64(sum))
		gauge("runnel_lag_events_max", "The same of the subscription that is farthest behind.", float64(most))
	}
	s.sent.Each(func(rpc string, messages, bytes uint64) {
		list = append(list,
			admin.Figure{Name: "runnel_sent_messages_total", Help: "Messages sent, by kind of RPC.", Label: "rpc", Of: rpc, Value: float64(messages), Counter: true},
			admin.Figure{Name: "runnel_sent_bytes_total", Help: "Bytes of messages sent, before compression, by kind of RPC.", Label: "rpc", Of: rpc, Value: float64(bytes), Counter: true})
	})
	counter("runnel_deliveries_total", "Events sent to sessions.", float64(m.Events.Load()))
	counter("runnel_replayed_total", "Events sent to sessions that were read from the log.", float64(m.Replayed.Load()))
	counter("runnel_dropped_total", "Events dropped for slow subscriptions.", float64(m.Dropped.Load()))
	counter("runnel_conflated_total", "Events superseded by newer ones of their keys for slow subscriptions.", float64(m.Conflated.Load()))
	counter("runnel_gaps_total", "Stretches of logs that subscriptions could not get any more.", float64(m.Gaps.Load()))
	counter("runnel_slow_consumers_total", "Sessions ended because their clients were too slow, or by a broken connection after the client had taken nothing for 5 s.", float64(m.Slow.Load()))
	if c := s.nodes.cluster; c != nil {
		list, stale := c.Nodes()
		heard := 1.0
		if stale {
			heard = 0
		}
		gauge("runnel_nodes", "Servers that share the cluster, as this one knows them, itself included.", float64(len(list)))
		gauge("runnel_nodes_heard", "0 while this server does not hear the others.", heard)
	}
	e := s.engine.Figures()
	gauge("runnel_namespaces", "Namespaces whose logs are open.", float64(e.Namespaces))
	if s.cfg.Engine == Embedded { // the disks of NATS are its own
		gauge("runnel_storage_disk_bytes", "Bytes of the storage engine's files.", float64(e.DiskBytes))
		gauge("runnel_storage_free_bytes", "Free bytes of the data directory's file system, when last looked at.", float64(e.FreeBytes))
		gauge("runnel_storage_reserve_bytes", "Free bytes below which publishes are refused.", float64(e.Reserve))
		gauge("runnel_storage_wal_bytes", "Bytes of live write-ahead logs.", float64(e.WALBytes))
		counter("runnel_storage_wal_written_bytes_total", "Bytes written to write-ahead logs.", float64(e.WALWritten))
		gauge("runnel_storage_memtable_bytes", "Bytes of memtables.", float64(e.Memtables))
		counter("runnel_storage_flushes_total", "Flushes of memtables.", float64(e.Flushes))
		counter("runnel_storage_compactions_total", "Compactions.", float64(e.Compactions))
		gauge("runnel_storage_compaction_debt_bytes", "Bytes that compactions have yet to look at.", float64(e.Debt))
		gauge("runnel_storage_read_amplification", "Sorted runs that a read looks into.", float64(e.ReadAmp))
	}
	failed := 0.0
	if e.Failed {
		failed = 1
	}
	gauge("runnel_storage_failed", "1 while the storage takes no events.", failed)
	return list
}
