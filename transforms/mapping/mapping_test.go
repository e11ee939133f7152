package mapping_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/transforms/mapping"
)

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	goleak.VerifyTestMain(m)
}

var rates = (&change.Table{
	Source: "psa", Schema: "public", Name: "cost_rate", Topic: "psa.public.cost_rate", OldFull: true,
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int},
		{Name: "employee_id", Type: "bigint", Kind: change.Int},
		{Name: "valid_from", Type: "date", Kind: change.Date},
		{Name: "valid_to", Type: "date", Kind: change.Date, Nullable: true},
		{Name: "rate", Type: "numeric(12,4)", Kind: change.Decimal, Precision: 12, Scale: 4},
		{Name: "currency", Type: "character(3)", Kind: change.String},
		{Name: "updated_at", Type: "timestamp with time zone", Kind: change.TimestampTZ},
	},
	Key: []int{0},
}).Index()

func config() mapping.Config {
	c := mapping.Defaults()
	c.Topics = []mapping.Topic{{From: rates.Topic, To: "ps.cost_rate", Fields: map[string]string{
		"cost_rate_id": "{employee_id}/{id}", "resource_id": "employee_id",
	}}}
	return c
}

func rate(b *change.Batch, id, employee int64) []change.Value {
	row := b.Row(7)
	row[0], row[1], row[2] = change.IntValue(id), change.IntValue(employee), change.DateValue(20000)
	row[4], row[5], row[6] = change.DecimalValue(825000, 4), b.SpanString(change.String, "EUR"), change.TimestampTZValue(1)
	return row
}

// outlet writes down what comes.
type outlet struct {
	got      []string
	rejected []error
}

func (o *outlet) Send(_ context.Context, b *change.Batch) error {
	for i := range b.Changes {
		c := &b.Changes[i]
		var text []byte
		for _, v := range c.Row() {
			if v.IsUnchanged() {
				text = append(text, '?')
			}
			text = append(b.AppendText(text, v), '|')
		}
		o.got = append(o.got, fmt.Sprintf("%s %c %s", c.Table.Topic, c.Op, text))
	}
	b.Release()
	return nil
}
func (o *outlet) Reject(_ *change.Change, err error) { o.rejected = append(o.rejected, err) }

func apply(t *testing.T, fill func(b *change.Batch)) *outlet {
	t.Helper()
	s, err := mapping.New("canonical", config())
	if err != nil {
		t.Fatal(err)
	}
	b, out := change.Get(), &outlet{}
	fill(b)
	if err := s.Apply(t.Context(), b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func want(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// Wrong ids here would give every margin a wrong cost.
func TestRowsBecomeCanonical(t *testing.T) {
	o := apply(t, func(b *change.Batch) {
		b.Append(rates, change.Create).New = rate(b, 55, 12)
		b.Append(rates, change.Delete).Old = rate(b, 56, 12)
	})
	want(t, o.got,
		"ps.cost_rate c 12/55|12|2024-10-04||82.5000|EUR|1970-01-01 00:00:00.000001+00|",
		"ps.cost_rate d 12/56|?|?|?|?|?|?|")
}

// A rate moved to another person keeps its key at the source, not here: were
// the old canonical key not deleted, that person's hours would keep a cost.
func TestKeyChangeDeletesTheOldKey(t *testing.T) {
	o := apply(t, func(b *change.Batch) {
		b.Append(rates, change.Update).New = rate(b, 54, 12)
		b.Changes[0].Old = rate(b, 54, 12)
		c := b.Append(rates, change.Update)
		c.Old, c.New = rate(b, 55, 12), rate(b, 55, 13)
		b.Append(rates, change.Update).New = rate(b, 56, 12)
		b.Changes[2].Old = rate(b, 56, 12)
	})
	rest := "|2024-10-04||82.5000|EUR|1970-01-01 00:00:00.000001+00|"
	want(t, o.got,
		"ps.cost_rate u 12/54|12"+rest,
		"ps.cost_rate d 12/55|?|?|?|?|?|?|",
		"ps.cost_rate u 13/55|13"+rest,
		"ps.cost_rate u 12/56|12"+rest)
}

func TestRejects(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(b *change.Batch)
		code problem.Code
		says string
	}{
		{"null", func(b *change.Batch) {
			b.Append(rates, change.Create).New = rate(b, 55, 12)
			b.Changes[0].New[5] = change.NullValue()
		}, mapping.ErrNull, "field currency of ps.cost_rate"},
		{"unchanged", func(b *change.Batch) {
			b.Append(rates, change.Update).New = rate(b, 55, 12)
			b.Changes[0].Old = nil
			b.Changes[0].New[5] = change.UnchangedValue()
		}, mapping.ErrUnchanged, "column currency"},
		{"update without its old row", func(b *change.Batch) {
			b.Append(rates, change.Update).New = rate(b, 55, 12)
		}, mapping.ErrUnchanged, "the old row"},
		{"delete of which only the key is known", func(b *change.Batch) {
			b.Append(rates, change.Delete).Old = rate(b, 55, 12)
			b.Changes[0].Old[1] = change.UnchangedValue()
		}, mapping.ErrUnchanged, "column employee_id"},
		{"truncate", func(b *change.Batch) { b.Append(rates, change.Truncate) }, mapping.ErrTruncate, "public.cost_rate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := apply(t, func(b *change.Batch) {
				c.make(b)
				b.Append(rates, change.Create).New = rate(b, 99, 1) // goes on
			})
			if len(o.rejected) != 1 || !problem.Has(o.rejected[0], c.code) || !strings.Contains(o.rejected[0].Error(), c.says) {
				t.Errorf("rejected %v, want %s with %q", o.rejected, c.code.ID, c.says)
			}
			if len(o.got) != 1 || !strings.HasPrefix(o.got[0], "ps.cost_rate c 1/99") {
				t.Errorf("the record after it: %q", o.got)
			}
			if c.code.ID != mapping.ErrTruncate.ID {
				return
			}
			// Remedy: TW-MAP-TRUNCATE
			again := apply(t, func(b *change.Batch) { b.Append(rates, change.Read).New = rate(b, 99, 1) })
			want(t, again.got, strings.Replace(o.got[0], " c ", " r ", 1)) // it stands in place of the former one
		})
	}
}

