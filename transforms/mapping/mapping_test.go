package mapping_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
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

// texts are fields as YAML has them.
func texts(fields map[string]string) map[string]cfg.Scalar {
	out := map[string]cfg.Scalar{}
	for name, text := range fields {
		out[name] = cfg.Text(text)
	}
	return out
}

func theText(s string) cfg.Scalar { return cfg.Text(s) }

func config() mapping.Config {
	c := mapping.Defaults()
	c.Topics = []mapping.Topic{{From: rates.Topic, To: "ps.cost_rate", Fields: texts(map[string]string{
		"cost_rate_id": "{employee_id}/{id}", "resource_id": "employee_id",
	})}}
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
	s, err := mapping.New("canonical", config(), nil, nil)
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
		{"field", func(c *mapping.Config) { c.Topics[0].Fields["resourceid"] = theText("x") }, "transforms.canonical.topics[0].fields.resourceid", "no field", "resource_id?"},
		{"template", func(c *mapping.Config) { c.Topics[0].Fields["resource_id"] = theText("{a") }, "transforms.canonical.topics[0].fields.resource_id@1:3", "mismatched input", ""},
		{"template for a number", func(c *mapping.Config) { c.Topics[0].Fields["rate"] = theText("{a}") }, "transforms.canonical.topics[0].fields.rate", "makes text", ""},
		{"twice", func(c *mapping.Config) { c.Topics = append(c.Topics, c.Topics[0]) }, "transforms.canonical.topics[1].fields.cost_rate_id", "filled from psa.public.cost_rate too", ""},
		{"two sources, one key", func(c *mapping.Config) { another(c, "{employee_id}/{id}") }, "transforms.canonical.topics[1].fields.cost_rate_id", "filled from psa.public.cost_rate too", `cost_rate_id: "hcm-public-rate-{id}"`},
		{"two tables, one key of which begins as the other", func(c *mapping.Config) {
			c.Topics[0].Fields["cost_rate_id"] = theText("hcm-{id}")
			another(c, "hcm-rate-{id}")
		}, "transforms.canonical.topics[1].fields.cost_rate_id", "too", `cost_rate_id: "rate-{id}"`},
		{"two sources, a prefix of the other's", func(c *mapping.Config) { another(c, "hcm-{id}") }, "transforms.canonical.topics[1].fields.cost_rate_id", "too", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config()
			c.change(&cfg)
			_, err := mapping.New("canonical", cfg, nil, nil)
			e := problem.Of(err)
			if e == nil || e.ID != "TW-MAP-CONFIG" || e.Where != c.where || !strings.Contains(e.Text, c.says) || !strings.Contains(e.WhatToDo(), c.remedy) {
				t.Errorf("got %s", problem.Format(err))
			}
		})
	}
}

// another has a second topic fill ps.cost_rate, under keys of a form.
func another(c *mapping.Config, key string) {
	c.Topics = append(c.Topics, mapping.Topic{From: "hcm.public.rate", To: "ps.cost_rate", Fields: texts(map[string]string{"cost_rate_id": key, "resource_id": "employee_id"})})
}

