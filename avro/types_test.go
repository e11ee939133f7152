package avro_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
)

// typeRow is a row of docs/types.md: the type as PostgreSQL names it, and the
// value that the row's example holds.
type typeRow struct {
	name  string
	col   change.Column
	text  string // the example, as PostgreSQL prints it
	value func(b *change.Batch) change.Value
}

func typeRows() []typeRow {
	str := func(k change.Kind, s string) func(*change.Batch) change.Value {
		return func(b *change.Batch) change.Value { return b.SpanString(k, s) }
	}
	val := func(v change.Value) func(*change.Batch) change.Value {
		return func(*change.Batch) change.Value { return v }
	}
	col := func(k change.Kind) change.Column { return change.Column{Kind: k, Precision: -1, Scale: -1} }
	num := func(p, s int16) change.Column {
		return change.Column{Kind: change.Decimal, Precision: p, Scale: s}
	}
	wide := func(w int8) change.Column { return change.Column{Kind: change.Int, Width: w} }
	with := func(c change.Column, precision int16) change.Column { c.Precision = precision; return c }
	return []typeRow{
		{"boolean", col(change.Bool), "t", val(change.BoolValue(true))},
		{"smallint", wide(2), "-32768", val(change.IntValue(-32768))},
		{"integer", wide(4), "2147483647", val(change.IntValue(1<<31 - 1))},
		{"bigint, oid", wide(8), "-9223372036854775808", val(change.IntValue(-1 << 63))},
		{"real", col(change.Float32), "0.1", val(change.Float32Value(0.1))},
		{"double precision", col(change.Float64), "0.1", val(change.Float64Value(0.1))},
		{"numeric(12,4)", num(12, 4), "-98.5000", val(change.DecimalValue(-985_000, 4))},
		{"numeric", num(-1, -1), "1.500", val(change.DecimalValue(1500, 3))},
		{"text, varchar, bpchar, name", col(change.String), "a", str(change.String, "a")},
		{"bytea", col(change.Bytes), `\x00ff`, func(b *change.Batch) change.Value { return b.Span(change.Bytes, []byte{0, 255}) }},
		{"uuid", col(change.UUID), "30313233-3435-3637-3839-616263646566", str(change.UUID, "0123456789abcdef")},
		{"date", col(change.Date), "2026-03-03", val(change.DateValue(20_515))},
		{"time", col(change.Time), "24:00:00", val(change.TimeValue(86_400_000_000))},
		{"time with time zone", col(change.TimeTZ), "13:51:30.5+02", val(change.TimeTZValue(49_890_500_000, 7200))},
		{"timestamp", col(change.Timestamp), "infinity", val(change.TimestampValue(change.PosInfinity))},
		{"timestamp with time zone", col(change.TimestampTZ), "-infinity", val(change.TimestampTZValue(change.NegInfinity))},
		{"timestamp(3) with time zone", with(col(change.TimestampTZ), 3), "2026-02-02 02:40:00.001+00", val(change.TimestampTZValue(1_770_000_000_001_000))},
		{"interval", col(change.Interval), "1 year 2 mons -3 days +04:05:06.7", func(b *change.Batch) change.Value { return b.Interval(14, -3, 14_706_700_000) }},
		{"json, jsonb", col(change.JSON), `{"a": 1}`, str(change.JSON, `{"a": 1}`)},
		{"an enum", change.Column{Kind: change.Enum, Labels: []string{"sad", "happy"}}, "happy", str(change.Enum, "happy")},
		{"integer[]", change.Column{Kind: change.Array, Elem: &change.Column{Kind: change.Int, Width: 4}}, "{1,NULL}", func(b *change.Batch) change.Value {
			e := b.Row(2)
			e[0] = change.IntValue(1)
			return b.Array([]change.Dim{{Len: 2, Lower: 1}}, e)
		}},
		{"any other", col(change.Text), "192.168.0.1/24", str(change.Text, "192.168.0.1/24")},
	}
}

