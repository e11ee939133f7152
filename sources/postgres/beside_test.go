package postgres

import (
	"slices"
	"testing"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

func TestSnapshotSees(t *testing.T) {
	s, err := parseSnapshot("100:110:102,4294967400")
	if err != nil {
		t.Fatal(err)
	}
	for xid, want := range map[decimal]bool{99: true, 100: true, 101: true, 102: false, 109: true, 110: false, 4294967400: false} {
		if s.sees(xid) != want {
			t.Errorf("sees(%d) = %v", xid, !want)
		}
	}
	if (*snapshot)(nil).sees(1) {
		t.Error("no snapshot sees something")
	}
	for _, text := range []string{"", "1:2", "a:2:", "1:b:", "1:2:c", "1:2:3:4"} {
		if _, err := parseSnapshot(text); err == nil {
			t.Errorf("%q is a snapshot", text)
		}
	}
}

// If this failed, rows that are read anew would wait for ever on an idle server: the
// stream gets to the end of the last record, not to where the next would begin.
func TestInserted(t *testing.T) {
	const block, segment = 8192, 16 << 20
	for at, want := range map[int64]lsn{segment + 40: segment, segment + 24: segment, segment + block + 24: segment + block, segment + block + 40: segment + block + 40, segment + 5000: segment + 5000} {
		if got := inserted(at, block, segment); got != want {
			t.Errorf("inserted(%d) = %d, want %d", at, got, want)
		}
	}
}

// Lost if this fails: a row that was read beside the stream goes out though the
// stream has delivered a newer one, or it does not go out though the newer one has
// not all of its values (C1).
func TestSettle(t *testing.T) {
	cell := func(s string) pgoutput.Cell { return pgoutput.Cell{Kind: 't', Data: []byte(s)} }
	row := func(key, big string) chunkRow {
		cells := []pgoutput.Cell{cell(key), cell("0"), cell(big)}
		return chunkRow{key: key, cells: cells, msg: pgoutput.AppendInsert(nil, 1, cells)}
	}
	rel := &pgoutput.Relation{Table: &change.Table{Topic: "t", Key: []int{0}, Columns: []change.Column{{Name: "id"}, {Name: "v"}, {Name: "big"}}}, Cells: make([]pgoutput.Coder, 3)}
	other := &pgoutput.Relation{Table: &change.Table{Topic: "t", Key: []int{0}, Columns: []change.Column{{Name: "id"}}}, Cells: make([]pgoutput.Coder, 1)}
	part := func(key, v string) []pgoutput.Cell { return []pgoutput.Cell{cell(key), cell(v), {Kind: 'u'}} }
	snap := &snapshot{xmin: 100, xmax: 110, running: map[decimal]bool{105: true}}
	for name, c := range map[string]struct {
		changes []touch
		shapes  []shaped
		want    []string
		again   bool
	}{
		"nothing":                        {want: []string{"a 0 A", "b 0 B"}},
		"seen":                           {changes: []touch{{xid: 104, old: "a", new: "a"}, {xid: 99, all: true}}, want: []string{"a 0 A", "b 0 B"}},
		"whole":                          {changes: []touch{{xid: 105, old: "a", new: "a"}}, want: []string{"b 0 B"}},
		"inserted":                       {changes: []touch{{xid: 110, new: "b"}}, want: []string{"a 0 A"}},
		"deleted":                        {changes: []touch{{xid: 110, old: "b"}}, want: []string{"a 0 A"}},
		"in part":                        {changes: []touch{{xid: 105, old: "a", new: "a", cells: part("a", "1")}, {xid: 111, old: "a", new: "a", cells: part("a", "2")}}, want: []string{"a 2 A", "b 0 B"}},
		"in part, then whole":            {changes: []touch{{xid: 111, old: "a", new: "a", cells: part("a", "1")}, {xid: 112, old: "a", new: "a"}}, want: []string{"b 0 B"}},
		"whole, then in part":            {changes: []touch{{xid: 111, old: "a", new: "a"}, {xid: 112, old: "a", new: "a", cells: part("a", "1")}}, want: []string{"b 0 B"}},
		"in part, then deleted":          {changes: []touch{{xid: 111, old: "a", new: "a", cells: part("a", "1")}, {xid: 112, old: "a"}}, want: []string{"b 0 B"}},
		"deleted, and there again":       {changes: []touch{{xid: 111, old: "a"}, {xid: 112, new: "a"}}, want: []string{"b 0 B"}},
		"another key":                    {changes: []touch{{xid: 111, old: "a", new: "c", cells: part("c", "1")}}, want: []string{"b 0 B"}},
		"another key, over another row":  {changes: []touch{{xid: 111, old: "b"}, {xid: 111, old: "a", new: "b"}}},
		"emptied":                        {changes: []touch{{xid: 111, all: true}}},
		"emptied, and one is there then": {changes: []touch{{xid: 111, all: true}, {xid: 112, new: "a"}}},
		"another shape":                  {shapes: []shaped{{111, other}}, again: true},
		"another shape, seen":            {shapes: []shaped{{101, other}}, want: []string{"a 0 A", "b 0 B"}},
		"the same shape":                 {shapes: []shaped{{111, rel}}, want: []string{"a 0 A", "b 0 B"}},
		"not captured any more":          {shapes: []shaped{{111, &pgoutput.Relation{Skip: true}}}, again: true},
	} {
		t.Run(name, func(t *testing.T) {
			k := &touched{changes: c.changes, shapes: c.shapes}
			rows, v := k.settle(&chunk{rel: rel, seen: snap, rows: []chunkRow{row("a", "A"), row("b", "B")}})
			var got []string
			for _, r := range rows {
				if r.msg != nil && !slices.Equal(r.msg, pgoutput.AppendInsert(nil, 1, r.cells)) {
					t.Errorf("%s goes out as it was read", r.key)
				}
				got = append(got, string(r.cells[0].Data)+" "+string(r.cells[1].Data)+" "+string(r.cells[2].Data))
			}
			if !slices.Equal(got, c.want) || (v == again) != c.again {
				t.Errorf("%q, %v; want %q", got, v, c.want)
			}
		})
	}
}
