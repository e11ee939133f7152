// Membership: what each captured table was when it was last seen to be right, and
// what became of it since. It is noted beside the position (decision 46), so that
// what happens while nobody looks is found too: the catalogue is compared with it at
// each start, every minute, and when the stream tells of a table that is not known.
// What is missing of a table is said until somebody does something about it; the
// others go on.

package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
)

// ErrTable is what is said of tables whose topics do not hold what they should.
var (
	ErrTable = problem.Define("TW-PG-TABLE", problem.Reject,
		"The topic of a table does not hold all that the table does, or holds what it does not any more.",
		"The message says since when, and what to do; the other tables go on.")
	ErrTablesForm = problem.Define("TW-PG-TABLES-FORM", problem.Halt,
		"What was noted of a source's tables cannot be read.",
		"A newer version wrote it: run that version, or start the source over (docs/recovery.md).")
)

// memberEvery is how often the catalogue is compared.
const memberEvery = time.Minute

// memberForm is the newest form of a note that is read, and the one that is written.
const memberForm = 1

// member is what is noted of a table, under its OID.
type member struct {
	Form    int               `json:"v"`
	Schema  string            `json:"schema"`
	Name    string            `json:"name"`
	Entry   uint32            `json:"entry,omitempty"` // OID of what lists it in the publication; 0: FOR ALL TABLES, or its schema, or nothing does
	Out     bool              `json:"unpublished,omitempty"`
	Columns []string          `json:"columns,omitempty"` // that are published
	Filter  string            `json:"filter,omitempty"`
	Parts   map[uint32]string `json:"partitions,omitempty"` // that hold rows: OID → name
	Files   map[uint32]uint32 `json:"files,omitempty"`      // of them: OID → relfilenode
	Missing []missing         `json:"missing,omitempty"`
	Load    *tableLoad        `json:"load,omitempty"` // its rows are read

	// New: it has not been published yet, and is listed as soon as it may be.
	New bool `json:"new,omitempty"`

	// Topic is the one that its changes went to, where that is not called plainly.
	Topic string `json:"topic,omitempty"`

	// Hidden is what becomes of columns that are published and not captured as they
	// are: out, mask or hash.
	Hidden map[string]string `json:"hidden,omitempty"`

	// Where is the condition that was configured when the publication got its own.
	Where string `json:"where,omitempty"`
}

// missing is something that its topic does not hold, or holds though it is not there.
type missing struct {
	Why   string    `json:"why"`
	What  string    `json:"what,omitempty"`  // the column, the partition, the former or the new name
	After lsn       `json:"after,omitempty"` // it was right then
	Until lsn       `json:"until,omitempty"` // right again from then on; 0: it is not
	At    time.Time `json:"at"`              // when it was seen
	By    uint32    `json:"by,omitempty"`    // the transaction that did it last, where it is known

	// Reloaded: the table was read anew since. What is not there any more stays.
	Reloaded bool `json:"reloaded,omitempty"`
}

// Why something is missing.
const (
	whyNew       = "new"          // rows of before it was captured
	whyOut       = "unpublished"  // changes, while the publication did not have it
	whyKey       = "key"          // changes, while it had no key
	whyTopic     = "topic"        // changes, while it could have no topic
	whyMoved     = "moved"        // rows of before its topic had another name
	whySecret    = "secret"       // changes, since it looks like secrets
	whyHidden    = "hidden"       // has values as a column was captured before
	whyWhere     = "where"        // the publication has another condition than is configured
	whyAgain     = "listed again" // changes, if it was listed by another statement than took it out
	whyAltered   = "publication"  // changes, if the publication left some out
	whyDropped   = "dropped"
	whyLeft      = "left" // changes, while it was not selected
	whyRenamed   = "renamed"
	whyColumn    = "column"    // its value in rows of before
	whyFilter    = "filter"    // rows that another filter left out
	whyAttached  = "attached"  // rows of a partition that came with some
	whyPartition = "detached"  // its rows stay in the topic
	whyReplaced  = "replaced"  // has rows of another table, which had its name
	whyRewritten = "rewritten" // may have rows of a partition that was emptied by itself
)

func (m *member) String() string { return m.Schema + "." + m.Name }

// publicationNote is what is noted of the publication, under that key.
const publicationNote = "publication"

type publicationMember struct {
	Form int     `json:"v"`
	Row  decimal `json:"row"`  // the transaction that wrote its row: another one altered it
	Last uint32  `json:"last"` // the highest OID of a table: one that is higher was made since
	At   lsn     `json:"at"`   // all was compared then
}

