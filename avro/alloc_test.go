package avro_test

import (
	"strconv"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// timeEntry is the demo's largest table.
func timeEntry() *change.Table {
	return (&change.Table{
		Source: "psa", Connector: connector, Database: "psa", Schema: "public", Name: "time_entry", Topic: "psa.public.time_entry", OldFull: true,
		Columns: []change.Column{
			{Name: "id", Type: "bigint", Kind: change.Int, Width: 8},
			{Name: "employee_id", Type: "bigint", Kind: change.Int, Width: 8},
			{Name: "project_id", Type: "bigint", Kind: change.Int, Width: 8},
			{Name: "task_number", Type: "text", Kind: change.String},
			{Name: "work_date", Type: "date", Kind: change.Date},
			{Name: "hours", Type: "numeric(6,2)", Kind: change.Decimal, Precision: 6, Scale: 2},
			{Name: "billable", Type: "boolean", Kind: change.Bool},
			{Name: "status", Type: "text", Kind: change.String},
			{Name: "note", Type: "text", Kind: change.String},
			{Name: "bill_rate", Type: "numeric(12,4)", Kind: change.Decimal, Precision: 12, Scale: 4},
			{Name: "created_at", Type: "timestamp with time zone", Kind: change.TimestampTZ, Precision: 6},
			{Name: "updated_at", Type: "timestamp with time zone", Kind: change.TimestampTZ, Precision: 6},
		}, Key: []int{0},
	}).Index()
}

func fillEntry(b *change.Batch, i int) []change.Value {
	row := b.Row(12)
	row[0], row[1], row[2] = change.IntValue(int64(1_000_000+i)), change.IntValue(int64(i%250)), change.IntValue(int64(i%150))
	row[3] = b.SpanString(change.String, "T-100")
	row[4] = change.DateValue(20_500)
	row[5] = change.DecimalValue(int64(i%900), 2)
	row[6] = change.BoolValue(i%2 == 0)
	row[7] = b.SpanString(change.String, "approved")
	row[8] = b.SpanString(change.String, "Workshop with the customer's team, and notes")
	row[9] = change.DecimalValue(1_500_000+int64(i), 4)
	row[10], row[11] = change.TimestampTZValue(1_770_000_000_000_000+int64(i)), change.TimestampTZValue(1_770_000_000_123_456+int64(i))
	return row
}

func entries(b *change.Batch, t *change.Table, n int) {
	for i := range n {
		row := fillEntry(b, i)
		op := []change.Op{change.Create, change.Update, change.Delete}[i%3]
		c := b.Append(t, op)
		c.Pos = change.Pos{System: 1, Timeline: 1, LSN: uint64(1<<40 + i), Kind: change.PosCommit, Ordinal: 1}
		c.XID, c.Time = 77, 1_770_000_000_000_000
		if op != change.Create {
			c.Old = fillEntry(b, i)
		}
		if op != change.Delete {
			c.New = row
		}
	}
}

type wire struct{ key, value, pos []byte }

func encodeAll(tb testing.TB, e *avro.Encoder, b *change.Batch) []wire {
	var out []wire
	for i := range b.Changes {
		c := &b.Changes[i]
		key, err := e.AppendKey(nil, b, c)
		if err != nil {
			tb.Fatal(err)
		}
		value, err := e.AppendValue(nil, b, c)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, wire{key, value, change.AppendPos(nil, c.Pos)})
	}
	return out
}