// Several systems may fill one entity when their keys tell them apart.
func TestSeveralSourcesOfOneEntity(t *testing.T) {
	cfg := config()
	cfg.Topics[0].Fields["cost_rate_id"] = theText("psa-{id}")
	another(&cfg, "hcm-{id}")
	s, err := mapping.New("canonical", cfg, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.From(), s.To()); got != "[psa.public.cost_rate hcm.public.rate] [ps.cost_rate]" {
		t.Error(got)
	}
	other := *rates
	other.Topic = "hcm.public.rate"
	o := &outlet{}
	for _, table := range []*change.Table{rates, other.Index()} {
		b := change.Get()
		b.Append(table, change.Create).New = rate(b, 17, 12)
		if err := s.Apply(t.Context(), b, o); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(o.got, " "); !strings.Contains(got, "ps.cost_rate c psa-17|12|") || !strings.Contains(got, "ps.cost_rate c hcm-17|12|") {
		t.Error(got)
	}
}

// A column that is missing halts: guessing would fill the field with nothing.
func TestMissingColumnHalts(t *testing.T) {
	cfg := config()
	cfg.Topics[0].Fields["resource_id"] = theText("employee")
	s, err := mapping.New("canonical", cfg, nil, nil)
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
		s, err := mapping.New("canonical", cfg, nil, nil)
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

// Lost if this fails: a status that nobody knows decides in silence that nothing
// is posted; a kind, that a credit note is added to the revenue.
func TestClosedListsAreClosed(t *testing.T) {
	entries := (&change.Table{
		Source: "psa", Schema: "public", Name: "time_entry", Topic: "psa.public.time_entry", OldFull: true,
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int},
			{Name: "text", Type: "text", Kind: change.String},
			{Name: "day", Type: "date", Kind: change.Date},
			{Name: "hours", Type: "numeric(6,2)", Kind: change.Decimal, Precision: 6, Scale: 2},
			{Name: "billable", Type: "boolean", Kind: change.Bool},
			{Name: "at", Type: "timestamp with time zone", Kind: change.TimestampTZ},
			{Name: "status", Type: "approval", Kind: change.Enum},
			{Name: "none", Type: "text", Kind: change.String, Nullable: true},
		},
		Key: []int{0},
	}).Index()
	fields := func(status string) map[string]string {
		return map[string]string{
			"time_entry_id": "id", "resource_id": "text", "project_id": "text", "task_number": "text", "work_date": "day", "created_at": "at", "updated_at": "at",
			"note": "none", "bill_rate": "hours", "status": status,
		}
	}
	run := func(status, is string) *outlet {
		s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{{From: entries.Topic, To: "ps.time_entry", Fields: texts(fields(status))}}}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, out := change.Get(), &outlet{}
		row := b.Row(8)
		row[0], row[1], row[2], row[3], row[4], row[5] = change.IntValue(1), b.SpanString(change.String, is), change.DateValue(20000), change.DecimalValue(750, 2), change.BoolValue(true), change.TimestampTZValue(1)
		row[6], row[7] = b.SpanString(change.Enum, is), change.NullValue()
		b.Append(entries, change.Create).New = row
		if err := s.Apply(t.Context(), b, out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, status := range []string{"status", "text", "{text}"} {
		o := run(status, "Approved")
		if len(o.got) != 0 || len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrValue) ||
			!strings.Contains(o.rejected[0].Error(), `field status of ps.time_entry is "Approved", none of draft, submitted, approved, rejected; did you mean "approved"?`) {
			t.Errorf("%s: %q, rejected %v", status, o.got, o.rejected)
		}
		if o = run(status, "approved"); len(o.got) != 1 || len(o.rejected) != 0 { // Remedy: TW-MAP-VALUE
			t.Errorf("%s: %q, rejected %v", status, o.got, o.rejected)
		}
	}
	if o := run("=submitted", "x"); len(o.got) != 1 {
		t.Errorf("a constant of the list: %v", o.rejected)
	}
	_, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{{From: entries.Topic, To: "ps.time_entry", Fields: texts(fields("=aproved"))}}}, nil, nil)
	if !problem.Has(err, mapping.ErrConfig) || !strings.Contains(err.Error(), `did you mean "approved"?`) {
		t.Errorf("a constant that is none of the list: %v", err)
	}
}

// Lost if this fails: a firm that does not have all that a contract may hold
// cannot fill it at all; or a field that is named wrong is null in silence.
func TestFieldsThatNoColumnHas(t *testing.T) {
	few := *rates
	few.Columns = append(append([]change.Column(nil), rates.Columns[:3]...), rates.Columns[4:]...) // no valid_to
	less := few.Index()
	apply := func(cfg mapping.Config) (*outlet, error) {
		s, err := mapping.New("canonical", cfg, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, o := change.Get(), &outlet{}
		row := b.Row(6)
		copy(row, rate(b, 55, 12)[:3])
		copy(row[3:], rate(b, 55, 12)[4:])
		b.Append(less, change.Create).New = row
		return o, s.Apply(t.Context(), b, o)
	}
	o, err := apply(config())
	if err != nil || len(o.got) != 1 || !strings.HasPrefix(o.got[0], "ps.cost_rate c 12/55|12|2024-10-04||82.5000|EUR|") {
		t.Errorf("%q, %v, rejected %v", o.got, err, o.rejected)
	}
	var advice []string
	for _, f := range examine(t, less, nil) {
		if f.Err != nil {
			t.Error(f.Err)
		}
		advice = append(advice, f.Advice)
	}
	if text := strings.Join(advice, "|"); !strings.Contains(text, "nothing fills valid_to: psa.public.cost_rate has no such columns") {
		t.Errorf("doctor says %q", text)
	}
	cfg := config()
	cfg.Topics[0].Fields["valid_to"] = theText("valid_until")
	if _, err := apply(cfg); !problem.Has(err, mapping.ErrColumn) {
		t.Errorf("a column that is named and not there: %v", err)
	}
	less.Columns[2].Name = "from" // valid_from, which is never null
	less.Index()
	if _, err := apply(config()); !problem.Has(err, mapping.ErrColumn) {
		t.Errorf("a field that is never null: %v", err)
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
	s, err := mapping.New("canonical", config(), nil, nil)
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
	s, err := mapping.New("canonical", config(), nil, nil)
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