// catalogued is what the catalogue says of a table.
type catalogued struct {
	schema, name string
	entry        uint32
	item         string // as the publication is to list it
	keyless      bool
	noTopic      string            // why it can have none; "": it can
	topic        string            // as member.Topic has it
	published    bool              // and captured
	columns      []string          // that are published and captured
	hidden       map[string]string // as member.Hidden has them
	where        string            // as it is configured
	filled       []string          // of them those with a default
	filter       string            // "": none
	parts        map[uint32]string // that hold rows: OID → name
	born         map[uint32]bool   // of them those that were made as partitions
	files        map[uint32]uint32 // of them: OID → relfilenode
	writers      map[uint32]uint32 // of them: OID → the transaction that last wrote its row in pg_class
}

// catalogue is what the server says of the tables that are selected, at some time
// from before to after.
type catalogue struct {
	source        string
	before, after lsn
	tables        map[uint32]*catalogued
	secrets       map[uint32]string // why those that are selected, and look like secrets, are not captured
	others        map[uint32]string // names of those that were captured and are not selected any more
	publication   publicationMember
	cut           bool            // the items are without what is to be left out
	unsure        map[uint32]bool // tables that were altered while it was read: what is said of them is to be read again
	altered       bool            // the publication was
}

const memberSQL = `
SELECT c.oid, COALESCE((SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1 AND r.prrelid = c.oid), 0),
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (a.atthasdef OR a.atthasmissing OR a.attidentity <> ''))
  FROM pg_class c WHERE c.oid = ANY($2)`

// A partition that was made as one was entered as such by the transaction that made
// it: that of its system columns, whose rows nothing changes.
const partitionsSQL = `
SELECT t.id, l.relid::oid, l.relid::text, COALESCE(pg_relation_filenode(l.relid), 0), COALESCE((SELECT c.xmin::text::bigint FROM pg_class c WHERE c.oid = l.relid), 0),
       (SELECT i.xmin::text FROM pg_inherits i WHERE i.inhrelid = l.relid) = (SELECT a.xmin::text FROM pg_attribute a WHERE a.attrelid = l.relid AND a.attnum = -1)
  FROM unnest($1::oid[]) t(id), pg_partition_tree(t.id) l WHERE l.isleaf`

// catalogueReads is how often the catalogue is read at most for what keeps changing.
const catalogueReads = 4

// readCatalogue reads it; ms is what is known, or nil. It takes several statements, and
// the server answers some of them as of now whatever the snapshot: what is said of a
// table is believed when two reads that follow each other agree, or this one and the
// last of before. Of a table that is altered all the time it is unsure.
func (c *Config) readCatalogue(ctx context.Context, q *pgx.Conn, ms *members) (*catalogue, error) {
	last, known := ms.before()
	for n := 1; ; n++ {
		now, err := c.readCatalogueOnce(ctx, q, known)
		if err != nil {
			return nil, err
		}
		if last != nil {
			now.since(last)
			if !now.altered && len(now.unsure) == 0 || n >= catalogueReads {
				return now, nil
			}
		}
		last = now
	}
}

// since takes what was read before it. What is sure in it was so when that was read,
// or it is what was compared with last, which is noted.
func (c *catalogue) since(o *catalogue) {
	c.unsure, c.altered = map[uint32]bool{}, c.publication.Row != o.publication.Row
	for _, x := range []*catalogue{c, o} {
		for id, t := range x.tables {
			if !reflect.DeepEqual(c.tables[id], t) || !reflect.DeepEqual(o.tables[id], t) {
				c.unsure[id] = true
			}
		}
		for id, name := range x.others {
			if c.others[id] != name || o.others[id] != name {
				c.unsure[id] = true
			}
		}
	}
}

