package avro_test

import (
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// Claims are compared by where their source has them. If this failed, of two rows that
// have one key the one that arrived last would win, not the one that changed last.
func TestOwnTopicsTellPositions(t *testing.T) {
	pos := change.Pos{System: 1, LSN: 7, Kind: change.PosCommit, Ordinal: 1}
	pack, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for c, want := range map[*avro.Contract]change.Pos{avro.Claims("m"): pos, avro.Rows(avro.RowsTopic("m", "psa.public.task")): pos, pack["ps.project"]: {}} {
		topic := c.Topic
		reg := newRegistry(t)
		enc, dec := newEncoder(t, reg, c.Table), avro.NewDecoder(reg)
		b := change.Get()
		in := b.Append(c.Table, change.Update)
		in.New = b.Row(len(c.Table.Columns))
		for i, col := range c.Table.Columns {
			switch {
			case col.Nullable:
			case col.Kind == change.Bytes:
				in.New[i] = b.Span(change.Bytes, []byte("x"))
			case col.Kind == change.Bool:
				in.New[i] = change.BoolValue(true)
			case col.Kind == change.Date:
				in.New[i] = change.DateValue(1)
			case col.Kind == change.TimestampTZ:
				in.New[i] = change.TimestampTZValue(1)
			default:
				in.New[i] = b.SpanString(change.String, "x")
			}
		}
		key, err := enc.AppendKey(nil, b, in)
		if err != nil {
			t.Fatal(err)
		}
		value, err := enc.AppendValue(nil, b, in)
		if err != nil {
			t.Fatal(err)
		}
		out := change.Get()
		at := change.Coord{Topic: &change.Topic{Name: topic}}
		if err := dec.Append(t.Context(), out, at, key, value, avro.Headers{Pos: change.AppendPos(nil, pos)}, 0); err != nil {
			t.Fatal(err)
		}
		if got := out.Changes[0].Pos; got != want {
			t.Errorf("%s: position %+v, want %+v", topic, got, want)
		}
		if topic == "ps.project" {
			continue
		}
		if err := dec.Append(t.Context(), out, at, key, nil, avro.Headers{}, 0); err != nil || out.Changes[1].Op != change.Delete {
			t.Errorf("a tombstone of %s: %v", topic, err)
		}
	}
}
