// Topics: how the topic of a table is called, and which tables can have none.

package postgres

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrTopic is of a table that cannot have its topic.
var ErrTopic = problem.Define("TW-PG-TOPIC", problem.Halt,
	"Kafka does not take the name of a table's topic, or not beside another's.",
	"Give the table a topic by name, `topics: {schema.table: source.name}`; or leave it out in `tables` (\"!schema.table\"). Then start again.")

// topicOf is the topic of a table.
func (c *Config) topicOf(schema, name string) string {
	return cmp.Or(c.Topics[schema+"."+name], change.TopicName(c.source, schema, name))
}

// checkTopics looks at the topics that tables are given by name.
func (c *Config) checkTopics() error {
	folded := map[string]string{}
	for _, table := range slices.Sorted(maps.Keys(c.Topics)) {
		topic := c.Topics[table]
		_, _, ok := strings.Cut(table, ".")
		why := change.TopicLegal(topic)
		switch other := folded[change.TopicFold(topic)]; {
		case !ok || strings.Contains(table, "*"):
			return errConfig.New("topics: %q is not of the form schema.table", table)
		case why != "":
			return errConfig.New("topics: %s: %s", table, why)
		case !strings.HasPrefix(topic, c.source+".") || topic == c.source+".":
			return errConfig.New("topics: %s: topic %q does not begin with %q, as all of this source do", table, topic, c.source+".")
		case other != "":
			return errConfig.New("topics: %s and %s: Kafka does not have %q and %q beside each other", other, table, c.Topics[other], topic)
		}
		folded[change.TopicFold(topic)] = table
	}
	return nil
}

// NamedTopics gives the topics of the tables that the configuration names without
// *: those that are known without the database.
func (s *Source) NamedTopics() map[string]string {
	out := maps.Clone(s.cfg.Topics)
	if out == nil {
		out = map[string]string{}
	}
	for _, t := range s.cfg.Tables {
		// With two points, nobody knows which parts the schema and the table.
		if schema, name, _ := strings.Cut(t, "."); !strings.ContainsAny(t, "!*") && !strings.Contains(name, ".") {
			out[t] = s.cfg.topicOf(schema, name)
		}
	}
	maps.DeleteFunc(out, func(table, _ string) bool {
		schema, name, _ := strings.Cut(table, ".")
		selected, _ := s.cfg.selects(schema, name)
		return !selected
	})
	return out
}

// illegal says why the topic of a table cannot be; nil: it can.
func (c *Config) illegal(schema, name string) *problem.Error {
	if why := change.TopicLegal(c.topicOf(schema, name)); why != "" {
		return c.topicError(schema+"."+name, "its topic would be "+why)
	}
	return nil
}

func (c *Config) topicError(table, why string) *problem.Error {
	return ErrTopic.New("%s: %s", table, why).WithRemedy("Give it a topic by name, `topics: {%q: %s.…}`; or leave it out: \"!%s\" in `tables`. Then start again.", table, c.source, table)
}

// claims are the names of tables that are captured, by OID.
type claims map[uint32]string

// nameTopics says of tables that could be captured whether they cannot for want of
// a topic. Of two that Kafka does not take beside each other the one has it that is
// captured already, or else the older one.
func (c *Config) nameTopics(tables []*tableInfo) {
	var claimed claims
	if c.claims != nil && c.claims.Load() != nil {
		claimed = *c.claims.Load()
	}
	last := func(t *tableInfo) int {
		if claimed[t.id] == t.String() {
			return 0
		}
		return 1
	}
	folded, named := map[string]*tableInfo{}, map[string]*tableInfo{}
	for _, t := range slices.SortedFunc(slices.Values(tables), func(a, b *tableInfo) int {
		return cmp.Or(cmp.Compare(last(a), last(b)), cmp.Compare(a.id, b.id))
	}) {
		if !t.captured() {
			continue
		}
		if t.noTopic = c.illegal(t.schema, t.name); t.noTopic != nil {
			continue
		}
		topic := c.topicOf(t.schema, t.name)
		if o := named[t.String()]; o != nil {
			t.noTopic = ErrTopic.New("%s is %s as well as %s: one cannot be told from the other", t, o.sql(), t.sql()).WithRemedy("Rename one of both. Then start again.")
			continue
		}
		if o := folded[change.TopicFold(topic)]; o != nil {
			t.noTopic = c.topicError(t.String(), fmt.Sprintf("its topic %q cannot be beside %q of %s: names that differ in '.' and '_' alone are the same to Kafka", topic, c.topicOf(o.schema, o.name), o))
			continue
		}
		folded[change.TopicFold(topic)], named[t.String()] = t, t
	}
}