// docs/types.md is the promise; this holds the code to it, row by row: the Avro
// type written there is the one that is registered, and the row's example comes
// back exactly. If it failed, a reader built by the table would misread.
func TestTypesAreAsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/types.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	in := false
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| PostgreSQL ") {
			in = true
			continue
		}
		if !strings.HasPrefix(line, "|") {
			in = false
		}
		if !in || strings.HasPrefix(line, "|---") {
			continue
		}
		cells := strings.Split(line, "|")
		documented[strings.TrimSpace(cells[1])] = strings.Trim(strings.TrimSpace(cells[2]), "`")
	}
	reg := newRegistry(t)
	dec := avro.NewDecoder(reg)
	for _, row := range typeRows() {
		want, ok := documented[row.name]
		if !ok {
			t.Errorf("docs/types.md has no row for %s", row.name)
			continue
		}
		delete(documented, row.name)
		row.col.Name, row.col.Type = "c", row.name
		tab := (&change.Table{
			Source: "s", Connector: connector, Schema: "public", Name: "t", Topic: "s.public.t" + legalName(row.name), OldFull: true,
			Columns: []change.Column{{Name: "id", Type: "integer", Kind: change.Int, Width: 4}, row.col}, Key: []int{0},
		}).Index()
		_, schema, err := avro.EnvelopeSchemas(tab)
		if err != nil {
			t.Fatal(err)
		}
		got := typeOf(t, schema)
		var doc any
		if err := json.Unmarshal([]byte(want), &doc); err != nil {
			t.Fatalf("%s: %q is no JSON: %v", row.name, want, err)
		}
		if d := cmp.Diff(doc, got); d != "" {
			t.Errorf("%s: documented -, registered +:\n%s", row.name, d)
		}
		src, out := change.Get(), change.Get()
		c := src.Append(tab, change.Create)
		c.New = src.Row(2)
		c.New[0], c.New[1] = change.IntValue(1), row.value(src)
		r := encodeAll(t, newEncoder(t, reg, tab), src)[0]
		if err := dec.Append(t.Context(), out, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, r.key, r.value, avro.Headers{}, 0); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		back := out.Changes[0].New[1]
		if a := string(src.AppendText(nil, c.New[1])); a != row.text {
			t.Errorf("%s: the example is %q, want %q", row.name, a, row.text)
		}
		if b := string(out.AppendText(nil, back)); b != row.text || back.Kind() != row.col.Kind {
			t.Errorf("%s: %q came back as %s %q", row.name, row.text, back.Kind(), b)
		}
		if col := out.Changes[0].Table.Columns[1]; col.Kind != row.col.Kind || col.Type != row.name || col.Width != row.col.Width {
			t.Errorf("%s: the column came back as %+v", row.name, col)
		}
		src.Release()
		out.Release()
	}
	for name := range documented {
		t.Errorf("docs/types.md has a row that nothing tests: %s", name)
	}
}

func legalName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, s)
}

// typeOf digs the type of column c out of an envelope's schema.
func typeOf(t *testing.T, schema string) any {
	var v any
	if err := json.Unmarshal([]byte(schema), &v); err != nil {
		t.Fatal(err)
	}
	before := v.(map[string]any)["fields"].([]any)[0].(map[string]any)["type"].([]any)[1].(map[string]any)
	for _, f := range before["fields"].([]any) {
		if f := f.(map[string]any); f["name"] == "c" {
			return f["type"].([]any)[1]
		}
	}
	t.Fatal("the column is not in the schema")
	return nil
}

// If this failed, two columns would share a field, or a name would be refused
// by a registry.
func TestNames(t *testing.T) {
	tab := func(names ...string) *change.Table {
		t := &change.Table{Source: "my-src", Connector: connector, Schema: "public", Name: "1 täble", Topic: "my-src.public.1 täble"}
		for _, n := range names {
			t.Columns = append(t.Columns, change.Column{Name: n, Type: "text", Kind: change.String})
		}
		t.Key = []int{0}
		return t.Index()
	}
	reg := newRegistry(t)
	odd := tab("id", "2nd", "a b", "ä", "order,by", `back\slash`)
	e := newEncoder(t, reg, odd)
	src, b := change.Get(), change.Get()
	defer src.Release()
	defer b.Release()
	c := src.Append(odd, change.Update)
	c.New = src.Row(6)
	c.New[0] = src.SpanString(change.String, "k")
	for i := 1; i < 6; i++ {
		c.New[i] = change.UnchangedValue()
	}
	r := encodeAll(t, e, src)[0]
	header := e.AppendUnchanged(nil, c)
	if err := avro.NewDecoder(reg).Append(t.Context(), b, change.Coord{Topic: &change.Topic{Name: odd.Topic}}, r.key, r.value, avro.Headers{Unchanged: header}, 0); err != nil {
		t.Fatal(err)
	}
	got := b.Changes[0]
	for i, col := range got.Table.Columns {
		if col.Name != odd.Columns[i].Name || i > 0 && !got.New[i].IsUnchanged() {
			t.Errorf("column %q came back as %q, %s", odd.Columns[i].Name, col.Name, got.New[i].Kind())
		}
	}
	if got.Table.Source != "my-src" || got.Table.Name != "1 täble" {
		t.Errorf("the table came back as %+v", got.Table)
	}
	_, _, err := avro.EnvelopeSchemas(tab("a b", "a_b"))
	want(t, err, avro.ErrTable, `"a b"`, `"a_b"`)
	if _, _, err := avro.EnvelopeSchemas(tab("a b", "a_c")); err != nil { // Remedy: TW-AVRO-TABLE
		t.Error(err)
	}
}
