package mapping_test

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/pipelinetest"
	"github.com/tallywire/tallywire/pipeline/state"
	"github.com/tallywire/tallywire/transforms/mapping"
)

func miniRedis(tb testing.TB) *goredis.Client {
	tb.Helper()
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	})
	c, err := redis.Open(tb.Context(), e.Addr())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// keyOnly is a table whose source sends no old rows: an update tells the new row,
// a delete the key.
func keyOnly(t *change.Table) *change.Table {
	c := *t
	c.OldFull = false
	return c.Index()
}

// memory applies batches to a stage that remembers, one transaction each.
type memory struct {
	t     *testing.T
	stage *mapping.Stage
	table *state.Table
	topic *change.Topic
	next  int64
	end   int64 // of the changelog
}

// remembering begins to read a topic's partition at an offset.
func remembering(t *testing.T, from int64, rules ...mapping.Topic) *memory {
	t.Helper()
	s, err := mapping.New("canonical", mapping.Config{Topics: rules}, nil, nil)
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	m := &memory{t: t, stage: s, table: s.Remember(miniRedis(t), slog.New(slog.DiscardHandler)), next: from}
	m.topic = &change.Topic{Name: rules[0].From, ID: [16]byte{1}, Partitions: 1}
	m.table.Open(&change.Topic{Name: "_tallywire.state.canonical", ID: [16]byte{9}, Partitions: 1}, 0)
	if _, ok, err := m.table.Own(t.Context(), 0, 0, 0); err != nil || !ok {
		t.Fatal(ok, err)
	}
	return m
}

func (m *memory) apply(fill func(b *change.Batch)) *outlet {
	m.t.Helper()
	b, out := change.Get(), &outlet{}
	from := m.next
	fill(b)
	for i := range b.Changes {
		b.Changes[i].Coord = change.Coord{Topic: m.topic, Offset: m.next}
		m.next++
	}
	b.Ranges = append(b.Ranges, change.Range{Topic: m.topic, From: from, To: m.next})
	m.table.Begin()
	if err := m.stage.Apply(m.t.Context(), b, out); err != nil {
		m.t.Fatal(err)
	}
	es := m.table.Changes()
	if len(es) > 0 {
		m.end += int64(len(es)) + 1
	}
	if err := m.table.Committed(m.t.Context(), es, map[int32]int64{0: m.end - 1}); err != nil {
		m.t.Fatal(err)
	}
	return out
}

// Default replica identity: an update of a rate that changes its employee, and a
// delete, tell only the id. What the row gave says what is gone; without it each
// is parked, and the hours keep the cost of a rate that is not there.
func TestRowsWithoutOldRows(t *testing.T) {
	rates := keyOnly(rates)
	m := remembering(t, 0, config().Topics...)
	put := func(op change.Op, id, employee int64) func(b *change.Batch) {
		return func(b *change.Batch) { b.Append(rates, op).New = rate(b, id, employee) }
	}
	gone := func(id int64) func(b *change.Batch) {
		return func(b *change.Batch) {
			row := b.Row(len(rates.Columns))
			for i := range row {
				row[i] = change.UnchangedValue()
			}
			row[0] = change.IntValue(id)
			b.Append(rates, change.Delete).Old = row
		}
	}
	all := func(fills ...func(b *change.Batch)) func(b *change.Batch) {
		return func(b *change.Batch) {
			for _, f := range fills {
				f(b)
			}
		}
	}
	const rest = "|2024-10-04||82.5000|EUR|1970-01-01 00:00:00.000001+00|"
	line := func(op string, key, employee string) string {
		if op == "d" {
			return "ps.cost_rate d " + key + "|?|?|?|?|?|?|"
		}
		return "ps.cost_rate " + op + " " + key + "|" + employee + rest
	}
	for _, step := range []struct {
		what string
		fill func(b *change.Batch)
		want []string
	}{
		{"loaded", all(put(change.Read, 55, 12), put(change.Read, 56, 12)), []string{line("r", "12/55", "12"), line("r", "12/56", "12")}},
		{"the same key", put(change.Update, 55, 12), []string{line("u", "12/55", "12")}},
		{"moved", put(change.Update, 55, 13), []string{line("d", "12/55", ""), line("u", "13/55", "13")}},
		{
			"moved twice at once", all(put(change.Update, 55, 14), put(change.Update, 55, 15)),
			[]string{line("d", "13/55", ""), line("u", "14/55", "14"), line("d", "14/55", ""), line("u", "15/55", "15")},
		},
		{"deleted", gone(55), []string{line("d", "15/55", "")}},
		{"deleted again, as a replay has it", gone(55), nil},
		{
			"made again, moved and deleted", all(put(change.Create, 55, 12), put(change.Update, 55, 13), gone(55)),
			[]string{line("c", "12/55", "12"), line("d", "12/55", ""), line("u", "13/55", "13"), line("d", "13/55", "")},
		},
		{"the other", gone(56), []string{line("d", "12/56", "")}},
	} {
		o := m.apply(step.fill)
		if len(o.rejected) > 0 {
			t.Errorf("%s: rejected: %v", step.what, o.rejected)
		}
		t.Log(step.what)
		want(t, o.got, step.want...)
	}
}

