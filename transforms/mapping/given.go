// Given: what each row gave, where a canonical key is made of more than the key
// of its table. A source that does not send old rows tells of a row that moved or
// is gone only which row it is (F7).

package mapping

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/state"
)

// given remembers the canonical keys that each source row gave. Not safe for
// concurrent use.
type given struct {
	table   *state.Table
	outputs map[string]*change.Table
	claims  map[string]*entry // outputs that are given by claims
	// claimTable is that of the claims topic.
	claimTable *change.Table
	// read is how far without a gap each partition was read in this life.
	read map[place]*stretch
	// starts tells where a partition starts; nil: what is read is all there is.
	starts func(ctx context.Context, t *change.Topic, partition int32) (int64, error)
	// looks is the topic of the rows of a rule with lookups: what each gave was
	// remembered ever since, and what of it; "": it has none.
	looks  string
	ranges []change.Range // of the batch
	keys   []string       // of its changes: those of what their rows gave
	ends   []int          // of keys in text; 0: it has none
	text   []byte

	// Memory of lookedUp.
	cols     map[*change.Table][]int
	rows     []change.Change
	was, are []gave
}

type place struct {
	topic     [16]byte
	partition int32
}

type stretch struct{ from, to int64 }

// Remember has the stage keep what rows gave; the engine keeps the table that it
// returns. Without it, a source has to send old rows.
func (s *Stage) Remember(rdb *redis.Client, log *slog.Logger) *state.Table {
	return s.remember(rdb, log, s.name, "")
}

// remember is Remember, for the group of a name; looks is the topic of its rows, if its
// rule has lookups.
func (s *Stage) remember(rdb *redis.Client, log *slog.Logger, group, looks string) *state.Table {
	g := &given{table: state.NewTable(rdb, log, group), looks: looks, outputs: map[string]*change.Table{}, read: map[place]*stretch{}}
	for _, e := range s.order {
		g.outputs[e.to.Topic] = e.to
	}
	if g.claims = s.claimed(); len(g.claims) > 0 {
		g.claimTable = avro.Claims(s.name).Table
	}
	s.given = g
	s.plans.Store(nil)
	return g.table
}

// from is the place of a record; those of a Trial have none.
func from(t *change.Topic, partition int32) place {
	if t == nil {
		return place{}
	}
	return place{t.ID, partition}
}

// remembers says whether what a row gave by one of the rules is kept.
func remembers(ps []*plan) bool {
	for _, p := range ps {
		if p.gives {
			return true
		}
	}
	return false
}

// fetch reads what the rows of a batch gave, of those whose rules need it.
func (g *given) fetch(ctx context.Context, s *Stage, in *change.Batch) error {
	g.ranges = in.Ranges
	for _, r := range in.Ranges {
		at := from(r.Topic, r.Partition)
		if l := g.read[at]; l == nil || r.From < l.from || r.From > l.to {
			g.read[at] = &stretch{r.From, r.To}
		} else {
			l.to = max(l.to, r.To)
		}
	}
	g.keys = append(g.keys[:0], make([]string, in.Len())...)
	g.ends = append(g.ends[:0], make([]int, in.Len())...)
	g.text = g.text[:0]
	var want map[int32][]string
	var begun map[place]bool
	var last *change.Table
	needed := false
	for _, r := range in.Ranges {
		if r.Topic != nil && s.rowsKept(r.Topic.Name) != nil {
			if want == nil {
				want = map[int32][]string{}
			}
			want[r.Partition] = append(want[r.Partition], rowsKey(r.Topic.Name))
		}
	}
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Table != last {
			ps, err := s.of(c.Table)
			if err != nil {
				return nil //nolint:nilerr // it is told in its turn
			}
			last, needed = c.Table, remembers(ps)
		}
		if !needed || c.Row() == nil {
			continue
		}
		if want == nil {
			want = map[int32][]string{}
		}
		if begun == nil {
			begun = map[place]bool{}
		}
		p := c.Coord.Partition
		if at := from(c.Coord.Topic, p); !begun[at] {
			want[p] = append(want[p], sinceKey(c.Table.Topic), seenKey(c.Table.Topic))
			begun[at] = true
		}
		g.text = g.appendKey(g.text, in, c)
		g.ends[i] = len(g.text)
	}
	if want == nil {
		return nil
	}
	keys, from := string(g.text), 0 // one text holds them all
	for i, to := range g.ends {
		if to > 0 {
			p := in.Changes[i].Coord.Partition
			g.keys[i], from = keys[from:to], to
			want[p] = append(want[p], g.keys[i])
		}
	}
	if err := g.table.Fetch(ctx, want); err != nil {
		return err
	}
	if err := g.seen(ctx, s, in); err != nil {
		return err
	}
	for p, keys := range want {
		for _, k := range keys {
			if v := g.table.Get(p, k); v != nil && (len(v) == 0 || v[0] != givenForm && v[0] != summedForm) {
				return state.ErrForm.New("what a row gave is written in form %x in partition %d of topic %s", v[:min(len(v), 1)], p, g.table.Topic().Name)
			}
		}
	}
	return nil
}