// readCatalogueOnce reads it, with the names of tables that are known and not
// selected any more.
func (c *Config) readCatalogueOnce(ctx context.Context, q *pgx.Conn, known []uint32) (*catalogue, error) {
	now := &catalogue{source: c.source, tables: map[uint32]*catalogued{}, secrets: map[uint32]string{}, others: map[uint32]string{}}
	var err error
	if now.before, err = readHead(ctx, q); err != nil {
		return nil, err
	}
	// Before the tables: one that is made meanwhile has a higher OID, and is seen, now
	// or the next time.
	var row int64
	err = q.QueryRow(ctx, "SELECT (SELECT max(oid) FROM pg_class), COALESCE((SELECT xmin::text::bigint FROM pg_publication WHERE pubname = $1), 0)", c.Publication).Scan(&now.publication.Last, &row)
	if err != nil {
		return nil, classify("looking at the publication", err)
	}
	tables, left, err := c.selectTables(ctx, q)
	if err != nil {
		return nil, err
	}
	pub, err := readPublication(ctx, q, c.Publication)
	if err != nil {
		return nil, err
	}
	if pub == nil {
		return nil, c.notThere("does not exist")
	}
	cuts, err := c.cuts(ctx, q, tables)
	if err != nil { // said at a start; doctor says it too
		cuts = nil
	}
	now.cut = err == nil
	var ids, roots []uint32
	for _, t := range slices.Concat(tables, left) {
		if t.secret != "" {
			now.secrets[t.id] = t.secret
			continue
		}
		x := &catalogued{schema: t.schema, name: t.name, keyless: !t.captured(), item: c.item(t, cuts[t.id]), where: c.Where[t.String()]}
		if topic := c.topicOf(t.schema, t.name); topic != c.source+"."+t.String() {
			x.topic = topic
		}
		if t.noTopic != nil {
			x.noTopic = t.noTopic.Text
		}
		if p := pub[t.String()]; p != nil && !x.keyless {
			x.published = true
			x.columns, x.hidden = c.seen(t, p)
			if p.filter != nil {
				x.filter = *p.filter
			}
		}
		now.tables[t.id] = x
		if ids = append(ids, t.id); t.partitioned {
			roots = append(roots, t.id)
		}
	}
	var id, entry, part uint32
	var filled []string
	rows, err := q.Query(ctx, memberSQL, c.Publication, ids)
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&id, &entry, &filled}, func() error {
			x := now.tables[id]
			x.entry, x.filled = entry, slices.DeleteFunc(slices.Clone(filled), func(c string) bool { return !slices.Contains(x.columns, c) })
			return nil
		})
	}
	if err != nil {
		return nil, classify("comparing the tables", err)
	}
	var name string
	var born *bool
	var file uint32
	var writer int64
	if rows, err = q.Query(ctx, partitionsSQL, roots); err == nil {
		_, err = pgx.ForEachRow(rows, []any{&id, &part, &name, &file, &writer, &born}, func() error {
			x := now.tables[id]
			if x.parts == nil {
				x.parts, x.born, x.files, x.writers = map[uint32]string{}, map[uint32]bool{}, map[uint32]uint32{}, map[uint32]uint32{}
			}
			x.parts[part], x.files[part], x.writers[part] = name, file, uint32(writer)
			if born != nil && *born {
				x.born[part] = true
			}
			return nil
		})
	}
	if err != nil {
		return nil, classify("comparing the partitions", err)
	}
	if len(known) > 0 {
		if rows, err = q.Query(ctx, "SELECT c.oid, n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY($1)", known); err == nil {
			_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
				if now.tables[id] == nil && now.secrets[id] == "" {
					now.others[id] = name
				}
				return nil
			})
		}
		if err != nil {
			return nil, classify("looking for tables that have left", err)
		}
	}
	if now.after, err = readHead(ctx, q); err != nil {
		return nil, err
	}
	now.publication.Form, now.publication.Row, now.publication.At = memberForm, decimal(row), now.before
	return now, nil
}

// members is what a session knows of its tables.
type members struct {
	mu  sync.Mutex // held for as long as something of it is looked at or changed
	of  map[uint32]*member
	pub publicationMember // as it was last
	all []missing         // of all tables
	at  time.Time         // when it was compared

	policy func(why string) string // Config.policy; nil: it is only said
	stale  bool                    // see server.cachesPublished

	last  *catalogue        // as it was then
	said  []obs.Notice      // of what was missing then
	items map[uint32]string // of those that are there, as the publication is to list them; nil: not known
}

// fresh takes the catalogue as it is: nothing is known of before.
func (c *catalogue) fresh() *members {
	ms := &members{of: map[uint32]*member{}, pub: c.publication, items: c.items(), last: c}
	for id, t := range c.tables {
		if c.unsure[id] {
			continue
		}
		ms.of[id] = t.member()
		if !t.published {
			ms.of[id].New = true
			ms.of[id].Missing = []missing{{Why: t.out(), What: t.noTopic, At: time.Now().UTC().Truncate(time.Second)}}
		}
	}
	return ms
}