// A row whose first version was parked gave nothing; its next one is no update of
// something unknown.
func TestMendedRowsWithoutOldRows(t *testing.T) {
	rates := keyOnly(rates)
	m := remembering(t, 0, config().Topics...)
	o := m.apply(func(b *change.Batch) {
		c := b.Append(rates, change.Create)
		c.New = rate(b, 55, 12)
		c.New[5] = change.NullValue()
	})
	if len(o.rejected) != 1 || len(o.got) != 0 {
		t.Fatal(o.got, o.rejected)
	}
	o = m.apply(func(b *change.Batch) { b.Append(rates, change.Update).New = rate(b, 55, 12) })
	if len(o.rejected) != 0 || len(o.got) != 1 {
		t.Error(o.got, o.rejected)
	}
	// And one that is parked in between takes nothing out: what it gave stays
	// until it is mended.
	o = m.apply(func(b *change.Batch) {
		c := b.Append(rates, change.Update)
		c.New = rate(b, 55, 13)
		c.New[5] = change.NullValue()
	})
	if len(o.rejected) != 1 || len(o.got) != 0 {
		t.Fatal(o.got, o.rejected)
	}
	o = m.apply(func(b *change.Batch) { b.Append(rates, change.Update).New = rate(b, 55, 13) })
	if len(o.rejected) != 0 || len(o.got) != 2 || !strings.HasPrefix(o.got[0], "ps.cost_rate d 12/55|") {
		t.Error(o.got, o.rejected)
	}
}

// A transform that began to remember in the midst of a topic does not know what
// the rows before gave: an update of such a row is parked, and says what helps.
func TestRowsFromBeforeTheMemory(t *testing.T) { // Remedy: TW-MAP-UNCHANGED
	rates := keyOnly(rates)
	m := remembering(t, 5, config().Topics...)
	o := m.apply(func(b *change.Batch) { b.Append(rates, change.Update).New = rate(b, 55, 12) })
	if len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrUnchanged) || !strings.Contains(problem.Format(o.rejected[0]), "tallywire replay TRANSFORM --yes") {
		t.Fatalf("%q, %s", o.got, problem.Format(o.rejected[0]))
	}
	o = m.apply(func(b *change.Batch) {
		b.Append(rates, change.Create).New = rate(b, 56, 12)
		b.Append(rates, change.Update).New = rate(b, 56, 13)
	})
	if len(o.rejected) != 0 || len(o.got) != 3 {
		t.Errorf("a row that was seen from its creation: %q, %v", o.got, o.rejected)
	}
	m.next = 0 // the remedy
	o = m.apply(func(b *change.Batch) {
		b.Append(rates, change.Read).New = rate(b, 55, 11)
		b.Append(rates, change.Update).New = rate(b, 55, 12)
		b.Append(rates, change.Update).New = rate(b, 57, 12) // nobody ever saw it: it gave nothing
	})
	if len(o.rejected) != 0 || len(o.got) != 4 {
		t.Errorf("after the replay: %q, %v", o.got, o.rejected)
	}
}