// If these failed, throughput would go into the garbage collector.
func TestEncodeDoesNotAllocate(t *testing.T) {
	tab := timeEntry()
	e := newEncoder(t, newRegistry(t), tab)
	b := change.Get()
	defer b.Release()
	entries(b, tab, 1000)
	buf := make([]byte, 0, 1<<20)
	var memo avro.Memo
	n := testing.AllocsPerRun(20, func() {
		dst := buf[:0]
		memo.Reset()
		var err error
		for i := range b.Changes {
			c := &b.Changes[i]
			if dst, err = e.AppendKey(dst, b, c); err != nil {
				t.Fatal(err)
			}
			if dst, err = e.AppendValueWith(&memo, dst, b, c); err != nil {
				t.Fatal(err)
			}
			dst = e.AppendUnchanged(dst, c)
		}
		if cap(dst) != cap(buf) {
			t.Fatal("the buffer was too small for the measurement")
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations per 1,000 changes, want 0", n)
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	reg := newRegistry(t)
	tab := timeEntry()
	src := change.Get()
	defer src.Release()
	entries(src, tab, 1000)
	records := encodeAll(t, newEncoder(t, reg, tab), src)
	d := avro.NewDecoder(reg)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	b := change.Get()
	defer b.Release()
	ctx := t.Context()
	n := testing.AllocsPerRun(20, func() {
		b.Reset()
		for i := range records {
			if err := d.Append(ctx, b, at, records[i].key, records[i].value, avro.Headers{Pos: records[i].pos}, 1); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations per 1,000 changes, want 0", n)
	}
}

func costed(t testing.TB) *avro.Contract {
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return all["ps.time_entry_costed"]
}

func fillCosted(b *change.Batch, tab *change.Table, i int) []change.Value {
	row := b.Row(len(tab.Columns))
	set := func(name string, v change.Value) { row[tab.Column(name)] = v }
	text := func(name, s string) { set(name, b.SpanString(change.String, s)) }
	text("time_entry_id", strconv.Itoa(i))
	text("resource_id", "12")
	text("project_id", "17")
	text("status", "approved")
	text("customer_name", "Northwind Traders")
	set("work_date", change.DateValue(20_500))
	set("hours", change.DecimalValue(75, 1)) // 7.5 into numeric(6,2)
	set("billable", change.BoolValue(true))
	set("rate", change.DecimalValue(985_000, 4))
	set("cost", change.DecimalValue(738_750_000, 6))
	set("updated_at", change.TimestampTZValue(1_770_000_000_000_000))
	return row
}

func TestCanonicalDoesNotAllocate(t *testing.T) {
	reg := newRegistry(t)
	tab := costed(t).Table
	e, d := newEncoder(t, reg, tab), avro.NewDecoder(reg)
	src := change.Get()
	defer src.Release()
	for i := range 1000 {
		src.Append(tab, change.Update).New = fillCosted(src, tab, i)
	}
	buf := make([]byte, 0, 1<<20)
	b := change.Get()
	defer b.Release()
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	ctx := t.Context()
	n := testing.AllocsPerRun(20, func() {
		b.Reset()
		dst := buf[:0]
		for i := range src.Changes {
			from := len(dst)
			var err error
			if dst, err = e.AppendKey(dst, src, &src.Changes[i]); err != nil {
				t.Fatal(err)
			}
			mid := len(dst)
			if dst, err = e.AppendValue(dst, src, &src.Changes[i]); err != nil {
				t.Fatal(err)
			}
			if err := d.Append(ctx, b, at, dst[from:mid], dst[mid:], avro.Headers{}, 1); err != nil {
				t.Fatal(err)
			}
			if err := d.Append(ctx, b, at, dst[from:mid], nil, avro.Headers{}, 1); err != nil {
				t.Fatal(err)
			}
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations per 1,000 changes there and back, want 0", n)
	}
}

func BenchmarkEncode(b *testing.B) {
	tab := timeEntry()
	e := newEncoder(b, newRegistry(b), tab)
	batch := change.Get()
	defer batch.Release()
	entries(batch, tab, 1000)
	var dst []byte
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c := &batch.Changes[i%1000]
		var err error
		if dst, err = e.AppendKey(dst[:0], batch, c); err != nil {
			b.Fatal(err)
		}
		if dst, err = e.AppendValue(dst, batch, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	reg := newRegistry(b)
	tab := timeEntry()
	src := change.Get()
	defer src.Release()
	entries(src, tab, 1000)
	records := encodeAll(b, newEncoder(b, reg, tab), src)
	d := avro.NewDecoder(reg)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	out := change.Get()
	defer out.Release()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if i%1000 == 0 {
			out.Reset()
		}
		r := &records[i%1000]
		if err := d.Append(b.Context(), out, at, r.key, r.value, avro.Headers{Pos: r.pos}, 1); err != nil {
			b.Fatal(err)
		}
	}
}
