package mapping_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// packed are the contracts of the pack.
func packed(t testing.TB) avro.Catalogue {
	t.Helper()
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func endsOf(t *testing.T, now, former *mapping.Stage) *mapping.Ends {
	t.Helper()
	s, err := mapping.NewEnds(now, former, packed(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Lost if this fails: what only the former rules gave stays in every dashboard; or
// a record is ended that the rules in force do not give anew.
func TestEnds(t *testing.T) {
	keyed := func(key string) mapping.Topic {
		r := billRule()
		r.Key = theText(key)
		return r
	}
	whole := mapping.Topic{From: bills.Topic, To: "ps.invoice_line", Key: theText("whole-{id}"), Fields: billRule().Fields}
	whole.Fields = maps.Clone(whole.Fields)
	for _, f := range []string{"quantity", "unit_price", "amount"} {
		whole.Fields[f] = theText("=1")
	}
	elsewhere := entryRule()
	no := billRule()
	no.Where = "false"
	update := func(was, is string) func(b *change.Batch) {
		return func(b *change.Batch) {
			c := b.Append(bills, change.Update)
			c.Old, c.New = bill(b, 7, was), bill(b, 7, is)
		}
	}
	created := func(lines string) func(b *change.Batch) {
		return func(b *change.Batch) { b.Append(bills, change.Create).New = bill(b, 7, lines) }
	}
	for name, c := range map[string]struct {
		now, former mapping.Topic
		fill        func(b *change.Batch)
		want        []string
	}{
		"the same":                  {billRule(), billRule(), created(`[["a", 5]]`), nil},
		"a condition":               {no, billRule(), created(`[["a", 5]]`), nil}, // the rule itself deletes it
		"another key":               {keyed(`"x-" + string(row.id) + "-" + item[0]`), billRule(), created(`[["a", 5], ["b", 6]]`), []string{"erp-7-a", "erp-7-b"}},
		"its former version":        {keyed(`"x-" + string(row.id) + "-" + item[0]`), billRule(), update(`[["a", 5]]`, `[["b", 5]]`), []string{"erp-7-b", "erp-7-a"}},
		"one of them is given":      {keyed(`"erp-" + string(row.id) + "-" + (item[0] == "a" ? "b" : item[0] == "b" ? "c" : item[0])`), billRule(), created(`[["a", 5], ["b", 6]]`), []string{"erp-7-a"}},
		"deleted":                   {whole, billRule(), func(b *change.Batch) { b.Append(bills, change.Delete).Old = bill(b, 7, `[["a", 5]]`) }, []string{"erp-7-a"}},
		"no list any more":          {whole, billRule(), created(`[["a", 5]]`), []string{"erp-7-a"}},
		"a list now":                {billRule(), whole, created(`[["a", 5]]`), []string{"whole-7"}},
		"a list that cannot be now": {billRule(), whole, created(`{"no": "list"}`), []string{"whole-7"}},
		"none of the topic":         {elsewhere, whole, created(`[]`), []string{"whole-7"}},
		"another topic":             {billRule(), elsewhere, created(`[["a", 5]]`), nil},
		"a list that was none":      {whole, billRule(), created(`{"no": "list"}`), nil},
		"truncated":                 {whole, billRule(), func(b *change.Batch) { b.Append(bills, change.Truncate) }, nil},
		"a message":                 {whole, billRule(), func(b *change.Batch) { b.Append(bills, change.Message) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b, o := change.Get(), &outlet{}
			c.fill(b)
			if err := endsOf(t, rules(t, c.now), rules(t, c.former)).Apply(t.Context(), b, o); err != nil {
				t.Fatal(err)
			}
			var ended []string
			for _, g := range o.got {
				ended = append(ended, strings.TrimRight(strings.TrimPrefix(g, "ps.invoice_line d "), "?|"))
			}
			want(t, ended, c.want...)
		})
	}
}

// A key that is written otherwise cannot be named; one of a topic that no contract
// is of any more is.
func TestEndsOfOtherContracts(t *testing.T) {
	pair := func(key, topic string) avro.Catalogue {
		return catalogue(t, `{"type": "record", "name": "Pair", "namespace": "firm", "doc": "A pair.", "topic": "`+topic+`", "key": [`+key+`], "owner": "sales", "fields": [
		{"name": "right", "type": "string", "doc": "Other.", "owner": "sales", "sensitivity": "internal"},
		{"name": "left", "type": "string", "doc": "One.", "owner": "sales", "sensitivity": "internal"}]}`)
	}
	stage := func(all avro.Catalogue, topic string) *mapping.Stage {
		s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{{From: bills.Topic, To: topic, Fields: texts(map[string]string{"left": "l-{id}", "right": "r-{id}"})}}}, all, nil)
		if err != nil {
			t.Fatal(problem.Format(err))
		}
		return s
	}
	former := stage(twoKeys(t), "firm.pair")
	for name, c := range map[string]struct {
		all  avro.Catalogue
		now  string
		want string
	}{
		"other order of fields": {pair(`"left", "right"`, "firm.pair"), "firm.pair", ""},
		"no contract":           {pair(`"left"`, "firm.other"), "firm.other", "firm.pair d l-7|r-7|"},
	} {
		t.Run(name, func(t *testing.T) {
			ends, err := mapping.NewEnds(stage(c.all, c.now), former, c.all)
			if err != nil {
				t.Fatal(err)
			}
			b, o := change.Get(), &outlet{}
			b.Append(bills, change.Create).New = bill(b, 7, "")
			if err := ends.Apply(t.Context(), b, o); err != nil || strings.Join(o.got, "") != c.want {
				t.Errorf("%v %q", err, o.got)
			}
		})
	}
	all := pair(`"right", "left"`, "firm.pair")
	_, err := mapping.NewEnds(stage(all, "firm.pair"), former, all)
	if !problem.Has(err, mapping.ErrConfig) || !strings.Contains(err.Error(), "the key of firm.pair was left, right and is right, left") {
		t.Error(err)
	}
}

// Rules in force that a row's table does not fit are told; former ones gave nothing.
func TestEndsOfOtherColumns(t *testing.T) {
	other := billRule()
	other.Fields = maps.Clone(other.Fields)
	other.Fields["project_id"] = theText("gone")
	b, o := change.Get(), &outlet{}
	b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5]]`)
	if err := endsOf(t, rules(t, other), rules(t, billRule())).Apply(t.Context(), b, o); !problem.Has(err, mapping.ErrColumn) {
		t.Error(err)
	}
	b = change.Get()
	b.Append(bills, change.Create).New = bill(b, 7, `[["a", 5]]`)
	if err := endsOf(t, rules(t, billRule()), rules(t, other)).Apply(t.Context(), b, o); err != nil || len(o.got) > 0 {
		t.Error(err, o.got)
	}
}

// aliveOutlet keeps the last record of each key.
type aliveOutlet map[string]string

func (o aliveOutlet) Send(_ context.Context, b *change.Batch) error {
	for i := range b.Changes {
		c := &b.Changes[i]
		key := c.Table.Topic + " " + string(change.AppendKey(nil, b, c))
		if delete(o, key); c.Op != change.Delete {
			var text []byte
			for _, v := range c.New {
				text = append(b.AppendText(text, v), '|')
			}
			o[key] = string(text)
		}
	}
	b.Release()
	return nil
}
func (o aliveOutlet) Reject(*change.Change, error) {}

// Whatever the rules were and are, and whatever became of the rows: after a switch
// there is what there would be had the rules in force been there always.
func TestPropertySwitchIsAsIfItHadAlwaysBeen(t *testing.T) {
	each := func(key, where string) mapping.Topic {
		r := billRule()
		r.Key, r.Where = theText(key), where
		return r
	}
	whole := func(key, where string) mapping.Topic {
		return mapping.Topic{From: bills.Topic, To: "ps.invoice_line", Key: theText(key), Where: where, Fields: texts(map[string]string{
			"invoice_id": "erp-{id}", "project_id": "project", "quantity": "=1", "unit_price": "=1", "amount": "=1",
		})}
	}
	sets := [][]mapping.Topic{
		{each(`"a-" + string(row.id) + "-" + item[0]`, "")},
		{each(`"a-" + string(row.id) + "-" + string(index)`, "")},
		{each(`"b-" + string(row.id) + "-" + item[0]`, "item[1] > 1"), whole("w-{id}", "")},
		{whole("{id}", "row.id != 2")},
		{whole(`string(row.id + 1)`, "")}, // the key of the row beside it
		{whole("w-{id}", `row.lines != null`)},
		{entryRule()},
	}
	stages := make([]*mapping.Stage, len(sets))
	for i, s := range sets {
		stages[i] = rules(t, s...)
	}
	names := []string{"x", "y", "z"}
	rapid.Check(t, func(rt *rapid.T) {
		now, former := stages[rapid.IntRange(0, len(sets)-1).Draw(rt, "now")], stages[rapid.IntRange(0, len(sets)-1).Draw(rt, "former")]
		var history []func(b *change.Batch)
		rows := map[int64]string{}
		for range rapid.IntRange(0, 12).Draw(rt, "changes") {
			id := int64(rapid.IntRange(1, 3).Draw(rt, "id"))
			var of []string
			for _, n := range rapid.Permutation(names).Draw(rt, "order")[:rapid.IntRange(0, 3).Draw(rt, "elements")] {
				of = append(of, fmt.Sprintf(`[%q, %d]`, n, rapid.IntRange(0, 3).Draw(rt, "amount")))
			}
			is := rapid.SampledFrom([]string{"[" + strings.Join(of, ", ") + "]", "[" + strings.Join(of, ", ") + "]", "", `"no list"`}).Draw(rt, "list")
			was, there := rows[id]
			gone := there && rapid.IntRange(0, 3).Draw(rt, "deleted") == 0
			if rows[id] = is; gone {
				delete(rows, id)
			}
			history = append(history, func(b *change.Batch) {
				c := b.Append(bills, change.Create)
				if there {
					c.Op, c.Old = change.Update, bill(b, id, was)
				}
				if c.New = bill(b, id, is); gone {
					c.Op, c.New = change.Delete, nil
				}
			})
		}
		runs := func(st pipeline.Stage, to aliveOutlet) {
			for _, h := range history {
				b := change.Get()
				h(b)
				if err := st.Apply(t.Context(), b, to); err != nil {
					rt.Fatal(err)
				}
			}
		}
		switched, always := aliveOutlet{}, aliveOutlet{}
		if len(history) > 0 && former != stages[len(sets)-1] {
			runs(former, switched)
		}
		ends, err := mapping.NewEnds(now, former, packed(t))
		if err != nil {
			rt.Fatal(err)
		}
		runs(ends, switched)
		if now != stages[len(sets)-1] { // it does not read these rows
			runs(now, switched)
			runs(now, always)
		}
		// A row that is rejected now stays as it was given before; here: whole lists.
		for key := range switched {
			if _, is := always[key]; !is && slices.ContainsFunc(slices.Collect(maps.Values(rows)), func(l string) bool { return l == `"no list"` }) {
				continue
			} else if !is {
				rt.Fatalf("%s is there still; of %v", key, rows)
			}
		}
		for key, text := range always {
			if switched[key] != text {
				rt.Fatalf("%s is %q, not %q", key, switched[key], text)
			}
		}
	})
}

// A record that is older than the rules says so: the table has the column by now.
func TestShapeOfAnOlderRecord(t *testing.T) {
	other := billRule()
	other.Fields = maps.Clone(other.Fields)
	other.Fields["project_id"] = theText("project_no")
	b := change.Get()
	c := b.Append(bills, change.Create)
	c.New, c.Time, c.Coord = bill(b, 7, ""), 1_780_000_000_000_000, change.Coord{Topic: &change.Topic{Name: bills.Topic}, Partition: 3, Offset: 17}
	err := rules(t, other).Apply(t.Context(), b, &outlet{})
	if want := `erp.public.bill has no column "project_no" for field project_id of ps.invoice_line; so says the schema of the record at offset 17 of partition 3, of 2026-05-28 20:26:40`; !problem.Has(err, mapping.ErrColumn) || !strings.Contains(err.Error(), want) {
		t.Error(err)
	}
}
