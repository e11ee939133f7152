// Match: which table is which entity, by the names of table and columns, by
// types and by foreign keys.

package draft

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/expr"
)

// Draft is what was guessed of a database.
type Draft struct {
	*Database
	Rules   []*Rule
	Missing []Missing

	pack avro.Catalogue
}

// Rule is one rule of a mapping.
type Rule struct {
	Contract *avro.Contract
	Table    *Table
	Fields   []Field  // those that are written, the key first
	Where    string   // a condition that may be meant: rows that are not marked as deleted
	Some     string   // another: those of one kind, where people stand among groups
	Needs    string   // SQL without which deletes are parked; "": nothing
	Empty    []string // fields that may be null, and for which there is no column
	score    int
	name     int    // what of it is for the table's name
	short    string // why it does not do, after "the table"; "": it does
	why      []string
	mixed    string // the column of Some
}

// Blanks are the fields that are left to do.
func (r *Rule) Blanks() []string {
	var out []string
	for _, f := range r.Fields {
		if f.Blank() {
			out = append(out, f.Name)
		}
	}
	return out
}

// Missing is a contract that no table seems to hold.
type Missing struct {
	Topic string
	Like  *Table // one that does and cannot be captured as it is, or nil
	Near  *Table // without Like the one that comes nearest, or nil
	Why   string // and why it was not taken
}

// Make guesses.
func Make(db *Database) (*Draft, error) {
	pack, err := avro.Pack()
	if err != nil {
		return nil, fmt.Errorf("reading the contracts: %w", err)
	}
	d := &Draft{Database: db, pack: pack}
	for i := range known {
		e := &known[i]
		best := d.best(e, pack[e.topic], (*Table).Taken)
		like := d.best(e, pack[e.topic], func(t *Table) bool { return !t.Taken() && !d.missed(t) })
		switch {
		case best != nil:
			d.Rules = append(d.Rules, best)
		case like != nil:
			d.Missing = append(d.Missing, Missing{Topic: e.topic, Like: like.Table})
		default:
			d.Missing = append(d.Missing, Missing{Topic: e.topic})
		}
	}
	for i := range d.Missing { // when it is known which tables are something else
		m := &d.Missing[i]
		if near := d.near(m.Topic); near != nil && m.Like == nil {
			m.Near, m.Why = near.Table, near.short
		}
	}
	return d, nil
}

// missed reports whether a table was said to look like a contract already, or to
// come near one.
func (d *Draft) missed(t *Table) bool {
	return slices.ContainsFunc(d.Missing, func(m Missing) bool { return m.Like == t || m.Near == t })
}

// rule is the one of a topic, or nil.
func (d *Draft) rule(topic string) *Rule {
	for _, r := range d.Rules {
		if r.Contract.Topic == topic {
			return r
		}
	}
	return nil
}

// entityOf is the topic of the rule that takes a table, schema.name; "": none does.
func (d *Draft) entityOf(table string) string {
	for _, r := range d.Rules {
		if r.Table.Full() == table {
			return r.Contract.Topic
		}
	}
	return ""
}

// best is the rule of the table that fits best, or nil.
func (d *Draft) best(e *entity, c *avro.Contract, may func(*Table) bool) *Rule {
	var best *Rule
	for _, t := range d.Tables {
		if !may(t) || slices.ContainsFunc(d.Rules, func(r *Rule) bool { return r.Table == t }) {
			continue
		}
		if r := d.weigh(e, c, t); r.short == "" && (best == nil || r.score > best.score) {
			best = r
		}
	}
	return best
}

// near is the rule of the table that comes nearest of those that do not do; nil:
// there is none that is called like the entity or has some of its fields.
func (d *Draft) near(topic string) *Rule {
	var near *Rule
	for i := range known {
		if known[i].topic != topic {
			continue
		}
		for _, t := range d.Tables {
			if d.entityOf(t.Full()) != "" || d.missed(t) {
				continue
			}
			r := d.weigh(&known[i], d.pack[topic], t)
			if r.short != "" && (r.name > 0 || r.score >= leastAtEnd) && (near == nil || r.score > near.score) {
				near = r
			}
		}
	}
	return near
}

// Unused are the tables that are captured and of which no rule is made.
func (d *Draft) Unused() []string {
	var out []string
	for _, t := range d.Tables {
		if t.Taken() && d.entityOf(t.Full()) == "" {
			out = append(out, t.Full())
		}
	}
	return out
}

