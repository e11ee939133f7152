// plan: the lookups of a rule, compiled.

package join

import (
	"slices"
	"strconv"
	"strings"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/expr"
	"github.com/tallywire/tallywire/internal/problem"
)

// What lookups can meet.
var (
	ErrColumns = problem.Define("TW-LOOKUP-COLUMN", problem.Halt,
		"A record lacks a field that a rule with lookups needs.",
		"Correct the rule, or have the topic written with the current contract and skip what is older (kafka-consumer-groups --reset-offsets), then start again.")
	ErrUnseen = problem.Define("TW-LOOKUP-UNSEEN", problem.Halt,
		"Lookups find rows by a column whose values are not known of rows that were read before: whom a row concerned that is deleted could not be told.",
		"Have the group that keeps them read its topics from the start: tallywire replay GROUP.right --yes.")
	ErrLookups = problem.Define("TW-LOOKUP-CONFIG", problem.Halt,
		"A lookup of a mapping's rule cannot be.",
		"Correct it where the message says; `tallywire check` says so without running, and docs/model.md has the words.")
	ErrRow = problem.Define("TW-LOOKUP-ROW", problem.Halt,
		"A record of a topic of rows is none, or of another version.",
		"Have the rows written anew: `tallywire replay` for the mapping.")
	ErrLookup = problem.Define("TW-LOOKUP-EXPR", problem.Reject,
		"A condition of a lookup has no value for this row.",
		"Correct the value at its source. Or correct the condition, run tallywire check, start it again, and retry what is parked: tallywire parked retry STAGE --all.")
	ErrRightBehind = problem.Define("TW-LOOKUP-BEHIND", problem.Retry,
		"The references are still being read; rows wait for that before they are looked at for the first time.",
		"Nothing to do; see `tallywire status` for how far the group <name>.right is.")
)

// plan is the lookups of a rule, compiled.
type plan struct {
	name    string
	left    *side
	sides   []*side // of what is looked up, each topic once
	refs    []*ref
	rounds  int // lookups that follow each other
	refresh *change.Table
	shape   string
	joined  joined
}

// side is a topic and the columns of it that are kept.
type side struct {
	topic   string
	table   *change.Table   // of the contract; nil: there is none
	raw     string          // the source's topic whose rows these are; "": they have a contract
	placed  bool            // where its source has the change is kept of each row
	days    []string        // columns of a source's row that have to be days
	may     map[string]bool // columns of a source's row that need not be there
	cols    []string        // in the order of a kept row
	indexed []*index
	groups  []*index // by which rows are found of which the date decides, or the highest key
	all     []int    // of cols

	shapes  shapes
	headers headers
}

func (s *side) col(name string) int {
	if i := slices.Index(s.cols, name); i >= 0 {
		return i
	}
	s.cols = append(s.cols, name)
	return len(s.cols) - 1
}

// finish is called when all is known of it.
func (s *side) finish() {
	s.all = make([]int, len(s.cols))
	for i := range s.all {
		s.all[i] = i
	}
}

// index has the rows be found by what they name; of is the group by which they
// are found themselves, nil: their key.
func (s *side) index(by naming, of *naming) *index {
	name := s.nameOf(by)
	if of != nil {
		name += "|" + s.nameOf(*of)
	}
	for _, x := range s.indexed {
		if x.name == name {
			return x
		}
	}
	x := &index{name: name, by: by, of: of, day: -1}
	s.indexed = append(s.indexed, x)
	return x
}

// dated has the rows be found by what they name, on days: at is the column of theirs.
func (s *side) dated(by naming, at int) *index {
	name := s.nameOf(by) + "@" + s.cols[at]
	for _, x := range s.indexed {
		if x.name == name {
			return x
		}
	}
	x := &index{name: name, by: by, day: at}
	s.indexed = append(s.indexed, x)
	return x
}

// nameOf names an index: by its column, or by its columns and the text between.
func (s *side) nameOf(by naming) string {
	switch {
	case by.program != nil:
		return strconv.Quote(by.text)
	case by.between == nil && len(by.cols) == 1:
		return s.cols[by.cols[0]]
	}
	name := strconv.Quote(strings.Join(by.between, "\x00"))
	for _, c := range by.cols {
		name += "," + s.cols[c]
	}
	return name
}

// ref is a lookup.
type ref struct {
	name    string
	path    string // where it is written
	at      int    // index in plan.refs
	side    int    // index in plan.sides
	root    int    // whose columns name its row: −1 left, or another lookup
	on      naming
	by      *index // of root: who depends on it
	round   int    // when its row is looked up: 1, 2, …; with inForce the group one round before
	inForce *inForce
	what    string // its first column of by without _id: "resource"

	over             *index // climbs: of its side, by the row above
	until, where     *expr.Program
	agree            *expr.Program
	agreeRefs        []*ref // whose rows it has to agree with
	optional, absent bool
}

func (r *ref) climbs() bool { return r.over != nil }

type inForce struct {
	from, to, at int // −1: there is none; without at, no date decides
	group        naming
	members      *index // of the rows, by group
	inclusive    bool   // to is the last day, not the one after it
	others       []int  // what may not differ of a row where its end alone does, for those who find it
}

func near(e *problem.Error, wrong string, names []string) {
	if n := config.Nearest(wrong, names); n != "" {
		e.WithRemedy("Did you mean %s?", n)
	}
}

func columnNames(t *change.Table) []string {
	out := make([]string, len(t.Columns))
	for i := range t.Columns {
		out[i] = t.Columns[i].Name
	}
	return out
}

// follow has each lookup come after what names its row.
func (p *plan) follow() {
	for _, r := range p.refs {
		if r.root >= 0 {
			after := 1
			if r.inForce != nil {
				after = 2
			}
			r.round = max(r.round, p.refs[r.root].round+after)
		}
		p.rounds = max(p.rounds, r.round)
	}
}

func (p *plan) ref(name string) *ref {
	for _, r := range p.refs {
		if r.name == name {
			return r
		}
	}
	return nil
}

// between: another lookup is found by a field of this side's rows.
func (p *plan) between(side int) bool {
	for _, r := range p.refs {
		if r.root >= 0 && p.refs[r.root].side == side || r.side == side && r.climbs() {
			return true
		}
	}
	return false
}
