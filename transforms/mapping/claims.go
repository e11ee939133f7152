// Claims: where rows may hand a canonical key to each other, each says which key
// it claims, and which it gives up, on a topic that is partitioned by that key;
// the stage behind it knows all claims of a key, and gives it the row of the
// newest (F5, decision 44).

package mapping

import (
	"context"
	"encoding/binary"
	"log/slog"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/state"
)

// claimed says which outputs are given by claims.
func (s *Stage) claimed() map[string]*entry {
	out := map[string]*entry{}
	for _, e := range slices.Concat(s.order, s.looked) {
		if e.claims {
			out[e.to.Topic] = e
		}
	}
	return out
}

// claim makes changes of canonical records into claims of the row that c is of,
// where they are given by claims.
func (g *given) claim(b *change.Batch, c *change.Change, rows []change.Change) {
	if len(g.claims) == 0 {
		return
	}
	claimant := c.Table.Topic + "/" + string(change.AppendKeyRow(nil, b, c.Table, c.Row()))
	for i := range rows {
		d := &rows[i]
		if g.claims[d.Table.Topic] == nil {
			continue
		}
		key := change.AppendKeyRow(nil, b, d.Table, d.Row())
		cols := d.Table.Key
		gone := d.Op == change.Delete
		if !gone {
			cols = nil
		}
		row := b.Row(5)
		row[claimEntity] = b.SpanString(change.String, d.Table.Topic)
		row[claimKey] = b.Span(change.String, key)
		row[claimClaimant] = b.SpanString(change.String, claimant)
		row[claimGone] = change.BoolValue(gone)
		row[claimRow] = b.Span(change.Bytes, appendNamed(nil, b, d.Table, d.Row(), cols))
		d.Table, d.Op, d.Old, d.New = g.claimTable, change.Update, nil, row
	}
}

// The columns of a claim, as its contract has them.
const (
	claimEntity = iota
	claimKey
	claimClaimant
	claimGone
	claimRow
)

// appendNamed appends the columns of a row with their names, so that it is read
// though the contract has grown since; cols nil: all.
func appendNamed(dst []byte, b *change.Batch, t *change.Table, row []change.Value, cols []int) []byte {
	if cols == nil {
		for i := range t.Columns {
			cols = append(cols, i)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(cols)))
	for _, c := range cols {
		dst = append(binary.AppendUvarint(dst, uint64(len(t.Columns[c].Name))), t.Columns[c].Name...)
	}
	return state.AppendRow(dst, b, row, cols)
}

// readNamed reads it as a row of the entry's table: what it has no value for is
// null, or what the contract says; nil: it is none. only: nothing but its key.
func (e *entry) readNamed(b *change.Batch, p []byte, only bool) []change.Value {
	n, size := binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)) {
		return nil
	}
	p = p[size:]
	names := make([]string, n)
	for i := range names {
		var name []byte
		if name, p = span(p); name == nil {
			return nil
		}
		names[i] = string(name)
	}
	values, ok := state.ReadRow(b, string(p), int(n))
	if !ok {
		return nil
	}
	row := b.Row(len(e.to.Columns))
	for i := range row {
		switch {
		case only:
			row[i] = change.UnchangedValue()
		case e.contract[i].Default != nil:
			row[i] = e.contract[i].Default.Value(b)
		}
	}
	for i, name := range names {
		if c := e.to.Column(name); c >= 0 && (!only || slices.Contains(e.to.Key, c)) {
			row[c] = values[i]
		}
	}
	return row
}

// span reads a text behind its length; nil: there is none.
func span(p []byte) (text, rest []byte) {
	n, size := binary.Uvarint(p)
	if size <= 0 || n > uint64(len(p)-size) {
		return nil, nil
	}
	return p[size : size+int(n) : size+int(n)], p[size+int(n):]
}

// Claims is the stage behind the claims topic. Not safe for concurrent use.
type Claims struct {
	name    string
	table   *state.Table
	entries map[string]*entry // by topic of the canonical records
}

// Claims makes it, with the state that it reads and writes; nil: no rule has
// claims.
func (s *Stage) Claims(rdb *redis.Client, log *slog.Logger) (*Claims, *state.Table) {
	es := s.claimed()
	if len(es) == 0 {
		return nil, nil
	}
	name := s.name + claimsSuffix
	c := &Claims{name: name, table: state.NewTable(rdb, log, name), entries: es}
	return c, c.table
}

// claimsSuffix makes the name of the group behind the claims topic.
const claimsSuffix = ".claims"

// claim is one of a key's.
type claim struct {
	claimant []byte
	pos      change.Pos
	row      []byte
}

// newer says whether c is to be taken in place of d, which came before it: by
// their positions, where these are of one source.
func (c *claim) newer(d *claim) bool {
	if c.pos.IsZero() || d.pos.IsZero() || c.pos.System != d.pos.System {
		return true
	}
	return c.pos.Compare(d.pos) >= 0
}

// newest is the claim that the key goes to; −1: there is none.
func newest(cs []claim) int {
	best := -1
	for i := range cs {
		if best < 0 || cs[i].newer(&cs[best]) {
			best = i
		}
	}
	return best
}

// claimsForm begins the claims of a key: the form of the rest.
const claimsForm = 1