// A value that an update did not send is in the old row under REPLICA IDENTITY
// FULL, and no Unchanged may enter a compacted topic.
func TestUnchangedIsCompletedFromTheOldRow(t *testing.T) {
	o := apply(t, func(b *change.Batch) {
		c := b.Append(rates, change.Update)
		c.Old, c.New = rate(b, 55, 12), rate(b, 55, 12)
		c.New[5] = change.UnchangedValue()
	})
	if len(o.got) != 1 || !strings.Contains(o.got[0], "|EUR|") || len(o.rejected) != 0 {
		t.Errorf("got %q, rejected %v", o.got, o.rejected)
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*mapping.Config)
		where  string
		says   string
		remedy string
	}{
		{"topic", func(c *mapping.Config) { c.Topics[0].To = "ps.cost_rates" }, "transforms.canonical.topics[0].to", `topic "ps.cost_rates" has no contract`, "ps.cost_rate?"},
		{"field", func(c *mapping.Config) { c.Topics[0].Fields["resourceid"] = "x" }, "transforms.canonical.topics[0].fields.resourceid", "no field", "resource_id?"},
		{"template", func(c *mapping.Config) { c.Topics[0].Fields["resource_id"] = "{a" }, "transforms.canonical.topics[0].fields.resource_id", "{ without", ""},
		{"template for a number", func(c *mapping.Config) { c.Topics[0].Fields["rate"] = "{a}" }, "transforms.canonical.topics[0].fields.rate", "makes text", ""},
		{"twice", func(c *mapping.Config) { c.Topics = append(c.Topics, c.Topics[0]) }, "transforms.canonical.topics[1].from", "twice", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			c.change(&cfg)
			_, err := mapping.New("canonical", cfg)
			e := problem.Of(err)
			if e == nil || e.ID != "TW-MAP-CONFIG" || e.Where != c.where || !strings.Contains(e.Text, c.says) || !strings.Contains(e.WhatToDo(), c.remedy) {
				t.Errorf("got %s", problem.Format(err))
			}
		})
	}
}

// A column that is missing halts: guessing would fill the field with nothing.
func TestMissingColumnHalts(t *testing.T) {
	cfg := config()
	cfg.Topics[0].Fields["resource_id"] = "employee"
	s, err := mapping.New("canonical", cfg)
	if err != nil {
		t.Fatal(err)
	}
	b := change.Get()
	b.Append(rates, change.Create).New = rate(b, 55, 12)
	err = s.Apply(t.Context(), b, &outlet{})
	e := problem.Of(err)
	if e == nil || e.ID != "TW-MAP-COLUMN" || e.Class != problem.Halt || e.Where != "transforms.canonical.topics[0].fields.resource_id" ||
		!strings.Contains(e.WhatToDo(), "employee_id?") {
		t.Fatalf("got %s", problem.Format(err))
	}
}

// A record of a topic that is not mapped would be dropped without a word.
func TestUnmappedTopicHalts(t *testing.T) {
	other := *rates
	other.Topic = "psa.public.other"
	give := func(cfg mapping.Config) error {
		s, err := mapping.New("canonical", cfg)
		if err != nil {
			t.Fatal(err)
		}
		b := change.Get()
		b.Append(other.Index(), change.Create).New = rate(b, 55, 12)
		return s.Apply(t.Context(), b, &outlet{})
	}
	if err := give(config()); !problem.Has(err, mapping.ErrUnmapped) {
		t.Fatalf("got %v, want TW-MAP-TABLE", err)
	}
	cfg := config() // Remedy: TW-MAP-TABLE
	cfg.Topics[0].From = other.Topic
	if err := give(cfg); err != nil {
		t.Error(err)
	}
}

// keep takes batches and gives them back.
type keep struct{}

func (keep) Send(context.Context, *change.Batch) error { return nil }
func (keep) Reject(*change.Change, error)              {}

func fill(b *change.Batch, n int) {
	for i := range n {
		c := b.Append(rates, change.Update)
		c.Old, c.New = rate(b, int64(i), 12), rate(b, int64(i), 12)
	}
}

// Zero allocations per change once warm: what is kept per change would limit
// the whole flow.
func TestAllocations(t *testing.T) {
	s, err := mapping.New("canonical", config())
	if err != nil {
		t.Fatal(err)
	}
	b := new(change.Batch)
	n := testing.AllocsPerRun(50, func() {
		b.Reset()
		fill(b, 1000)
		if err := s.Apply(t.Context(), b, keep{}); err != nil {
			t.Fatal(err)
		}
	})
	if n > 2 {
		t.Errorf("%v allocations for 1000 changes", n)
	}
}

func BenchmarkMapping(bm *testing.B) {
	s, err := mapping.New("canonical", config())
	if err != nil {
		bm.Fatal(err)
	}
	b := new(change.Batch)
	bm.ReportAllocs()
	for range bm.N {
		b.Reset()
		fill(b, 1000)
		if err := s.Apply(bm.Context(), b, keep{}); err != nil {
			bm.Fatal(err)
		}
	}
	bm.ReportMetric(float64(bm.Elapsed().Nanoseconds())/float64(bm.N)/1000, "ns/change")
}