func (c *catalogue) items() map[uint32]string {
	if !c.cut {
		return nil
	}
	items := map[uint32]string{}
	for id, t := range c.tables {
		items[id] = t.item
	}
	return items
}

func (t *catalogued) member() *member {
	return &member{Form: memberForm, Schema: t.schema, Name: t.name, Entry: t.entry, Out: !t.published, Topic: t.topic, Columns: t.columns, Hidden: t.hidden, Filter: t.filter, Where: t.where, Parts: t.parts, Files: t.files}
}

// before gives what was read last, and the OIDs of all that are known.
func (ms *members) before() (last *catalogue, known []uint32) {
	if ms == nil {
		return nil, nil
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.last, slices.Collect(maps.Keys(ms.of))
}

// compare takes what became of the tables, and gives the OIDs of those of which
// something else is to be noted; those that are not in ms any more are forgotten.
// What is unsure is left to the next time. selects is Config.selects.
func (ms *members) compare(now *catalogue, selects func(schema, table string) (selected, named bool)) (changed []uint32) {
	at := time.Now().UTC().Truncate(time.Second)
	lacks := func(m *member, why, what string, until lsn) {
		ms.lacks(m, missing{Why: why, What: what, After: ms.pub.At, Until: until, At: at})
	}
	holders := ms.holders()
	replaces := func(m *member, id uint32) {
		if holder, is := holders[m.String()]; is && holder != id && !m.Out {
			lacks(m, whyReplaced, "", now.after)
		}
	}
	for id, m := range ms.of {
		t, was := now.tables[id], *m
		wanted, _ := selects(m.Schema, m.Name)
		switch {
		case now.unsure[id]:
			continue
		case !wanted: // `tables` has changed: nobody asks for it
			delete(ms.of, id)
			changed = append(changed, id)
			continue
		case now.secrets[id] != "" && (m.New || m.Out && !m.has(whySecret)): // it was not captured
			delete(ms.of, id)
			changed = append(changed, id)
			continue
		case now.secrets[id] != "":
			if m.Out = true; !m.has(whySecret) {
				lacks(m, whySecret, now.secrets[id], 0)
			}
		case t == nil && now.others[id] == "":
			if !m.has(whyDropped) {
				lacks(m, whyDropped, "", 0)
			}
		case t == nil:
			if m.Out = true; !m.has(whyLeft) {
				lacks(m, whyLeft, now.others[id], 0)
			}
		default:
			next := t.member()
			next.New = m.New && !t.published
			if next.Missing, next.Load = slices.Clone(m.Missing), m.Load; t.String() != m.String() {
				lacks(next, whyRenamed, m.String(), now.after)
			}
			ms.changed(next, m, t, now, at, lacks)
			if m.New || m.Out || t.String() != m.String() {
				replaces(next, id)
			}
			switch former := cmp.Or(m.Topic, now.source+"."+m.String()); {
			case !t.published:
				next.Topic = m.Topic
			case m.Topic != t.topic && !m.New && t.String() == m.String():
				ms.lacks(next, missing{Why: whyMoved, What: former, After: ms.pub.At, Until: now.after, At: at})
			}
			*m = *next
		}
		if !was.equal(m) {
			changed = append(changed, id)
		}
	}
	for id, t := range now.tables {
		if ms.of[id] != nil || now.unsure[id] {
			continue
		}
		m := t.member()
		switch {
		case !t.published:
			m.New = true
			lacks(m, t.out(), t.noTopic, 0)
		case t.entry != 0 || id <= ms.pub.Last:
			ms.lacks(m, missing{Why: whyNew, Until: now.after, At: at})
		}
		replaces(m, id)
		ms.of[id], changed = m, append(changed, id)
	}
	if ms.pub.Row != now.publication.Row && !now.altered {
		ms.all = append(ms.all, missing{Why: whyAltered, After: ms.pub.At, Until: now.after, At: at})
		ms.pub.Row = now.publication.Row
	}
	if len(now.unsure) == 0 && !now.altered {
		ms.pub = now.publication
	}
	ms.items, ms.last = now.items(), now
	slices.Sort(changed)
	return changed
}

// changed says in next what of a table that is still there is missing.
func (ms *members) changed(next, m *member, t *catalogued, now *catalogue, at time.Time, lacks func(m *member, why, what string, until lsn)) {
	switch {
	case m.New && t.published:
		next.Missing = slices.DeleteFunc(next.Missing, func(x missing) bool { return x.out() })
		ms.lacks(next, missing{Why: whyNew, Until: now.after, At: at})
	case m.New:
		if !next.has(t.out()) { // it has got a key, or lost it
			next.Missing = slices.DeleteFunc(next.Missing, func(x missing) bool { return x.out() })
			lacks(next, t.out(), t.noTopic, 0)
		}
	case m.Out && t.published:
		for i := range next.Missing {
			if x := &next.Missing[i]; (x.out() || x.Why == whyLeft) && x.Until == 0 {
				x.Until = now.after
				ms.heal(next, *x)
			}
		}
	case !m.Out && !t.published:
		lacks(next, t.out(), t.noTopic, 0)
	case t.published && m.Entry != t.entry:
		lacks(next, whyAgain, "", now.after)
	}
	if !t.published {
		next.Columns, next.Hidden, next.Filter, next.Where = m.Columns, m.Hidden, m.Filter, m.Where
	} else if !m.Out {
		if m.Filter != t.filter {
			lacks(next, whyFilter, "", now.after)
		}
		for _, c := range slices.Sorted(slices.Values(slices.Concat(m.Columns, slices.Collect(maps.Keys(m.Hidden))))) {
			if is, known := how(t.columns, t.hidden, c); known {
				if was, _ := how(m.Columns, m.Hidden, c); is != was {
					lacks(next, whyHidden, c, now.after)
				}
			}
		}
		t.condition(next, m, lacks)
		for _, c := range t.filled {
			if !slices.Contains(m.Columns, c) {
				lacks(next, whyColumn, c, now.after)
			}
		}
	}
	for id, name := range t.parts {
		if _, is := m.Parts[id]; !is && !t.born[id] {
			lacks(next, whyAttached, name, now.after)
		}
		if was := m.Files[id]; was != 0 && was != t.files[id] {
			ms.lacks(next, missing{Why: whyRewritten, What: name, After: ms.pub.At, Until: now.after, At: at, By: t.writers[id]})
		}
	}
	for id, name := range m.Parts {
		if _, is := t.parts[id]; !is {
			lacks(next, whyPartition, name, now.after)
		}
	}
}

// how says what becomes of a column, by what is noted; known is whether it is published.
func how(columns []string, hidden map[string]string, column string) (as string, known bool) {
	as, known = hidden[column]
	return as, known || slices.Contains(columns, column)
}

// condition says that the configured condition is another, and the publication has
// what it had.
func (t *catalogued) condition(next, m *member, lacks func(m *member, why, what string, until lsn)) {
	next.Missing = slices.DeleteFunc(next.Missing, func(x missing) bool { return x.Why == whyWhere && x.What != t.where })
	if m.Filter != t.filter || m.Where == "" {
		return
	}
	if next.Where = m.Where; next.Where != t.where && !next.has(whyWhere) {
		lacks(next, whyWhere, t.where, 0)
	}
	if next.Where == t.where {
		next.Missing = slices.DeleteFunc(next.Missing, func(x missing) bool { return x.Why == whyWhere })
	}
}

func (t *catalogued) String() string { return t.schema + "." + t.name }

// out is why a table that is not published is not.
func (t *catalogued) out() string {
	switch {
	case t.noTopic != "":
		return whyTopic
	case t.keyless:
		return whyKey
	}
	return whyOut
}

// out reports whether x is that its changes do not come, or did not for a time.
func (x *missing) out() bool {
	return x.Why == whyOut || x.Why == whyKey || x.Why == whyTopic || x.Why == whySecret
}

// has reports whether that is so, as was seen before, and not over.
func (m *member) has(why string) bool {
	return slices.ContainsFunc(m.Missing, func(x missing) bool { return x.Why == why && x.Until == 0 })
}

func (m *member) equal(o *member) bool {
	return m.String() == o.String() && m.Entry == o.Entry && m.Out == o.Out && m.New == o.New && m.Topic == o.Topic && m.Filter == o.Filter && m.Where == o.Where && maps.Equal(m.Hidden, o.Hidden) &&
		slices.Equal(m.Columns, o.Columns) && maps.Equal(m.Parts, o.Parts) && maps.Equal(m.Files, o.Files) && slices.Equal(m.Missing, o.Missing)
}

// parseMembers reads notes; nil when there are none.
func parseMembers(notes map[string][]byte) (*members, error) {
	if notes == nil {
		return nil, nil
	}
	ms := &members{of: map[uint32]*member{}}
	for key, value := range notes {
		if key == publicationNote {
			var p struct {
				publicationMember
				All []missing `json:"missing"`
			}
			if err := json.Unmarshal(value, &p); err != nil || p.Form > memberForm {
				return nil, ErrTablesForm.New("what is noted of the publication is of form %d (%v)", p.Form, err)
			}
			ms.pub, ms.all = p.publicationMember, p.All
			continue
		}
		id, err := strconv.ParseUint(key, 10, 32)
		if err != nil {
			return nil, ErrTablesForm.New("a note has the key %q", key)
		}
		m := new(member)
		if err := json.Unmarshal(value, m); err != nil || m.Form > memberForm {
			return nil, ErrTablesForm.New("what is noted of the table with OID %d is of form %d (%v)", id, m.Form, err)
		}
		ms.of[uint32(id)] = m
	}
	return ms, nil
}

// note writes down what is known of the publication and of some tables.
func (se *session) note(ms *members, ids []uint32) {
	for _, id := range ids {
		var value []byte
		if m := ms.of[id]; m != nil {
			value = encodeNote(m)
		}
		se.out.Note(strconv.FormatUint(uint64(id), 10), value)
	}
	se.out.Note(publicationNote, encodeNote(struct {
		publicationMember
		All []missing `json:"missing,omitempty"`
	}{ms.pub, ms.all}))
}

func encodeNote(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: a note that is no JSON: " + err.Error())
	}
	return b
}