func appendClaims(dst []byte, cs []claim) []byte {
	dst = append(dst, claimsForm)
	for _, c := range cs {
		dst = append(binary.AppendUvarint(dst, uint64(len(c.claimant))), c.claimant...)
		dst = change.AppendPos(dst, c.pos)
		dst = append(binary.AppendUvarint(dst, uint64(len(c.row))), c.row...)
	}
	return dst
}

func readClaims(p []byte) (cs []claim, ok bool) {
	if len(p) == 0 {
		return nil, true
	}
	if p[0] != claimsForm {
		return nil, false
	}
	for p = p[1:]; len(p) > 0; {
		var c claim
		var err error
		if c.claimant, p = span(p); c.claimant == nil || len(p) < change.PosSize {
			return nil, false
		}
		if c.pos, err = change.ParsePos(p[:change.PosSize]); err != nil {
			return nil, false
		}
		if c.row, p = span(p[change.PosSize:]); c.row == nil {
			return nil, false
		}
		cs = append(cs, c)
	}
	return cs, true
}

// Apply gives each key what its claims say.
func (s *Claims) Apply(ctx context.Context, in *change.Batch, out pipeline.Outlet) error {
	in.Keep(func(c *change.Change) bool {
		is := len(c.New) > claimRow
		if !is {
			out.Reject(c, ErrClaim.New("a record of %s is none", c.Table.Topic))
		}
		return is
	})
	want := map[int32][]string{}
	keys := make([]string, in.Len())
	for i := range in.Changes {
		c := &in.Changes[i]
		keys[i] = in.String(c.New[claimEntity]) + "\x00" + in.String(c.New[claimKey])
		want[c.Coord.Partition] = append(want[c.Coord.Partition], keys[i])
	}
	if err := s.table.Fetch(ctx, want); err != nil {
		in.Release()
		return err
	}
	given := make([]change.Change, 0, in.Len())
	for i := range in.Changes {
		c := &in.Changes[i]
		d, err := s.take(in, c, keys[i])
		switch {
		case err != nil && pipeline.Classify(err) == problem.Reject:
			out.Reject(c, err)
		case err != nil:
			in.Release()
			return err
		case d != nil:
			given = append(given, *d)
		}
	}
	in.Changes = append(in.Changes[:0], given...)
	return out.Send(ctx, in)
}

// take takes one claim in, or out, and gives what becomes of the key: nil,
// nothing that was not so before.
func (s *Claims) take(b *change.Batch, c *change.Change, key string) (*change.Change, error) {
	e := s.entries[b.String(c.New[claimEntity])]
	if e == nil {
		return nil, nil // no rule fills it any more
	}
	part := c.Coord.Partition
	cs, ok := readClaims(s.table.Get(part, key))
	if !ok {
		return nil, state.ErrForm.New("the claims of a key are written in another form in partition %d of topic %s", part, s.table.Topic().Name)
	}
	mine := claim{claimant: b.Bytes(c.New[claimClaimant]), pos: c.Pos, row: b.Bytes(c.New[claimRow])}
	gone := c.New[claimGone].Bool()
	before := newest(cs)
	var won []byte
	if before >= 0 {
		won = cs[before].claimant
	}
	at := slices.IndexFunc(cs, func(x claim) bool { return string(x.claimant) == string(mine.claimant) })
	if at >= 0 {
		if !mine.newer(&cs[at]) {
			return nil, nil // a replay: what came after it is known
		}
		cs = slices.Delete(slices.Clone(cs), at, at+1)
	}
	if !gone {
		cs = append(cs, mine)
	}
	var value []byte
	if len(cs) > 0 {
		value = appendClaims(nil, cs)
	}
	d := *c
	d.Table, d.Old, d.New = e.to, nil, nil
	now := newest(cs)
	switch {
	case now < 0:
		if d.Op, d.Old = change.Delete, e.readNamed(b, mine.row, true); d.Old == nil {
			return nil, ErrClaim.New("a record of %s has no row of %s", c.Table.Topic, e.to.Topic)
		}
	case string(cs[now].claimant) == string(mine.claimant), string(cs[now].claimant) != string(won):
		if d.New = e.readNamed(b, cs[now].row, false); d.New == nil {
			return nil, ErrClaim.New("a record of %s has no row of %s", c.Table.Topic, e.to.Topic)
		}
	default:
		return nil, s.table.Put(part, key, value) // another one has it, and keeps it
	}
	return &d, s.table.Put(part, key, value)
}

// claimsSpec is the group behind the claims topic; false: no rule has claims.
func (s *Stage) claimsSpec(env *pipeline.Env, log *slog.Logger) (pipeline.TransformSpec, bool) {
	stage, table := s.Claims(env.Redis, log)
	if stage == nil {
		return pipeline.TransformSpec{}, false
	}
	queue := avro.ClaimsTopic(s.name)
	spec := pipeline.TransformSpec{
		Name: stage.name, Topics: []string{queue}, Stages: []pipeline.Stage{stage}, State: table,
		Queues: []string{queue}, Trim: []string{queue}, KeyPrefixes: map[string][]string{},
	}
	for _, e := range slices.Concat(s.order, s.looked) {
		if !e.claims {
			continue
		}
		if !slices.Contains(spec.Outputs, e.to.Topic) {
			spec.Outputs = append(spec.Outputs, e.to.Topic)
		}
		spec.KeyPrefixes[e.to.Topic] = append(spec.KeyPrefixes[e.to.Topic], e.keyPrefix())
		if e.restricted() {
			spec.Restricted = []string{queue}
		}
	}
	return spec, true
}
