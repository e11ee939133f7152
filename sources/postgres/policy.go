// Policies: what is done by itself where the topic of a table does not hold what the
// table does. Some of it is mended by reading the table anew, beside the stream, and
// where rows went by ending those that are not there any more (decision 53).

package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/internal/problem"
)

// What is done in a situation (Config.Policy).
const (
	Heal = "heal" // the table is read anew; what of it is gone ends
	Ask  = "ask"  // it is said, and somebody decides
	Halt = "halt" // the source halts until somebody has decided
)

// ErrPolicy halts a source because of what became of a table.
var ErrPolicy = problem.Define("TW-PG-POLICY", problem.Halt,
	"Something became of a table for which `policy` has the source halt.",
	"Look at what the message names. Then set that situation to heal, which reads the table anew, or to ask, which goes on as it is, and start again.")

// situation is one that Config.Policy names.
type situation struct {
	name  string
	heals bool // when nothing is configured
	sweep bool // rows may be gone
	never bool // it cannot be healed
}

// situations are they, by why something is missing.
var situations = map[string]situation{
	whyReplaced:  {name: "recreated", heals: true, sweep: true},
	whyRenamed:   {name: "renamed", heals: true},
	whyAttached:  {name: "attached", heals: true},
	whyRewritten: {name: "truncated", heals: true, sweep: true},
	whyPartition: {name: "detached", sweep: true},
	whyDropped:   {name: "dropped", never: true},
	whyOut:       {name: "missed", sweep: true},
	whyKey:       {name: "missed", sweep: true},
	whyTopic:     {name: "missed", sweep: true},
	whyAgain:     {name: "missed", sweep: true},
	whyLeft:      {name: "missed", sweep: true},
	whyFilter:    {name: "filter", sweep: true},
	whyColumn:    {name: "column"},
}

// checkPolicy looks at what is configured.
func (c *Config) checkPolicy() error {
	known := map[string]situation{}
	for _, s := range situations {
		known[s.name] = s
	}
	for _, name := range slices.Sorted(maps.Keys(c.Policy)) {
		s, is := known[name]
		switch do := c.Policy[name]; {
		case !is:
			return errConfig.New("policy: %q is none of %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case do != Heal && do != Ask && do != Halt:
			return errConfig.New("policy.%s: %q is none of %s, %s, %s", name, do, Heal, Ask, Halt)
		case do == Heal && s.never:
			return errConfig.New("policy.%s: a table that is not there cannot be read: want %s or %s", name, Ask, Halt)
		}
	}
	return nil
}

// policy is what is done by itself where something is missing.
func (c *Config) policy(why string) string {
	s, is := situations[why]
	switch do := c.Policy[s.name]; {
	case is && do != "":
		return do
	case c.Load == LoadInitial && (s.heals || why == whyNew || why == whyMoved):
		return Heal
	}
	return Ask
}

// lacks says that something is missing of a table, and has done what is to be done.
func (ms *members) lacks(m *member, x missing) {
	m.Missing = append(m.Missing, x)
	ms.heal(m, x)
}

// heal has a table read, all of it, where that mends x: what of it was read by then may
// not have been all. What is not over yet is healed when it is.
func (ms *members) heal(m *member, x missing) {
	if ms.policy == nil || x.Until == 0 || m.Out || ms.policy(x.Why) != Heal {
		return
	}
	was, l := m.Load, &tableLoad{From: x.Until, Sweep: situations[x.Why].sweep, Stale: ms.stale && x.Why == whyNew, Since: x.At}
	if was != nil {
		l.Sweep, l.Stale = l.Sweep || was.Sweep, l.Stale || was.Stale
	}
	m.Load = l
}

// halted is why the source is to halt; nil: it goes on.
func (ms *members) halted(source, publication string) error {
	if ms.policy == nil {
		return nil
	}
	var all []string
	for _, m := range ms.sorted() {
		for _, x := range m.Missing {
			if ms.policy(x.Why) == Halt && !x.Reloaded && !(x.Why == whyDropped && ms.another(m)) {
				text, _ := x.says([]string{m.String()}, []string{""}, source, publication)
				all = append(all, fmt.Sprintf("%s (policy.%s)", text, situations[x.Why].name))
			}
		}
	}
	if all == nil {
		return nil
	}
	return ErrPolicy.New("%s", strings.Join(all, "; "))
}

// holders are the tables whose rows the topics of their names have, by name.
func (ms *members) holders() map[string]uint32 {
	of := map[string]uint32{}
	for id, m := range ms.of {
		for _, x := range m.Missing {
			if x.Why == whyRenamed {
				of[x.What] = id
			}
		}
	}
	for id, m := range ms.of {
		if !m.New {
			of[m.String()] = id
		}
	}
	return of
}

// another reports whether another table has m's name.
func (ms *members) another(m *member) bool {
	for _, o := range ms.of {
		if o != m && o.String() == m.String() && !o.has(whyDropped) {
			return true
		}
	}
	return false
}

// replaced reports whether it is known that another table has m's name, which is said
// of that, or mended.
func (ms *members) replaced(m *member) bool {
	for _, o := range ms.of {
		if o != m && o.String() == m.String() && (o.Load != nil && o.Load.Sweep || slices.ContainsFunc(o.Missing, func(x missing) bool { return x.Why == whyReplaced })) {
			return true
		}
	}
	return false
}

// explained reports whether all that a load is for is that partitions have other files,
// and by transactions that emptied the whole table, which the stream told of.
func (m *member) explained(truncated map[uint32]bool) bool {
	is := false
	for _, x := range m.Missing {
		if !m.Load.mends(x) {
			continue
		}
		if x.Why != whyRewritten || !truncated[x.By] {
			return false
		}
		is = true
	}
	return is
}

// truncatesKept is how many of a table are remembered: as many as there may be between
// two comparisons, and then some.
const truncatesKept = 64

// truncates remembers that a transaction emptied a table whole.
func (se *session) truncates(id, xid uint32) {
	se.truncMu.Lock()
	defer se.truncMu.Unlock()
	if se.truncated == nil {
		se.truncated = map[uint32][]uint32{}
	}
	of := se.truncated[id]
	if len(of) >= truncatesKept {
		of = slices.Delete(of, 0, 1)
	}
	se.truncated[id] = append(of, xid)
}

// truncatedBy gives the last transactions that emptied a table whole.
func (se *session) truncatedBy(id uint32) map[uint32]bool {
	se.truncMu.Lock()
	defer se.truncMu.Unlock()
	by := map[uint32]bool{}
	for _, xid := range se.truncated[id] {
		by[xid] = true
	}
	return by
}