// Each value begins with the form of the rest: the keys of what a row gave, or each of
// them with a sum of its record.
const (
	givenForm  = 1
	summedForm = 2
)

// appendKey appends the key of what a row gave: its topic and its own key.
func (g *given) appendKey(dst []byte, b *change.Batch, c *change.Change) []byte {
	dst = append(append(append(dst, 'g'), c.Table.Topic...), 0)
	return change.AppendKeyRow(dst, b, c.Table, c.Row())
}

// seen makes sure that the claims of all rows are known that Kafka has, since a key
// that an unseen row has would be deleted when another gives it up; and that all rows
// are kept that are looked up, with what is used of them, since whoever names one that
// is not would wait for ever.
func (g *given) seen(ctx context.Context, s *Stage, in *change.Batch) error {
	if g.starts == nil {
		return nil
	}
	for _, r := range in.Ranges {
		if err := g.keeps(ctx, s, r.Topic, r.Partition); err != nil {
			return err
		}
	}
	var last change.Coord
	for i := range in.Changes {
		c := &in.Changes[i]
		if c.Row() == nil || c.Coord.Topic == last.Topic && c.Coord.Partition == last.Partition {
			continue
		}
		last = c.Coord
		ps, err := s.of(c.Table)
		if err != nil {
			continue //nolint:nilerr // it is told in its turn
		}
		if !slices.ContainsFunc(ps, func(p *plan) bool { return p.e.claims }) || g.table.Get(last.Partition, seenKey(c.Table.Topic)) != nil {
			continue
		}
		start, err := g.starts(ctx, last.Topic, last.Partition)
		if err != nil {
			return err
		}
		if g.late(last.Topic, last.Partition, start) {
			return ErrUnseen.New("partition %d of topic %s starts at offset %d, which transform %s had passed when its rules began to claim keys", last.Partition, c.Table.Topic, start, s.name)
		}
		if err := g.table.Put(last.Partition, seenKey(c.Table.Topic), []byte{givenForm}); err != nil {
			return err
		}
	}
	return nil
}

// late says whether a partition was not read from its start on.
func (g *given) late(t *change.Topic, partition int32, start int64) bool {
	l := g.read[from(t, partition)]
	return l == nil || l.from > start
}

// keeps notes which columns of a partition's rows are kept, from its start on.
func (g *given) keeps(ctx context.Context, s *Stage, t *change.Topic, partition int32) error {
	rows := s.rowsKept(t.Name)
	if rows == nil {
		return nil
	}
	noted := g.table.Get(partition, rowsKey(t.Name))
	if more := notKept(noted, rows); len(more) > 0 {
		start, err := g.starts(ctx, t, partition)
		if err != nil {
			return err
		}
		if g.late(t, partition, start) {
			return rowsUnseen(s.name, t.Name, partition, start, more)
		}
	}
	// Those that are not kept any more are not noted any more.
	return g.table.Put(partition, rowsKey(t.Name), append([]byte{givenForm}, strings.Join(rows, "\x00")...))
}

func rowsUnseen(transform, topic string, partition int32, start int64, columns []string) error {
	return ErrRowsUnseen.New("partition %d of topic %s starts at offset %d, which transform %s had passed when lookups began to use %s of its rows", partition, topic, start, transform, strings.Join(columns, ", ")).
		WithRemedy("Have the transform read its topics from the start: tallywire replay %s --yes. Nothing is looked up until then, and nothing is lost.", transform)
}

// rowsKept are the columns that are kept of the rows of a topic; nil: no row is.
func (s *Stage) rowsKept(topic string) []string {
	for _, e := range s.byFrom[topic] {
		if e.rows != nil {
			return e.rows.asked
		}
	}
	return nil
}

// notKept are those of the columns that have not been kept since the topic's start, by
// what was noted of it; a row without columns counts as one, its key.
func notKept(noted []byte, names []string) []string {
	if noted == nil {
		return append([]string{"the keys"}, names...)
	}
	had := strings.Split(string(noted[1:]), "\x00")
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(had, name) })
}

// rowsKey is that of which columns of a raw topic's rows were kept from its start on.
func rowsKey(topic string) string { return "k" + topic }

// seenKey is that of a raw topic's partition of which all claims are known.
func seenKey(topic string) string { return "c" + topic }

// sinceKey is that of the offset of a raw topic's partition from which on all
// rows are remembered.
func sinceKey(topic string) string { return "s" + topic }

