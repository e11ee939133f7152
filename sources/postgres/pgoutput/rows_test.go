package pgoutput

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
)

// timeEntry is the table of the allocation test and the benchmark: the demo's.
func timeEntry() *Relation {
	cols := []struct {
		name string
		oid  uint32
		mod  int32
	}{
		{"id", 20, -1},
		{"employee_id", 20, -1},
		{"project_id", 20, -1},
		{"task_number", 25, -1},
		{"work_date", 1082, -1},
		{"hours", 1700, (6<<16 | 2) + 4},
		{"billable", 16, -1},
		{"status", 25, -1},
		{"note", 25, -1},
		{"bill_rate", 1700, (12<<16 | 4) + 4},
		{"created_at", 1184, -1},
		{"updated_at", 1184, -1},
	}
	var types Types
	r := &Relation{Table: &change.Table{Source: "psa", Schema: "public", Name: "time_entry", Topic: "psa.public.time_entry", ID: 16402, OldFull: true, Key: []int{0}}}
	for _, c := range cols {
		types.Add(&Type{ID: c.oid, Class: 'b'})
		col, cell := types.Column(c.oid, c.mod)
		col.Name = c.name
		r.Table.Columns = append(r.Table.Columns, col)
		r.Cells = append(r.Cells, cell)
		r.Identity = append(r.Identity, c.name == "id")
	}
	r.Table.Index()
	return r
}

var begun = change.Pos{System: 1, Timeline: 1, LSN: 2, Kind: change.PosCommit}

// newFramer is in transaction 7, of time 1.
func newFramer(rels ...*Relation) *Framer {
	f := NewFramer(func(at change.Pos, err error) error { return fmt.Errorf("%s: %w", at, err) })
	for _, r := range rels {
		f.Define(r.Table.ID, r)
	}
	f.Begin(nil, begun, 7, 1)
	return f
}

// decode takes messages through b.
func decode(f *Framer, b *change.Batch, ms ...[]byte) error {
	for _, m := range ms {
		if err := f.Append(b, m); err != nil {
			return err
		}
	}
	f.Finish(b)
	return b.Decode()
}

// cell is one cell of a tuple; kind n, u, t or b.
type cell struct {
	kind byte
	data []byte
}

func appendTuple(p []byte, cells []cell) []byte {
	p = binary.BigEndian.AppendUint16(p, uint16(len(cells)))
	for _, c := range cells {
		p = append(p, c.kind)
		if c.kind == 't' || c.kind == 'b' {
			p = binary.BigEndian.AppendUint32(p, uint32(len(c.data)))
			p = append(p, c.data...)
		}
	}
	return p
}

func rowMessage(op byte, id uint32, oldKind byte, old, new []cell) []byte {
	p := binary.BigEndian.AppendUint32([]byte{op}, id)
	if old != nil {
		p = appendTuple(append(p, oldKind), old)
	}
	if new != nil {
		p = appendTuple(append(p, 'N'), new)
	}
	return p
}

func be(n any) []byte {
	b, err := binary.Append(nil, binary.BigEndian, n)
	if err != nil {
		panic(err)
	}
	return b
}

// timeEntryRow is a row as the demo has them, in binary.
func timeEntryRow(id int64) []cell {
	numeric := func(weight, dscale int16, digits ...int16) []byte {
		p := be([]int16{int16(len(digits)), weight, 0, dscale})
		for _, d := range digits {
			p = append(p, be(d)...)
		}
		return p
	}
	return []cell{
		{'b', be(id)},
		{'b', be(int64(117))},
		{'b', be(int64(42))},
		{'b', []byte("T-0042")},
		{'b', be(int32(9570))},
		{'b', numeric(0, 2, 7, 5000)},
		{'b', []byte{1}},
		{'b', []byte("submitted")},
		{'b', []byte("Reviewed the interface contract with the client team")},
		{'b', numeric(0, 4, 145, 5000)},
		{'b', be(int64(826_848_000_000_000))},
		{'b', be(int64(826_848_000_123_456))},
	}
}

func thousand(op byte) [][]byte {
	var ms [][]byte
	for i := range int64(1000) {
		switch row := timeEntryRow(i); op {
		case 'I':
			ms = append(ms, rowMessage('I', 16402, 0, nil, row))
		case 'U':
			ms = append(ms, rowMessage('U', 16402, 'O', row, row))
		case 'D':
			ms = append(ms, rowMessage('D', 16402, 'O', row, nil))
		}
	}
	return ms
}

