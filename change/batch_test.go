package change_test

import (
	"bytes"
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/tallywire/tallywire/change"
)

// drawValue makes a value of any kind.
func drawValue(t *rapid.T, b *change.Batch, depth int) change.Value {
	n := 19
	if depth > 0 {
		n = 18 // no arrays of arrays
	}
	i64 := func() int64 { return rapid.Int64().Draw(t, "n") }
	span := func(k change.Kind) change.Value {
		return b.Span(k, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "octets"))
	}
	switch rapid.IntRange(0, n).Draw(t, "kind") {
	case 0:
		return change.NullValue()
	case 1:
		return change.UnchangedValue()
	case 2:
		return change.BoolValue(rapid.Bool().Draw(t, "bool"))
	case 3:
		return change.IntValue(i64())
	case 4:
		return change.Float32Value(rapid.Float32().Draw(t, "f"))
	case 5:
		return change.Float64Value(rapid.Float64().Draw(t, "f"))
	case 6:
		return b.BigDecimal(drawBig(t), int16(rapid.IntRange(-5, 40).Draw(t, "scale")))
	case 7:
		return change.SpecialDecimal(rapid.SampledFrom([]change.Form{change.NaN, change.Infinite, change.NegInfinite}).Draw(t, "form"))
	case 8:
		return span(change.String)
	case 9:
		return span(change.Bytes)
	case 10:
		return b.Span(change.UUID, rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "uuid"))
	case 11:
		return change.DateValue(rapid.Int64Range(-3e6, 3e6).Draw(t, "days"))
	case 12:
		return change.TimeValue(rapid.Int64Range(0, 86_400_000_000).Draw(t, "us"))
	case 13:
		return change.TimeTZValue(rapid.Int64Range(0, 86_400_000_000).Draw(t, "us"), rapid.Int32Range(-57599, 57599).Draw(t, "zone"))
	case 14:
		return change.TimestampValue(i64())
	case 15:
		return change.TimestampTZValue(i64())
	case 16:
		return b.Interval(rapid.Int32().Draw(t, "months"), rapid.Int32().Draw(t, "days"), i64())
	case 17:
		return span(change.JSON)
	case 18:
		return span(change.Text)
	}
	rows, cols := rapid.IntRange(1, 3).Draw(t, "rows"), rapid.IntRange(1, 3).Draw(t, "cols")
	elems := make([]change.Value, rows*cols)
	for i := range elems {
		elems[i] = drawValue(t, b, depth+1)
	}
	row := b.Row(len(elems))
	copy(row, elems)
	return b.Array([]change.Dim{{Len: int32(rows), Lower: 1}, {Len: int32(cols), Lower: 0}}, row)
}

func drawBig(t *rapid.T) *big.Int {
	x := new(big.Int).SetBytes(rapid.SliceOfN(rapid.Byte(), 0, 24).Draw(t, "magnitude"))
	if rapid.Bool().Draw(t, "negative") {
		x.Neg(x)
	}
	return x
}

// If this failed, a value that goes from one stage to the next would change on
// the way, or share memory with a batch that is gone.
func TestCopiesAreTheSameAndTheirOwn(t *testing.T) {
	change.PoisonOnRelease(true)
	defer change.PoisonOnRelease(false)
	tab := (&change.Table{Columns: make([]change.Column, 4)}).Index()
	rapid.Check(t, func(t *rapid.T) {
		from, to := change.Get(), change.Get()
		defer to.Release()
		var kinds []change.Kind
		var texts []string
		n := rapid.IntRange(1, 5).Draw(t, "changes")
		for range n {
			row := make([]change.Value, 4)
			for i := range row {
				row[i] = drawValue(t, from, 0)
				kinds = append(kinds, row[i].Kind())
				texts = append(texts, string(from.AppendText(nil, row[i])))
			}
			kept := from.Row(4)
			copy(kept, row)
			c := from.Append(tab, change.Update)
			c.New = kept
			to.AppendFrom(from, c)
		}
		from.Release() // poisoned: a copy that shares memory shows it
		for i := range n {
			if to.Changes[i].Old != nil || len(to.Changes[i].New) != 4 {
				t.Fatalf("change %d has Old %v, New %v", i, to.Changes[i].Old, to.Changes[i].New)
			}
			for j, v := range to.Changes[i].New {
				if got := string(to.AppendText(nil, v)); v.Kind() != kinds[i*4+j] || got != texts[i*4+j] {
					t.Fatalf("want %s %q, got %s %q", kinds[i*4+j], texts[i*4+j], v.Kind(), got)
				}
			}
		}
	})
}