// beginMembers compares the catalogue with what was noted, before anything is sent.
func (se *session) beginMembers(ctx context.Context) error {
	ms, err := parseMembers(se.out.Notes())
	if err != nil {
		return err
	}
	if err := se.claim(ms); err != nil {
		return err
	}
	se.comparing.Lock()
	defer se.comparing.Unlock()
	// Not on the other connection, which may be in the load's transaction: looking at
	// partitions locks them until its end.
	q, err := se.cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(q)
	now, err := se.cfg.readCatalogue(ctx, q, ms)
	if err != nil {
		return err
	}
	var ids []uint32
	stale := se.srv.cachesPublished()
	if ms == nil {
		ms = now.fresh()
		ids = slices.Collect(maps.Keys(ms.of))
	} else {
		ms.policy, ms.stale = se.cfg.policy, stale
		ids = ms.compare(now, se.cfg.selects)
	}
	ms.policy, ms.stale = se.cfg.policy, stale
	if err := ms.halted(se.name, se.cfg.Publication); err != nil {
		return err
	}
	se.note(ms, ids)
	se.compared(ms)
	se.members.Store(ms)
	return se.list(ctx, q, ms)
}

// keepMembers compares the catalogue with what was noted, now and then, and as soon
// as the stream has told of a table that is not known.
func (se *session) keepMembers(ctx context.Context, q *pgx.Conn) error {
	ms := se.members.Load()
	if ms == nil {
		return nil
	}
	ms.mu.Lock()
	at := ms.at
	ms.mu.Unlock()
	if time.Since(at) < se.compareEvery && !se.unknown.Load() {
		return nil
	}
	return se.compareMembers(ctx, q, ms)
}