// Lost if this fails: the hot path feeds the garbage collector with every row.
func TestRowsDoNotAllocate(t *testing.T) {
	for _, op := range []byte("IUD") {
		ms, f, b := thousand(op), newFramer(timeEntry()), change.Get()
		run := func() {
			b.Reset()
			if err := decode(f, b, ms...); err != nil {
				t.Fatal(err)
			}
		}
		run()
		if n := testing.AllocsPerRun(20, run); n != 0 {
			t.Errorf("%c: %v allocations in 1,000 changes", op, n)
		}
		b.Release()
	}
}

// BenchmarkRows is the work of both halves, per row.
func BenchmarkRows(b *testing.B) {
	for _, op := range []byte("IUD") {
		b.Run(string(op), func(b *testing.B) {
			ms, f, batch := thousand(op), newFramer(timeEntry()), change.Get()
			defer batch.Release()
			b.ReportAllocs()
			n, framing := 0, time.Duration(0)
			for b.Loop() {
				batch.Reset()
				began := time.Now()
				for _, m := range ms {
					if err := f.Append(batch, m); err != nil {
						b.Fatal(err)
					}
				}
				f.Finish(batch)
				framing += time.Since(began)
				if err := batch.Decode(); err != nil {
					b.Fatal(err)
				}
				n += len(ms)
			}
			b.ReportMetric(float64(framing.Nanoseconds())/float64(n), "framing-ns/row")
			b.ReportMetric(float64((b.Elapsed()-framing).Nanoseconds())/float64(n), "decoding-ns/row")
		})
	}
}