// What a match is worth. A table that is called like the entity is it, unless
// another is more; one whose name only ends so must have some of the fields, and
// one that is called otherwise all that make the entity what it is.
const (
	exactName, endOfName  = 40, 24
	laterName             = 2 // less for each name that is likelier
	needed, optional      = 6, 2
	common                = 1 // fields that many tables have
	leads                 = 6 // a foreign key leads to the right table
	followed              = 8 // a foreign key of what refers to the entity leads here
	leastAtEnd, leastSure = 10, 24
)

// weigh drafts the rule of a table and says how well it fits.
func (d *Draft) weigh(e *entity, c *avro.Contract, t *Table) *Rule {
	r := &Rule{Contract: c, Table: t}
	name, exact := nameScore(e, t)
	sure := len(e.sure) > 0
	var columns, unsure []string
	score := 0
	for i, f := range d.fields(e, c, t) {
		if f.Text != "" || f.Null || f.blank {
			r.Fields = append(r.Fields, f)
		} else if c.Table.Columns[i].Nullable && !c.Fields[i].HasOwn() {
			r.Empty = append(r.Empty, f.Name)
		}
		col := c.Table.Column(f.Name)
		found := f.column != "" && !f.Blank()
		switch {
		case f.key, !found:
		case slices.Contains([]string{"updated_at", "created_at", "name", "number"}, f.Name):
			score += common
		case c.Optional(col):
			score += optional
		default:
			score += needed
		}
		if found && !f.key && !slices.Contains(columns, f.column) {
			columns = append(columns, f.column)
		}
		if f.leads != "" {
			score += leads
			r.why = append(r.why, f.column+" leads to "+f.leads)
		}
		if slices.Contains(e.sure, f.Name) && !found {
			sure, unsure = false, append(unsure, f.Name)
		}
	}
	from := d.followers(c.Topic, t)
	if len(from) > 0 {
		score += followed * min(len(from), 3)
		r.why = append(r.why, "foreign keys of "+list(from))
	}
	switch {
	case exact && score > 0, name > 0 && score >= leastAtEnd:
		r.why = append([]string{fmt.Sprintf("its name and the columns %s", list(columns))}, r.why...)
	case sure && score >= leastSure:
		r.why = append([]string{"the columns " + list(columns)}, r.why...)
	default:
		r.short = short(name, exact, columns, unsure)
	}
	r.name, r.score = name, name+score
	m := maker{Draft: d, e: e, c: c, t: t}
	r.Where = m.where()
	if col := m.mixed(); col != nil {
		r.Some, r.mixed = expr.Column(col.Name)+` == "…"`, col.Name+m.many(col)
	}
	if e.under != "" && !t.OldFull {
		for _, f := range r.Fields {
			if f.Name == e.under && f.column != "" && !slices.ContainsFunc(t.Key, func(k int) bool { return t.Columns[k].Name == f.column }) {
				r.Needs = fmt.Sprintf("ALTER TABLE %s REPLICA IDENTITY FULL", t.SQLName())
				if t.Partial || len(t.Secrets) > 0 { // the server would refuse updates
					r.Needs = fmt.Sprintf("make a unique index of its key with %s, and ALTER TABLE %s REPLICA IDENTITY USING INDEX …", f.column, t.SQLName())
				}
			}
		}
	}
	return r
}

// short says why a table does not do.
func short(name int, exact bool, columns, unsure []string) string {
	has := "it has none of the columns"
	if len(columns) > 0 {
		has = "of the columns it has only " + list(columns)
	}
	switch {
	case exact:
		return "it is called so, but " + has
	case name > 0:
		return "its name only ends so, and " + has
	case len(unsure) > 0:
		return "it is called otherwise, and has no column for " + list(unsure)
	}
	return "it is called otherwise, and " + has
}

// followers are the tables that are called like an entity that refers to topic,
// and that have a foreign key to t.
func (d *Draft) followers(topic string, t *Table) []string {
	var out []string
	for _, other := range d.Tables {
		for i := range known {
			e := &known[i]
			if score, _ := nameScore(e, other); other == t || score == 0 || !slices.ContainsFunc(d.pack[e.topic].Fields, func(f avro.Field) bool { return f.References == topic }) {
				continue
			}
			for _, to := range other.References {
				if to == t.Full() && !slices.Contains(out, other.Full()) {
					out = append(out, other.Full())
				}
			}
		}
	}
	return out
}

// nameScore says how well a table's name fits, 0: not at all.
func nameScore(e *entity, t *Table) (score int, exact bool) {
	names := []string{singular(t.Name), singular(strings.Join(translated(words(t.Name)), "_"))}
	for i, s := range e.tables {
		for _, name := range names {
			if name == s {
				return exactName - laterName*i, true
			}
			if strings.HasSuffix(name, "_"+s) {
				score = max(score, endOfName-laterName*i, laterName)
			}
		}
	}
	return score, false
}

// list is a list for reading.
func list(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