// compareMembers compares the catalogue with what is noted.
func (se *session) compareMembers(ctx context.Context, q *pgx.Conn, ms *members) error {
	se.comparing.Lock() // what is read first is compared first
	defer se.comparing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	se.unknown.Store(false)
	now, err := se.cfg.readCatalogue(ctx, q, ms)
	if problem.Has(err, ErrPublication) {
		se.lose(err)
		return nil
	}
	if err != nil {
		return err
	}
	if se.takesAgain(now) {
		return nil
	}
	ms.mu.Lock()
	was := ms.pub
	ids := ms.compare(now, se.cfg.selects)
	if len(ids) > 0 || was != ms.pub {
		se.note(ms, ids)
	}
	se.compared(ms)
	err = ms.halted(se.name, se.cfg.Publication)
	ms.mu.Unlock()
	if err != nil {
		se.lose(err)
		return nil
	}
	return se.list(ctx, q, ms)
}

// isKnown has the catalogue compared soon if a table is not known.
func (se *session) isKnown(id uint32) {
	if known := se.known.Load(); known != nil && !(*known)[id] {
		se.unknown.Store(true)
	}
}

// compared is done when the catalogue was compared.
func (se *session) compared(ms *members) {
	known := map[uint32]bool{}
	for id := range ms.of {
		known[id] = true
	}
	se.known.Store(&known)
	se.claimed(ms)
	ms.at = time.Now()
	se.say(ms)
}