func BenchmarkParseV2(b *testing.B) {
	for _, op := range []byte("IUD") {
		b.Run(string(op), func(b *testing.B) {
			ms := thousand(op)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := pglogrepl.ParseV2(ms[i%1000], false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// same compares a row with the oracle's tuple, cell by cell.
func same(t *rapid.T, r *Relation, b *change.Batch, row []change.Value, tuple *pglogrepl.TupleData, keyOnly bool, from []change.Value) {
	t.Helper()
	if tuple == nil {
		if row != nil {
			t.Fatalf("a row where the oracle has none")
		}
		return
	}
	if len(row) != len(tuple.Columns) {
		t.Fatalf("%d columns, the oracle has %d", len(row), len(tuple.Columns))
	}
	for i, c := range tuple.Columns {
		v := row[i]
		switch c.DataType {
		case 'n':
			if keyOnly && !r.Identity[i] {
				if !v.IsUnchanged() {
					t.Fatalf("column %d of a key-only row is %s", i, v.Kind())
				}
			} else if !v.IsNull() {
				t.Fatalf("column %d is %s, the oracle has null", i, v.Kind())
			}
		case 'u':
			if from != nil && !from[i].IsNull() {
				if v != from[i] {
					t.Fatalf("column %d was not filled from the old row", i)
				}
			} else if !v.IsUnchanged() {
				t.Fatalf("column %d is %s, the oracle has unchanged", i, v.Kind())
			}
		default:
			other := change.Get()
			var w change.Value
			var err error
			other.AppendRaw(c.Data)
			if c.DataType == 't' {
				w, err = r.Cells[i].DecodeText(other, c.Data, 0)
			} else {
				w, err = r.Cells[i].DecodeBinary(other, c.Data, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			if g, o := string(b.AppendText(nil, v)), string(other.AppendText(nil, w)); g != o || v.Kind() != w.Kind() {
				t.Fatalf("column %d is %q (%s), the oracle has %q (%s)", i, g, v.Kind(), o, w.Kind())
			}
			other.Release()
		}
	}
}

// Lost if this fails: rows are read otherwise than pglogrepl does.
func TestRowsAgreeWithParseV2(t *testing.T) {
	rel := timeEntry()
	text := []string{"1", "-7", "0", "täsk", "2024-02-29", "7.50", "t", "draft", "", "145.0000", "2024-02-29 10:00:00+00", "infinity"}
	full := timeEntryRow(5)
	row := func(t *rapid.T, old bool) []cell {
		cells := make([]cell, len(full))
		for i := range cells {
			kinds := "nubt"
			if old {
				kinds = "nbt"
			}
			switch k := kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")]; {
			case k == 'b':
				cells[i] = full[i]
			case k == 't':
				cells[i] = cell{'t', []byte(text[i])}
			default:
				cells[i] = cell{k, nil}
			}
		}
		return cells
	}
	rapid.Check(t, func(t *rapid.T) {
		b, f := change.Get(), newFramer(rel)
		defer b.Release()
		n := rapid.IntRange(1, 5).Draw(t, "messages")
		ms, oldKinds := make([][]byte, n), make([]byte, n)
		for i := range n {
			var m []byte
			oldKind := byte(0)
			switch op := "IUDuk"[rapid.IntRange(0, 4).Draw(t, "op")]; op {
			case 'I':
				m = rowMessage('I', 16402, 0, nil, row(t, false))
			case 'u':
				m = rowMessage('U', 16402, 0, nil, row(t, false))
			case 'U':
				oldKind = "OK"[rapid.IntRange(0, 1).Draw(t, "old")]
				m = rowMessage('U', 16402, oldKind, row(t, true), row(t, false))
			default:
				oldKind = "OK"[rapid.IntRange(0, 1).Draw(t, "old")]
				m = rowMessage('D', 16402, oldKind, row(t, true), nil)
			}
			ms[i], oldKinds[i] = m, oldKind
		}
		if err := decode(f, b, ms...); err != nil {
			t.Fatal(err)
		}
		if b.Len() != n {
			t.Fatalf("%d changes of %d messages", b.Len(), n)
		}
		for i, m := range ms {
			ch, oldKind := &b.Changes[i], oldKinds[i]
			if ch.Pos.Ordinal != uint64(i+1) || ch.XID != 7 || ch.Table != rel.Table {
				t.Fatalf("change %d: %+v", i, ch)
			}
			parsed, err := pglogrepl.ParseV2(m, false)
			if err != nil {
				t.Fatal(err)
			}
			switch o := parsed.(type) {
			case *pglogrepl.InsertMessageV2:
				same(t, rel, b, ch.Old, nil, false, nil)
				same(t, rel, b, ch.New, o.Tuple, false, nil)
			case *pglogrepl.UpdateMessageV2:
				same(t, rel, b, ch.Old, o.OldTuple, oldKind == 'K', nil)
				same(t, rel, b, ch.New, o.NewTuple, false, ch.Old)
			case *pglogrepl.DeleteMessageV2:
				same(t, rel, b, ch.Old, o.OldTuple, oldKind == 'K', nil)
				same(t, rel, b, ch.New, nil, false, nil)
			}
		}
	})
}

// Lost if this fails: an update of a row whose key is stored out of line has no
// key; one of a partition whose identity is not that of the table it is
// published as says null where nothing is known.
func TestRowsOfWhatIsPartlyKnown(t *testing.T) {
	table := func(full bool) *Relation {
		r := timeEntry()
		r.Table.OldFull = full
		return r
	}
	unsent, null := cell{'u', nil}, cell{'n', nil}
	key, nulls := timeEntryRow(5), timeEntryRow(5)
	for i := 1; i < len(nulls); i++ {
		key[i], nulls[i] = null, null
	}
	with := func(at int, c cell) []cell {
		row := timeEntryRow(5)
		row[at] = c
		return row
	}
	for name, x := range map[string]struct {
		full     bool
		op, kind byte
		old, new []cell
		at       int // of the column that is looked at
		before   change.Kind
		after    change.Kind // 0: there is no such row
	}{
		"key out of line, default identity":          {false, 'U', 'K', key, with(0, unsent), 0, change.Int, change.Int},
		"large value, default identity, another key": {false, 'U', 'K', key, with(8, unsent), 8, change.Unchanged, change.Unchanged},
		"large value, full":                          {true, 'U', 'O', timeEntryRow(5), with(8, unsent), 8, change.String, change.String},
		"large value, said to be full, and is not":   {false, 'U', 'O', nulls, with(8, unsent), 8, change.Unchanged, change.Unchanged},
		"delete, said to be full, and is not":        {false, 'D', 'O', nulls, nil, 8, change.Unchanged, 0},
		"a null that was not resent is none":         {true, 'U', 'O', nulls, with(8, unsent), 8, change.Null, change.Unchanged},
	} {
		b := change.Get()
		if err := decode(newFramer(table(x.full)), b, rowMessage(x.op, 16402, x.kind, x.old, x.new)); err != nil {
			t.Fatal(name, err)
		}
		c := &b.Changes[0]
		if k := c.Old[x.at].Kind(); k != x.before {
			t.Errorf("%s: before it is %s, want %s", name, k, x.before)
		}
		if c.New != nil && c.New[x.at].Kind() != x.after {
			t.Errorf("%s: after it is %s, want %s", name, c.New[x.at].Kind(), x.after)
		}
		b.Release()
	}
}

// Lost if this fails: garbage on the wire panics, or is taken for a row.
func FuzzRows(f *testing.F) {
	for _, op := range []byte("IUD") {
		f.Add(thousand(op)[7])
	}
	f.Add(append(binary.BigEndian.AppendUint32([]byte{'T'}, 1), append([]byte{0}, be(int32(16402))...)...))
	rel := timeEntry()
	f.Fuzz(func(t *testing.T, m []byte) {
		b, fr := change.Get(), newFramer(rel)
		defer b.Release()
		if len(m) > 5 {
			if n, err := Count(m); err == nil && decode(fr, b, m) == nil && (n != fr.Pos.Ordinal || n != uint64(b.Len())) {
				t.Fatalf("counted %d changes, framed %d, read %d", n, fr.Pos.Ordinal, b.Len())
			}
		}
		for i := range b.Changes {
			for _, row := range [][]change.Value{b.Changes[i].Old, b.Changes[i].New} {
				for _, v := range row {
					b.AppendText(nil, v)
				}
			}
		}
	})
}

// Every decoder, for any octets: a value that prints, or an error.
func FuzzCells(f *testing.F) {
	for _, c := range timeEntryRow(3) {
		f.Add(c.data)
	}
	for _, s := range []string{"{1,NULL,{2}}", "[2:3]={{1,2}}", "1 year -2 mons +04:05:06.5", "0044-03-15 12:00:00+05:30:10 BC", "-123.4500", `\x00ff`, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", `{"a\"b"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		for code := asBool; code <= asArray; code++ {
			c := &Coder{code: code}
			if code == asArray {
				c.elem = &Coder{code: asNumeric}
			}
			b := change.Get()
			b.AppendRaw(p)
			if v, err := c.DecodeBinary(b, p, 0); err == nil {
				b.AppendText(nil, v)
			}
			if v, err := c.DecodeText(b, p, 0); err == nil {
				b.AppendText(nil, v)
			}
			b.Release()
		}
	})
}

// Lost if this fails: a numeric is not what was sent, in some digit.
func TestNumericProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "digits")
		weight := rapid.IntRange(-4, 8).Draw(t, "weight")
		digits := make([]uint16, n)
		for i := range digits {
			digits[i] = uint16(rapid.IntRange(0, 9999).Draw(t, "digit"))
		}
		digits[0], digits[n-1] = max(digits[0], 1), max(digits[n-1], 1)
		// The scale shows all digits: those of the last group, and maybe zeros.
		scale := max(0, 4*(n-1-weight)) + rapid.IntRange(0, 3).Draw(t, "zeros")
		negative := rapid.Bool().Draw(t, "negative")
		sign := uint16(numericPos)
		if negative {
			sign = numericNeg
		}
		p := be([]uint16{uint16(n), uint16(int16(weight)), sign, uint16(scale)})
		sum, ten := new(big.Rat), new(big.Rat).SetInt64(10_000)
		for i, d := range digits {
			p = append(p, be(d)...)
			term := new(big.Rat).SetInt64(int64(d))
			for e := weight - i; e > 0; e-- {
				term.Mul(term, ten)
			}
			for e := weight - i; e < 0; e++ {
				term.Quo(term, ten)
			}
			sum.Add(sum, term)
		}
		if negative {
			sum.Neg(sum)
		}
		want := sum.FloatString(scale)
		b := change.Get()
		defer b.Release()
		v, err := numericBinary(b, p)
		if err != nil {
			t.Fatal(err)
		}
		if g := string(b.AppendText(nil, v)); g != want {
			t.Fatalf("binary: %s, want %s", g, want)
		}
		w, err := numericText(b, []byte(want))
		if err != nil {
			t.Fatal(err)
		}
		if g := string(b.AppendText(nil, w)); g != want {
			t.Fatalf("text: %s, want %s", g, want)
		}
	})
}