// If this failed, a value kept too long would still look right under test, and
// be another row's in production.
func TestReleasedMemoryIsPoisoned(t *testing.T) {
	change.PoisonOnRelease(true)
	defer change.PoisonOnRelease(false)
	b := change.Get()
	row := b.Row(2)
	row[0], row[1] = change.IntValue(7), b.SpanString(change.String, "secret of the last batch")
	text := b.Bytes(row[1])
	b.Append((&change.Table{Columns: make([]change.Column, 2)}).Index(), change.Create).New = row
	cs := b.Changes
	b.Release()
	if row[0].Kind() == change.Int || !bytes.Equal(text, bytes.Repeat([]byte{0xDB}, len(text))) || cs[0].Op == change.Create {
		t.Fatalf("still readable: %v, %q, %c", row[0].Kind(), text, cs[0].Op)
	}
	defer func() {
		if recover() == nil {
			t.Fatal("a second release went unnoticed")
		}
	}()
	b.Release()
}

// If this failed, rows would overlap once a batch has grown.
func TestRowsStayApartAndInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := change.Get()
		defer b.Release()
		sizes := rapid.SliceOfN(rapid.IntRange(0, 3000), 1, 30).Draw(t, "sizes")
		rows := make([][]change.Value, len(sizes))
		for i, n := range sizes {
			rows[i] = b.Row(n)
			for j := range rows[i] {
				if !rows[i][j].IsNull() {
					t.Fatal("a fresh row is not null")
				}
				rows[i][j] = change.IntValue(int64(i)<<32 | int64(j))
			}
		}
		for i, row := range rows {
			for j, v := range row {
				if v.Int() != int64(i)<<32|int64(j) {
					t.Fatalf("value %d of row %d was overwritten", j, i)
				}
			}
		}
	})
}

// If this failed, a large amount would change its sign or its size.
func TestBigDecimals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := change.Get()
		defer b.Release()
		x := drawBig(t)
		v := b.BigDecimal(x, 3)
		if got := b.Unscaled(new(big.Int), v); got.Cmp(x) != 0 {
			t.Fatalf("%s came back as %s", x, got)
		}
		if _, small := v.Small(); small != x.IsInt64() {
			t.Fatalf("%s small: %v", x, small)
		}
		// From octets, with needless ones in front.
		wide := make([]byte, 40)
		y := new(big.Int).Set(x)
		if x.Sign() < 0 {
			y.Add(y, new(big.Int).Lsh(big.NewInt(1), 320))
		}
		y.FillBytes(wide)
		w := b.DecimalBytes(wide, 3)
		if a, z := string(b.AppendText(nil, v)), string(b.AppendText(nil, w)); a != z {
			t.Fatalf("from a number %s, from octets %s", a, z)
		}
	})
}

// If this failed, an event would be dropped, or sorted before its cause.
func TestPosBytesSortAsPositions(t *testing.T) {
	gen := rapid.Custom(func(t *rapid.T) change.Pos {
		few := rapid.Uint64Range(0, 3)
		return change.Pos{
			System: few.Draw(t, "s"), Timeline: uint32(few.Draw(t, "t")), LSN: few.Draw(t, "l") << 40,
			Kind: change.PosKind(rapid.IntRange(1, 3).Draw(t, "k")), Ordinal: few.Draw(t, "o") << 60,
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		p, q := gen.Draw(t, "p"), gen.Draw(t, "q")
		a, b := change.AppendPos(nil, p), change.AppendPos(nil, q)
		if bytes.Compare(a, b) != p.Compare(q) {
			t.Fatalf("%s and %s: %d, their octets %d", p, q, p.Compare(q), bytes.Compare(a, b))
		}
		if back, err := change.ParsePos(a); err != nil || back != p {
			t.Fatalf("%s came back as %s, %v", p, back, err)
		}
	})
	if _, err := change.ParsePos(make([]byte, 28)); err == nil {
		t.Fatal("28 octets pass for a position")
	}
}

// If this failed, throughput would go into the garbage collector.
func TestAWarmBatchDoesNotAllocate(t *testing.T) {
	tab := (&change.Table{Columns: make([]change.Column, 3), Key: []int{0, 1}}).Index()
	b := change.Get()
	defer b.Release()
	key := make([]byte, 0, 64)
	fill := func() {
		b.Reset()
		for i := range 1000 {
			c := b.Append(tab, change.Create)
			c.New = b.Row(3)
			c.New[0], c.New[1], c.New[2] = change.IntValue(int64(i)), b.SpanString(change.String, "T-1"), change.DecimalValue(125, 2)
			key = change.AppendKey(key[:0], b, c)
			key = b.AppendText(key[:0], c.New[2])
		}
	}
	fill()
	if n := testing.AllocsPerRun(20, fill); n != 0 {
		t.Fatalf("%v allocations per 1,000 changes, want 0", n)
	}
}
