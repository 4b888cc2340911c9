package history

import (
	"slices"
	"testing"

	"github.com/runnelhq/runnel/internal/topic"
)

func topicOf(s string) topic.Name { return topic.Stored(s) }

const steps = 400

// A correct history passes, whatever happened in it.
func TestCorrectHistoriesPass(t *testing.T) {
	for seed := range uint64(400) {
		if found := newModel(seed, "").run(steps); len(found) > 0 {
			t.Fatalf("seed %d: %v", seed, found)
		}
	}
}

// Each bug is caught by its rule, in every history in which it had an opportunity.
func TestPlantedBugsAreCaught(t *testing.T) {
	for b, rules := range map[bug][]Rule{
		"skips one at the seam":          {RuleMissing},
		"ack before commit":              {RuleDurable},
		"visible before commit":          {RuleDurable},
		"bookmark one ahead":             {RuleBookmark},
		"silent drop":                    {RuleMissing},
		"tail missing":                   {RuleMissing},
		"gap not told":                   {RuleMissing, RuleBookmark},
		"CONFLATED not told":             {RuleMissing},
		"duplicate after resume":         {RuleDuplicate},
		"epoch ignored":                  {RuleEpoch},
		"reordered":                      {RuleOrder},
		"event before the start":         {RuleStart},
		"foreign topic":                  {RulePattern},
		"payload swapped":                {RuleContent},
		"offset given twice":             {RuleContent},
		"payload damaged":                {RuleInvented},
		"refused but stored":             {RuleInvented},
		"timestamp falls":                {RuleTime},
		"dedup broken":                   {RuleDedup},
		"duplicate names another offset": {RuleDedup},
		"expectation ignored":            {RuleExpected},
		"DROPPED count wrong":            {RuleNotice},
		"CONFLATED count wrong":          {RuleNotice},
		"gap for no reason":              {RuleNotice},
		"event behind its notice":        {RuleNotice},
		"refused for no reason":          {RuleRefusal},
		"gone for no reason":             {RuleRefusal},
	} {
		t.Run(string(b), func(t *testing.T) {
			hits := 0
			for seed := range uint64(60) {
				m := newModel(seed, b)
				found := m.run(steps)
				if !m.hit {
					continue
				}
				hits++
				if !slices.ContainsFunc(found, func(v Violation) bool { return slices.Contains(rules, v.Rule) }) {
					t.Errorf("seed %d: not caught by %v: %v", seed, rules, found)
				}
			}
			if hits < 10 {
				t.Errorf("the bug struck in %d histories only", hits)
			}
		})
	}
}