// whole says whether a row of which nothing is remembered gave nothing: all
// records of its partition were seen.
func (g *given) whole(c *change.Change) (bool, error) {
	since := int64(-1)
	if v := g.table.Get(c.Coord.Partition, sinceKey(c.Table.Topic)); v != nil {
		since, _ = binary.Varint(v[1:])
	}
	if l := g.read[from(c.Coord.Topic, c.Coord.Partition)]; l != nil && (since < 0 || l.from < since) {
		since = l.from
		if err := g.table.Put(c.Coord.Partition, sinceKey(c.Table.Topic), binary.AppendVarint([]byte{givenForm}, since)); err != nil {
			return false, err
		}
	}
	return since == 0, nil
}

// bySeveral is that of the rules, with the deletes of what the row gave before and
// gives no more; key is that of the row.
func (g *given) bySeveral(dst []change.Change, b *change.Batch, c *change.Change, key string, ps []*plan, sc *scratch) ([]change.Change, error) {
	if c.Row() == nil { // a truncate ends what its partition gave; of a row that comes again all is known
		return bySeveral(dst, b, c, ps, sc)
	}
	if g.looks != "" {
		return g.lookedUp(dst, b, c, key, ps[0], sc)
	}
	whole, err := g.whole(c)
	if err != nil {
		return dst, err
	}
	part := c.Coord.Partition
	before := g.table.Get(part, key)
	sc.known = before != nil || whole
	rows, err := bySeveral(nil, b, c, ps, sc)
	sc.known = false
	if err != nil {
		return dst, err
	}
	// Together, deletes first, and never of a key that is given now (F5).
	told := map[string]bool{}
	now := []byte{givenForm}
	given := rows[:0:0]
	for i := range rows {
		d := &rows[i]
		if d.Op == change.Delete {
			continue
		}
		if k := g.canonical(b, d.Table, d.New); !told[k] {
			told[k] = true
			now = appendGiven(now, b, d.Table, d.New)
			given = append(given, *d)
			continue
		}
		for _, p := range ps {
			if p.to == d.Table {
				return dst, p.twice(change.AppendKeyRow(nil, b, d.Table, d.New))
			}
		}
	}
	for i := range rows {
		d := &rows[i]
		if d.Op != change.Delete {
			continue
		}
		if k := g.canonical(b, d.Table, d.Old); !told[k] {
			told[k] = true
			dst = append(dst, *d)
		}
	}
	for rest := before[min(len(before), 1):]; len(rest) > 0; {
		var topic, row []byte
		if topic, row, rest = nextGiven(rest); topic == nil {
			break
		}
		dst = g.gone(dst, b, c, topic, row, told)
	}
	if len(now) == 1 && whole {
		now = nil // as of a row that was never seen
	}
	dst = append(dst, given...)
	g.claim(b, c, dst)
	return dst, g.table.Put(part, key, now)
}

// gone appends the delete of what a row gave before, unless it gives that now.
func (g *given) gone(dst []change.Change, b *change.Batch, c *change.Change, topic, row []byte, told map[string]bool) []change.Change {
	to := g.outputs[string(topic)]
	if to == nil {
		return dst // it is not filled any more
	}
	was := keyRowOf(b, to, string(row))
	if was == nil || told[g.canonical(b, to, was)] {
		return dst
	}
	d := *c
	d.Table, d.Op, d.Old, d.New = to, change.Delete, was, nil
	return append(dst, d)
}

// canonical names a record.
func (g *given) canonical(b *change.Batch, t *change.Table, row []change.Value) string {
	g.text = append(append(g.text[:0], t.Topic...), 0)
	g.text = change.AppendKeyRow(g.text, b, t, row)
	return string(g.text)
}

// appendGiven appends a canonical key: its topic and its values, each after its
// length.
func appendGiven(dst []byte, b *change.Batch, t *change.Table, row []change.Value) []byte {
	dst = append(binary.AppendUvarint(dst, uint64(len(t.Topic))), t.Topic...)
	at := len(dst)
	dst = state.AppendRow(append(dst, 0), b, row, t.Key)
	n := len(dst) - at - 1
	if n < 0x80 {
		dst[at] = byte(n)
		return dst
	}
	head := binary.AppendUvarint(nil, uint64(n))
	return slices.Replace(dst, at, at+1, head...)
}

// nextGiven undoes appendGiven; nil: it is none.
func nextGiven(p []byte) (topic, key, rest []byte) {
	if topic, rest = span(p); topic == nil {
		return nil, nil, nil
	}
	key, rest = span(rest)
	return topic, key, rest
}

// keyRowOf is a row of t of which only the key is known; nil: the key has another
// form by now.
func keyRowOf(b *change.Batch, t *change.Table, key string) []change.Value {
	values, ok := state.ReadRow(b, key, len(t.Key))
	if !ok {
		return nil
	}
	row := b.Row(len(t.Columns))
	for i := range row {
		row[i] = change.UnchangedValue()
	}
	for i, k := range t.Key {
		row[k] = values[i]
	}
	return row
}
