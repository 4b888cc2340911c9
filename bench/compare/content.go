package main

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/runnelhq/runnel/bench/receive"
)

// contents are what events of the scenario compression hold, behind the stamp: made up, but alike what is sent in earnest.
var contents = map[string]func(r *rand.Rand, i int) string{
	"ticks": func(r *rand.Rand, i int) string {
		return fmt.Sprintf(`{"t":%d,"symbol":"%s","bid":%.5f,"ask":%.5f,"size":%d}`, 1_763_000_000_000+i*17,
			[]string{"EURUSD", "USDJPY", "GBPUSD", "AUDUSD"}[r.IntN(4)], 1.08+r.Float64()/100, 1.081+r.Float64()/100, 1000*(1+r.IntN(50)))
	},
	"logs": func(r *rand.Rand, i int) string {
		return fmt.Sprintf(`{"time":"2026-11-21T04:%02d:%02d.%06dZ","level":"%s","msg":"request served","service":"checkout","method":"%s","path":"/v1/orders/%d","status":%d,"duration_ms":%.3f,"trace_id":"%016x%016x"}`,
			i/60%60, i%60, r.IntN(1e6), []string{"INFO", "INFO", "INFO", "WARN"}[r.IntN(4)], []string{"GET", "POST"}[r.IntN(2)],
			r.IntN(1e6), []int{200, 200, 200, 404, 503}[r.IntN(5)], r.ExpFloat64()*20, r.Uint64(), r.Uint64())
	},
}

// payloads are taken in turn by the events of a measurement: one of zeros, or many with content.
func (w *workload) payloads() [][]byte {
	make1 := contents[w.Content]
	if make1 == nil {
		return [][]byte{make([]byte, w.Payload)}
	}
	const different = 4096 // more than any coder's window holds
	r := rand.New(rand.NewPCG(1, 2))
	var list [][]byte
	for i := range different {
		list = append(list, slices.Concat(make([]byte, receive.StampSize), []byte(make1(r, i))))
	}
	return list
}

// meanSize is the payloads' mean size in bytes.
func meanSize(payloads [][]byte) int {
	sum := 0
	for _, p := range payloads {
		sum += len(p)
	}
	return sum / len(payloads)
}