// claim takes what is noted of tables: it may be others that have a topic than those
// that were chosen without knowing.
func (se *session) claim(ms *members) error {
	if ms != nil {
		se.claimed(ms)
	}
	if len(se.topicLeft) == 0 {
		return nil
	}
	all := slices.Concat(se.tables, se.topicLeft)
	again := make([]*tableInfo, len(all))
	for i, t := range all {
		x := *t
		x.noTopic, again[i] = nil, &x
	}
	se.cfg.nameTopics(again)
	for i, t := range all {
		if t.captured() != again[i].captured() {
			return ErrReopen.New("%s had its topic before", t)
		}
	}
	for _, t := range se.topicLeft {
		if t.named {
			return t.noTopic
		}
	}
	return nil
}

// claimed notes which tables have their topics.
func (se *session) claimed(ms *members) {
	c := claims{}
	for id, m := range ms.of {
		if !m.Out {
			c[id] = m.String()
		}
	}
	se.cfg.claims.Store(&c)
}

// leftError says of tables that are not captured why: those without a key, and of
// each without a topic by itself. Of what looks like secrets, passed does.
func leftError(ts []*tableInfo) (errs []*problem.Error) {
	var noKey []*tableInfo
	for _, t := range ts {
		switch {
		case t.secret != "":
		case t.noTopic == nil:
			noKey = append(noKey, t)
		default:
			errs = append(errs, t.noTopic)
		}
	}
	if len(noKey) > 0 {
		errs = append(errs, noKeyError(noKey))
	}
	return errs
}

// namesSQL lists all tables that patterns could select.
const namesSQL = `
SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition
   AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_'`

// ErrSecret is of a table that is left out.
var ErrSecret = problem.Define("TW-PG-SECRET", problem.Reject,
	"A table looks as if it held secrets, and is not captured.",
	"To capture it, name it without * in `tables`; or leave it out by name (\"!schema.table\"). Then start again.")

// leaves says why a table that the stream tells of is not captured: it has no topic,
// or looks like secrets; nil: it is.
func (se *session) leaves(ctx context.Context, q *pgx.Conn, t *tableInfo) (*problem.Error, error) {
	id, schema, name := t.id, t.schema, t.name
	if e := se.cfg.illegal(schema, name); e != nil {
		return e, nil
	}
	for _, t := range se.tables { // they were held against all others
		if t.id == id && t.schema == schema && t.name == name {
			return nil, nil
		}
	}
	if err := se.cfg.judge(ctx, q, t); err != nil {
		return nil, err
	}
	if t.secret != "" {
		return ErrSecret.New("%s: %s", t, t.secret), nil
	}
	rows, err := q.Query(ctx, namesSQL)
	if err != nil {
		return nil, classify("looking at the names of tables", err)
	}
	fold, alike := change.TopicFold(se.cfg.topicOf(schema, name)), false
	var other uint32
	var s, n string
	if _, err := pgx.ForEachRow(rows, []any{&other, &s, &n}, func() error {
		if selected, _ := se.cfg.selects(s, n); selected && other != id {
			alike = alike || s+"."+n == schema+"."+name || change.TopicFold(se.cfg.topicOf(s, n)) == fold
		}
		return nil
	}); err != nil {
		return nil, classify("looking at the names of tables", err)
	}
	if !alike {
		return nil, nil
	}
	_, left, err := se.cfg.selectTables(ctx, q) // which of them can be captured counts
	if err != nil {
		return nil, err
	}
	for _, t := range left {
		if t.id == id {
			return t.noTopic, nil
		}
	}
	return nil, nil
}

// passedOver are the tables whose changes the stream does not take, for want of a
// topic.
type passedOver map[uint32]bool

// passOver notes that the stream does not take the changes of a table.
func (se *session) passOver(id uint32) {
	se.passedMu.Lock()
	defer se.passedMu.Unlock()
	if se.passed == nil {
		se.passed = passedOver{}
	}
	se.passed[id] = true
}

// takesAgain ends a session that passes over a table that has a topic now: its
// changes come by the next one.
func (se *session) takesAgain(now *catalogue) bool {
	se.passedMu.Lock()
	defer se.passedMu.Unlock()
	for id := range se.passed {
		if t := now.tables[id]; t != nil && t.published {
			se.lose(ErrReopen.New("%s has a topic now", t))
			return true
		}
	}
	return false
}