// The records between the start of a partition and the first that is remembered
// may be markers alone.
func TestMemoryFromTheStart(t *testing.T) {
	rates := keyOnly(rates)
	m := remembering(t, 0, config().Topics...)
	m.apply(func(*change.Batch) { m.next = 3 }) // a range without a change
	o := m.apply(func(b *change.Batch) { b.Append(rates, change.Update).New = rate(b, 55, 12) })
	if len(o.rejected) != 0 || len(o.got) != 1 {
		t.Errorf("%q, %v", o.got, o.rejected)
	}
}

// Lines of a document vanish without an old row.
func TestEachWithoutOldRows(t *testing.T) {
	bills := keyOnly(bills)
	m := remembering(t, 0, billRule())
	put := func(lines string) func(b *change.Batch) {
		return func(b *change.Batch) { b.Append(bills, change.Update).New = bill(b, 7, lines) }
	}
	keys := func(o *outlet) (out []string) {
		for _, s := range o.got {
			f := strings.Fields(s)
			key, _, _ := strings.Cut(f[2], "|")
			out = append(out, f[1]+" "+key)
		}
		if len(o.rejected) > 0 {
			t.Errorf("rejected: %v", o.rejected)
		}
		return out
	}
	want(t, keys(m.apply(put(`[["a", 5], ["b", 6]]`))), "u erp-7-a", "u erp-7-b")
	want(t, keys(m.apply(put(`[["b", 6], ["c", 7]]`))), "d erp-7-a", "u erp-7-b", "u erp-7-c")
	got := keys(m.apply(func(b *change.Batch) {
		row := b.Row(len(bills.Columns))
		for i := range row {
			row[i] = change.UnchangedValue()
		}
		row[bills.Key[0]] = change.IntValue(7)
		b.Append(bills, change.Delete).Old = row
	}))
	slices.Sort(got)
	want(t, got, "d erp-7-b", "d erp-7-c")
}

func TestSuiteOfMemory(t *testing.T) {
	rates := keyOnly(rates)
	rdb := miniRedis(t)
	var table *state.Table
	feed := func() *pipelinetest.Feed {
		f := pipelinetest.FeedOf(rates)
		f.Fill = func(_ *change.Batch, row []change.Value, key, version int) {
			row[1] = change.IntValue(int64(10 + (key+version)%2))
			if version == 0 {
				row[5] = change.NullValue()
			}
		}
		return f
	}
	pipelinetest.StageSuite(t, pipelinetest.StageCase{
		New: func(tb testing.TB) pipeline.Stage {
			s, err := mapping.New("canonical", config(), nil, nil)
			if err != nil {
				tb.Fatal(err)
			}
			if err := rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
			table = s.Remember(rdb, slog.New(slog.DiscardHandler))
			return s
		},
		State: func(testing.TB) *state.Table { return table },
		Wipe: func(tb testing.TB) {
			if err := rdb.FlushAll(tb.Context()).Err(); err != nil {
				tb.Fatal(err)
			}
		},
		Input: func(testing.TB) *change.Batch {
			f, b := feed(), change.Get()
			for v := 1; v < 5; v++ {
				for k := range 3 {
					f.Put(b, k, v)
				}
				f.Delete(b, v%3)
			}
			return f.Close(b, 0)
		},
		Bad: func(testing.TB) *change.Batch {
			f, b := feed(), change.Get()
			f.Put(b, 1, 1)
			f.Put(b, 2, 0)
			f.Put(b, 3, 1)
			return f.Close(b, 0)
		},
		Rejects: 1,
	})
}

// A row whose memory does not fit is parked by itself; with a larger record it
// passes.
func TestMemoryTooLarge(t *testing.T) { // Remedy: TW-STATE-TOO-LARGE
	bills := keyOnly(bills)
	m := remembering(t, 0, billRule())
	many := func(b *change.Batch) {
		b.Append(bills, change.Create).New = bill(b, 7, lineList(100))
		b.Append(bills, change.Create).New = bill(b, 8, lineList(1))
	}
	open := func(limit int) {
		m.table.Open(m.table.Topic(), limit)
		if _, ok, err := m.table.Own(t.Context(), 0, 0, 0); err != nil || !ok {
			t.Fatal(ok, err)
		}
	}
	open(1000)
	if o := m.apply(many); len(o.rejected) != 1 || !problem.Has(o.rejected[0], state.ErrTooLarge) || len(o.got) != 1 {
		t.Errorf("%d records, %v", len(o.got), o.rejected)
	}
	open(100_000)
	if o := m.apply(many); len(o.rejected) != 0 || len(o.got) != 101 {
		t.Errorf("%d records, %v", len(o.got), o.rejected)
	}
}

