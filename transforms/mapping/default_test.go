package mapping_test

import (
	"context"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	cfg "github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/transforms/mapping"
)

// shift is a contract with fields that are never null and have a default.
const shift = `{"type": "record", "name": "Shift", "namespace": "firm", "doc": "A shift.", "topic": "firm.shift", "key": ["shift_id"], "owner": "people", "fields": [
	{"name": "shift_id", "type": "string", "doc": "Id.", "owner": "people", "sensitivity": "internal"},
	{"name": "comments", "type": "string", "default": "none", "doc": "What was said.", "owner": "people", "sensitivity": "internal"},
	{"name": "kind", "type": "string", "values": ["day", "night"], "default": "day", "doc": "Of what kind.", "owner": "people", "sensitivity": "internal"},
	{"name": "rate", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, "default": "\u0096", "doc": "What an hour is.", "owner": "people", "sensitivity": "internal"},
	{"name": "bonus", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, "default": "\u0000", "doc": "What comes on top.", "owner": "people", "sensitivity": "internal"},
	{"name": "code", "type": "string", "default": "?", "doc": "Its code.", "owner": "people", "sensitivity": "internal"}]}`

func shiftRule(fields map[string]cfg.Scalar) mapping.Topic {
	return mapping.Topic{From: lines.Topic, To: "firm.shift", Key: theText("line-{id}"), Fields: fields}
}

func shiftStage(t *testing.T, fields map[string]cfg.Scalar) *mapping.Stage {
	t.Helper()
	s, err := mapping.New("canonical", mapping.Config{Topics: []mapping.Topic{shiftRule(fields)}}, catalogue(t, shift), codeList(t, statuses))
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	return s
}

// Lost if this fails: rows whose source has nothing for a field that the contract
// has a value for are parked, or say something that nobody wrote.
func TestDefaultsFillWhatIsNull(t *testing.T) {
	for name, c := range map[string]struct {
		fields map[string]cfg.Scalar
		want   string
	}{
		"no column, or null": {nil, "line-17|none|day|-1.06|0.00|?|"},
		"named": {map[string]cfg.Scalar{
			"comments": {Kind: cfg.NullScalar}, "kind": theText("comments"), "rate": theText("decimal(row.comments)"),
			"bonus": theText(`row.hours > 1.0 ? null : decimal("1")`), "code": theText("{comments}-{id}"),
		}, "line-17|none|day|-1.06|0.00|?|"},
		"with values": {map[string]cfg.Scalar{"comments": theText("project"), "kind": theText("=night"), "rate": theText(`decimal("1.5")`), "code": theText("{project}-{id}")}, "line-17|P-1|night|1.5|0.00|P-1-17|"},
	} {
		o := applied(t, shiftStage(t, c.fields), func(b *change.Batch) {
			b.Append(lines, change.Create).New = line(b, 17)
		})
		if len(o.rejected) > 0 {
			t.Errorf("%s: %v", name, o.rejected)
		}
		want(t, o.got, "firm.shift c "+c.want)
	}
	// What an update did not send is not null.
	o := applied(t, shiftStage(t, nil), func(b *change.Batch) {
		c := b.Append(lines, change.Update)
		c.New = line(b, 17)
		c.New[6] = change.UnchangedValue()
	})
	if len(o.got) > 0 || len(o.rejected) != 1 || !problem.Has(o.rejected[0], mapping.ErrUnchanged) {
		t.Errorf("%q, %v", o.got, o.rejected)
	}
}

// Told, since a column that was renamed looks the same as one that never was.
func TestDoctorNamesDefaults(t *testing.T) {
	var said []string
	for _, f := range findings(t, catalogue(t, shift), lines, shiftRule(map[string]cfg.Scalar{"kind": theText("=night")})) {
		if f.Err != nil {
			t.Error(f.Err)
		}
		said = append(said, f.Advice)
	}
	if all := strings.Join(said, "|"); !strings.Contains(all, `each record has the contract's default of rate ("-1.06"), bonus ("0.00"), code ("?"): psa.public.line has no such columns`) || strings.Contains(all, "nothing fills") {
		t.Error(all)
	}
}

// A default costs its own copy, and nothing that stays.
func TestDefaultsDoNotAllocate(t *testing.T) {
	s := shiftStage(t, nil)
	b := new(change.Batch)
	n := testing.AllocsPerRun(50, func() {
		b.Reset()
		for i := range 1000 {
			b.Append(lines, change.Create).New = line(b, int64(i))
		}
		if err := s.Apply(t.Context(), b, keep{}); err != nil {
			t.Fatal(err)
		}
	})
	if n > 2 {
		t.Errorf("%v allocations for 1000 changes", n)
	}
}

// findings are what doctor says of rules whose topics are filled from a table.
func findings(t *testing.T, all avro.Catalogue, table *change.Table, rs ...mapping.Topic) []pipeline.Finding {
	t.Helper()
	env := &pipeline.Env{Contracts: all, Codes: codeList(t, statuses), Tables: func(context.Context, string) (*change.Table, error) { return table, nil }}
	specs, err := mapping.Make(env, "canonical", func(into any) error {
		c := mapping.Defaults()
		c.Dedupe.Mode, c.Topics = "off", rs
		*into.(*mapping.Config) = c
		return nil
	})
	if err != nil {
		t.Fatal(problem.Format(err))
	}
	return specs[0].Stages[0].(pipeline.Doctor).Doctor(t.Context())
}
