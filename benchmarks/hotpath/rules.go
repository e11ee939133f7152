// Rules: what a mapping adds to a change that is decoded and encoded anyway.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/codes"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// ruleCost is a rule, and what it may add to one change.
type ruleCost struct {
	name   string
	most   time.Duration
	fields map[string]config.Scalar
	ns     float64
}

func ruleCosts() []*ruleCost {
	text := config.Text
	return []*ruleCost{
		{name: "columns, a template, constants", most: 300 * time.Nanosecond, fields: map[string]config.Scalar{
			"a": text("psa-{id}"), "b": text("user_id"), "c": text("comments"), "d": text("rate"), "e": text("spent_on"), "f": text("id"), "g": text("=EUR"),
			"h": {Kind: config.BoolScalar, Text: "true"}, "i": text("updated_on"), "j": text("status"),
		}},
		{name: "ten expressions", most: 5 * time.Microsecond, fields: map[string]config.Scalar{
			"a": text(`"psa-" + string(row.id)`), "b": text("string(row.user_id)"), "c": text(`coalesce(row.comments, "none")`), "d": text(`round(decimal(row.hours), 6, "half_even")`),
			"e": text("day(row.created_on)"), "f": text(`row.id + 1`), "g": text(`row.rate > 100 ? "high" : "low"`), "h": text("row.status == 3 && row.id > 0"),
			"i": text(`moment(row.created_on, "Europe/Berlin")`), "j": text(`code("status", row.status)`),
		}},
	}
}

// ruled is a table of an application that keeps its values in another form.
var ruled = (&change.Table{
	Source: "psa", Schema: "public", Name: "line", Topic: "psa.public.line", OldFull: true, Key: []int{0},
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int},
		{Name: "user_id", Type: "bigint", Kind: change.Int},
		{Name: "comments", Type: "text", Kind: change.String},
		{Name: "rate", Type: "numeric(12,4)", Kind: change.Decimal},
		{Name: "hours", Type: "double precision", Kind: change.Float64},
		{Name: "spent_on", Type: "date", Kind: change.Date},
		{Name: "created_on", Type: "timestamp", Kind: change.Timestamp},
		{Name: "updated_on", Type: "timestamptz", Kind: change.TimestampTZ},
		{Name: "status", Type: "bigint", Kind: change.Int},
	},
}).Index()

const ruleContract = `{"type": "record", "name": "Line", "namespace": "bench", "topic": "bench.line", "key": ["a"], "doc": "A line.", "owner": "bench", "fields": [
%s]}`

// ruleCatalogue holds the contract that the rules fill.
func ruleCatalogue(dir string) (avro.Catalogue, codes.Lists, error) {
	fields := ""
	for i, typ := range []string{
		`"string"`, `"string"`, `"string"`, `{"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 6}`, `{"type": "int", "logicalType": "date"}`,
		`"long"`, `"string"`, `"boolean"`, `{"type": "long", "logicalType": "timestamp-micros"}`, `"string"`,
	} {
		if i > 0 {
			fields += ",\n"
		}
		fields += fmt.Sprintf(`  {"name": %q, "type": %s, "doc": "One.", "owner": "bench", "sensitivity": "internal"}`, string(rune('a'+i)), typ)
	}
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "line.avsc"), fmt.Appendf(nil, ruleContract, fields), 0o600),
		os.WriteFile(filepath.Join(dir, "status.csv"), []byte("code,value\n1,draft\n2,submitted\n3,approved\n"), 0o600))
	if err != nil {
		return nil, nil, err
	}
	all, err := avro.LoadCatalogue(dir)
	if err != nil {
		return nil, nil, err
	}
	lists, err := codes.Load(dir)
	return all, lists, err
}

// discard ends a batch, as what follows the stage would.
type discard struct{ rejected error }

func (d *discard) Send(_ context.Context, b *change.Batch) error {
	b.Release()
	return nil
}
func (d *discard) Reject(_ *change.Change, err error) { d.rejected = errors.Join(d.rejected, err) }

// measureRules times the rules, in turns.
func measureRules(ctx context.Context, turns int) ([]*ruleCost, error) {
	dir, err := os.MkdirTemp("", "hotpath")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of a temporary folder
	all, lists, err := ruleCatalogue(dir)
	if err != nil {
		return nil, err
	}
	costs := ruleCosts()
	stages := make([]*mapping.Stage, len(costs))
	took := make([][]time.Duration, len(costs))
	for i, c := range costs {
		cfg := mapping.Config{Topics: []mapping.Topic{{From: ruled.Topic, To: "bench.line", Fields: c.fields}}}
		if stages[i], err = mapping.New("bench", cfg, all, lists); err != nil {
			return nil, err
		}
	}
	for range turns {
		for i, s := range stages {
			var sum time.Duration
			for range turnBatches {
				b, out := change.Get(), &discard{}
				for n := range int64(batchRows) {
					b.Append(ruled, change.Create).New = ruledRow(b, n)
				}
				began := time.Now()
				err := s.Apply(ctx, b, out)
				sum += time.Since(began)
				if err := errors.Join(err, out.rejected); err != nil {
					return nil, err
				}
			}
			took[i] = append(took[i], sum)
		}
	}
	for i, c := range costs {
		c.ns = float64(quartile(took[i]).Nanoseconds()) / (turnBatches * batchRows)
	}
	return costs, nil
}

func ruledRow(b *change.Batch, n int64) []change.Value {
	row := b.Row(len(ruled.Columns))
	at := int64(1_780_000_000_000_000) + n*1_000_000
	for i, v := range []change.Value{
		change.IntValue(n + 1), change.IntValue(n % 97), b.SpanString(change.String, "Workshop with the customer's controllers"), change.DecimalValue(1_205_000+n, 4),
		change.Float64Value(float64(n%32) / 4), change.DateValue(20_600 + n%30), change.TimestampValue(at), change.TimestampTZValue(at), change.IntValue(n%3 + 1),
	} {
		row[i] = v
	}
	return row
}

// tooSlow are the rules that add more than they may.
func tooSlow(costs []*ruleCost) (bad []error) {
	for _, c := range costs {
		if c.ns > float64(c.most.Nanoseconds()) {
			bad = append(bad, fmt.Errorf("a rule of %s adds %.0f ns to a change, allowed are %d", c.name, c.ns, c.most.Nanoseconds()))
		}
	}
	return bad
}