func lineList(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`["line %d", 1]`, i))
	}
	return "[" + strings.Join(all, ",") + "]"
}

// A form of a newer version stops the transform; it is neither guessed at nor
// written over. Another row's is none of its business.
func TestMemoryOfANewerVersion(t *testing.T) { // Remedy: TW-STATE-FORM
	rates := keyOnly(rates)
	m := remembering(t, 0, config().Topics...)
	m.apply(func(b *change.Batch) { b.Append(rates, change.Create).New = rate(b, 55, 12) })
	m.table.Begin()
	key := "g" + rates.Topic + "\x0055"
	if err := m.table.Fetch(t.Context(), map[int32][]string{0: {key}}); err != nil {
		t.Fatal(err)
	}
	was := slices.Clone(m.table.Get(0, key))
	put := func(v []byte) {
		if err := m.table.Put(0, key, v); err != nil {
			t.Fatal(err)
		}
		es := m.table.Changes()
		m.end += 2
		if err := m.table.Committed(t.Context(), es, map[int32]int64{0: m.end - 1}); err != nil {
			t.Fatal(err)
		}
	}
	put(append([]byte{9}, was[1:]...))
	b := change.Get()
	c := b.Append(rates, change.Update)
	c.New, c.Coord = rate(b, 55, 13), change.Coord{Topic: m.topic, Offset: m.next}
	b.Ranges = append(b.Ranges, change.Range{Topic: m.topic, From: m.next, To: m.next + 1})
	m.table.Begin()
	if err := m.stage.Apply(t.Context(), b, &outlet{}); !problem.Has(err, state.ErrForm) {
		t.Fatal(err)
	}
	m.table.Begin()
	if err := m.table.Fetch(t.Context(), map[int32][]string{0: {key}}); err != nil {
		t.Fatal(err)
	}
	put(was) // as the newer version would have it read
	if o := m.apply(func(b *change.Batch) { b.Append(rates, change.Update).New = rate(b, 55, 13) }); len(o.got) != 2 || len(o.rejected) != 0 {
		t.Errorf("%q, %v", o.got, o.rejected)
	}
}

// A batch holds records of several topics, from several partitions of each: what
// each row gave is read for all of them.
func TestMemoryOfSeveralTopics(t *testing.T) {
	rates, bills := keyOnly(rates), keyOnly(bills)
	m := remembering(t, 0, append(config().Topics, billRule())...)
	if _, _, err := m.table.Own(t.Context(), 1, 0, 0); err != nil {
		t.Fatal(err)
	}
	other := &change.Topic{Name: bills.Topic, ID: [16]byte{2}, Partitions: 2}
	apply := func(offset, employee int64, lines string) *outlet {
		b, o := change.Get(), &outlet{}
		for _, topic := range []*change.Topic{m.topic, other} {
			for p := range int32(2) {
				var c *change.Change
				if topic == m.topic {
					c = b.Append(rates, change.Update)
					c.New = rate(b, int64(p), employee)
				} else {
					c = b.Append(bills, change.Update)
					c.New = bill(b, int64(p), lines)
				}
				c.Coord = change.Coord{Topic: topic, Partition: p, Offset: offset}
				b.Ranges = append(b.Ranges, change.Range{Topic: topic, Partition: p, From: offset, To: offset + 1})
			}
		}
		m.table.Begin()
		if err := m.stage.Apply(t.Context(), b, o); err != nil {
			t.Fatal(err)
		}
		es := m.table.Changes()
		if err := m.table.Committed(t.Context(), es, map[int32]int64{0: 10 * (offset + 1), 1: 10 * (offset + 1)}); err != nil {
			t.Fatal(err)
		}
		return o
	}
	if o := apply(0, 12, `[["a", 5]]`); len(o.got) != 4 || len(o.rejected) != 0 {
		t.Errorf("%q, %v", o.got, o.rejected)
	}
	if o := apply(1, 13, `[["b", 5]]`); len(o.got) != 8 || len(o.rejected) != 0 { // each moved
		t.Errorf("%q, %v", o.got, o.rejected)
	}
}
