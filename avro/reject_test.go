package avro_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
)

func want(t *testing.T, err error, code problem.Code, says ...string) {
	t.Helper()
	if !problem.Has(err, code) {
		t.Fatalf("want %s, got %v", code.ID, err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Fatalf("%q does not say %q", err, s)
		}
	}
}

// If this failed, a number would be cut on its way, or a restricted one show
// in a log.
func TestDecimalsThatDoNotFit(t *testing.T) {
	tab := costed(t).Table
	e := newEncoder(t, newRegistry(t), tab)
	b := change.Get()
	defer b.Release()
	row := fillCosted(b, tab, 1)
	c := b.Append(tab, change.Update)
	c.New = row
	rate := tab.Column("rate")
	huge, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	for _, bad := range []change.Value{
		change.DecimalValue(1_000_000_000_000, 4), // 13 digits
		change.DecimalValue(-100_000_000, 0),
		change.DecimalValue(1, -9),
		change.DecimalValue(123_451, 5), // the fifth digit is not zero
		change.IntValue(100_000_000),
		b.BigDecimal(huge, 4), b.BigDecimal(huge, 29),
	} {
		row[rate] = bad
		before := []byte("before")
		got, err := e.AppendValue(before, b, c)
		want(t, err, avro.ErrDecimalOverflow, "field rate of ps.time_entry_costed", "numeric(12,4)")
		if strings.Contains(err.Error(), string(b.AppendText(nil, bad))) {
			t.Fatalf("the error shows the value: %v", err)
		}
		if string(got) != "before" {
			t.Fatalf("the buffer holds the half of a record: %q", got)
		}
	}
	row[rate] = change.SpecialDecimal(change.NaN)
	_, err := e.AppendValue(nil, b, c)
	want(t, err, avro.ErrNoForm, "field rate")
	zeros, _ := new(big.Int).SetString("12345000000000000000000000000", 10)
	for _, good := range []struct {
		v    change.Value
		text string
	}{
		{change.DecimalValue(123_450, 5), "1.2345"},
		{change.DecimalValue(-7, 0), "-7.0000"},
		{change.DecimalValue(7, -2), "700.0000"},
		{change.IntValue(99_999_999), "99999999.0000"},
		{change.DecimalValue(999_999_999_999, 4), "99999999.9999"},
		{b.BigDecimal(zeros, 28), "1.2345"},
	} {
		row[rate] = good.v
		value, err := e.AppendValue(nil, b, c)
		if err != nil {
			t.Fatal(err)
		}
		key, err := e.AppendKey(nil, b, c)
		if err != nil {
			t.Fatal(err)
		}
		out := change.Get()
		if err := avro.NewDecoder(registryOf(t, e, tab)).Append(t.Context(), out, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, key, value, avro.Headers{}, 0); err != nil {
			t.Fatal(err)
		}
		if got := string(out.AppendText(nil, out.Changes[0].New[rate])); got != good.text {
			t.Fatalf("%s came back as %s", good.text, got)
		}
		out.Release()
	}
}

// registryOf makes a registry in which the schemas have the ids that e uses.
func registryOf(t *testing.T, _ *avro.Encoder, tab *change.Table) *avro.Registry {
	reg := newRegistry(t)
	newEncoder(t, reg, tab)
	return reg
}

// If this failed, an incomplete record would pass for a complete one.
func TestWhatCanonicalRecordsRefuse(t *testing.T) {
	tab := costed(t).Table
	e := newEncoder(t, newRegistry(t), tab)
	b := change.Get()
	defer b.Release()
	for _, x := range []struct {
		field string
		v     change.Value
		code  problem.Code
	}{
		{"status", change.NullValue(), avro.ErrNull},
		{"status", change.IntValue(3), avro.ErrKind},
		{"currency", change.UnchangedValue(), avro.ErrUnchanged},
		{"work_date", change.DateValue(change.PosInfinity), avro.ErrNoForm},
		{"work_date", change.DateValue(1 << 40), avro.ErrNoForm},
		{"updated_at", change.TimestampTZValue(change.NegInfinity), avro.ErrNoForm},
		{"updated_at", change.TimestampValue(1), avro.ErrKind},
	} {
		c := b.Append(tab, change.Update)
		c.New = fillCosted(b, tab, 1)
		c.New[tab.Column(x.field)] = x.v
		_, err := e.AppendValue(nil, b, c)
		want(t, err, x.code, "field "+x.field)
		// Remedy: TW-AVRO-NULL
		c.New = fillCosted(b, tab, 1)
		if _, err := e.AppendValue(nil, b, c); err != nil {
			t.Errorf("with a good %s: %v", x.field, err)
		}
	}
	row := fillCosted(b, tab, 1)
	row[0] = change.NullValue()
	_, err := e.AppendKeyOf(nil, b, row)
	want(t, err, avro.ErrNull, "time_entry_id")
}

// If this failed, a value of another kind than its column's, which is a bug of
// the source, would pass for what it is not.
func TestRawRecordsRefuseAnotherKind(t *testing.T) {
	tab := kinds()
	e := newEncoder(t, newRegistry(t), tab)
	b := change.Get()
	defer b.Release()
	c := b.Append(tab, change.Create)
	c.New = b.Row(len(tab.Columns))
	c.New[0], c.New[1] = change.IntValue(1), b.SpanString(change.String, "k")
	c.New[tab.Column("d")] = b.SpanString(change.Text, "today")
	_, err := e.AppendValue(nil, b, c)
	want(t, err, avro.ErrKind, "field d of psa.public.kinds")
}

// headersOf are those of the envelope that was just written with m.
func headersOf(e *avro.Encoder, m *avro.Memo, c *change.Change) (h avro.Headers) {
	if m.Beside() {
		h.Unchanged, h.Unknown = e.AppendUnchanged(nil, c), e.AppendUnknown(nil, c)
		h.Text, h.TextBefore = m.Texts()
	}
	return h
}

// If this failed, a row with a value that Avro has no form for would be lost, or
// would keep the one that corrects it from arriving.
func TestValuesWithoutAForm(t *testing.T) {
	tab := kinds()
	reg := newRegistry(t)
	e, d := newEncoder(t, reg, tab), avro.NewDecoder(reg)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}}
	b, out := change.Get(), change.Get()
	defer b.Release()
	defer out.Release()
	elems := b.Row(2)
	elems[0], elems[1] = change.IntValue(1), change.IntValue(2)
	odd := b.Row(1)
	odd[0] = change.SpecialDecimal(change.NaN)
	var m avro.Memo
	for _, x := range []struct {
		column string
		v      change.Value
		text   string
		kind   change.Kind // in which it comes back
	}{
		{"a", b.Array([]change.Dim{{Len: 2, Lower: 0}}, elems), "[0:1]={1,2}", change.Text},
		{"a", b.Array([]change.Dim{{Len: 1, Lower: 1}, {Len: 2, Lower: 1}}, elems), "{{1,2}}", change.Text},
		{"an", b.Array([]change.Dim{{Len: 1, Lower: 1}}, odd), "{NaN}", change.Text},
		{"nh", change.SpecialDecimal(change.NaN), "NaN", change.Decimal},
		{"nh", change.DecimalValue(123456789012, 1), "12345678901.2", change.Decimal},
		{"i2", change.IntValue(1 << 15), "32768", change.Text},
		{"ts", b.SpanString(change.Text, "294276-12-31 23:59:59"), "294276-12-31 23:59:59", change.Text},
		{"tstz", b.SpanString(change.Text, `294276-12-31 23:59:59+00`), "294276-12-31 23:59:59+00", change.Text},
	} {
		i := tab.Column(x.column)
		for _, op := range []change.Op{change.Create, change.Update, change.Delete} {
			row := b.Row(len(tab.Columns))
			row[0], row[1], row[i] = change.IntValue(1), b.SpanString(change.String, `k "1"`), x.v
			c := b.Append(tab, op)
			if c.Old = row; op == change.Create {
				c.Old = nil
			}
			if c.New = row; op == change.Delete {
				c.New = nil
			}
			value, err := e.AppendValueWith(&m, nil, b, c)
			if err != nil {
				t.Fatalf("%s in %s: %v", x.text, x.column, err)
			}
			key, err := e.AppendKey(nil, b, c)
			if err != nil {
				t.Fatal(err)
			}
			out.Reset()
			if err := d.Append(t.Context(), out, at, key, value, headersOf(e, &m, c), 0); err != nil {
				t.Fatalf("%s in %s: %v", x.text, x.column, err)
			}
			for _, back := range [][]change.Value{out.Changes[0].Old, out.Changes[0].New} {
				if back == nil {
					continue
				}
				if got := string(out.AppendText(nil, back[i])); got != x.text || back[i].Kind() != x.kind {
					t.Errorf("%s in %s came back as %s %q", x.text, x.column, back[i].Kind(), got)
				}
			}
		}
	}
	// The memo keeps nothing of a record for the next.
	c := b.Append(tab, change.Create)
	c.New = b.Row(len(tab.Columns))
	c.New[0], c.New[1] = change.IntValue(2), b.SpanString(change.String, "k")
	if _, err := e.AppendValueWith(&m, nil, b, c); err != nil || m.Beside() {
		t.Error("what was beside one record is beside the next", err)
	}
	for name, h := range map[string]avro.Headers{"no JSON": {Text: []byte("{")}, "no column": {Text: []byte(`{"zz":"1"}`)}, "none before": {Unknown: []byte("zz")}} {
		c.Op, c.Old = change.Update, c.New
		value, err := e.AppendValueWith(&m, nil, b, c)
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if err := d.Append(t.Context(), out, at, nil, value, h, 0); !problem.Has(err, avro.ErrGarbage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A key is never null: something stands there, and it is told from other keys.
func TestKeysWithoutAForm(t *testing.T) {
	of := func(k change.Kind, p, s int16) change.Column {
		return change.Column{Name: "k", Type: "k", Kind: k, Precision: p, Scale: s}
	}
	ints := change.Column{Kind: change.Int, Width: 4}
	list := of(change.Array, -1, -1)
	list.Elem = &ints
	b, out := change.Get(), change.Get()
	defer b.Release()
	defer out.Release()
	elems := b.Row(2)
	elems[0] = change.IntValue(1)
	for name, x := range map[string]struct {
		col    change.Column
		values []change.Value
	}{
		"numeric":   {of(change.Decimal, 5, 2), []change.Value{change.SpecialDecimal(change.NaN), change.DecimalValue(99999, 2), change.DecimalValue(-99999, 2)}},
		"timestamp": {of(change.Timestamp, -1, -1), []change.Value{b.SpanString(change.Text, "294276-12-31 23:59:59.999999"), b.SpanString(change.Text, "294276-12-31 23:59:59.999998"), b.SpanString(change.Text, "294247-01-10 04:00:54.775807"), change.TimestampValue(math.MaxInt64 - 1), change.TimestampValue(change.NegInfinity)}},
		"moment":    {of(change.TimestampTZ, -1, -1), []change.Value{b.SpanString(change.Text, "294276-12-31 23:59:59+00"), change.TimestampTZValue(0)}},
		"array":     {list, []change.Value{b.Array([]change.Dim{{Len: 2, Lower: 5}}, elems), b.Array(nil, nil)}},
	} {
		tab := (&change.Table{Source: "s", Connector: connector, Schema: "public", Name: name, Topic: "s.public." + name, OldFull: true, Columns: []change.Column{x.col}, Key: []int{0}}).Index()
		reg := newRegistry(t)
		e, d := newEncoder(t, reg, tab), avro.NewDecoder(reg)
		seen := map[string]bool{}
		for _, v := range x.values {
			var m avro.Memo
			c := b.Append(tab, change.Update)
			c.New = b.Row(1)
			c.New[0] = v
			c.Old = c.New
			key, err := e.AppendKey(nil, b, c)
			if err != nil {
				t.Fatal(name, err)
			}
			value, err := e.AppendValueWith(&m, nil, b, c)
			if err != nil {
				t.Fatal(name, err)
			}
			out.Reset()
			if err := d.Append(t.Context(), out, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, key, value, headersOf(e, &m, c), 0); err != nil {
				t.Fatal(name, err)
			}
			if want, got := string(b.AppendText(nil, v)), string(out.AppendText(nil, out.Changes[0].New[0])); got != want {
				t.Errorf("%s: key %q came back as %q", name, want, got)
			}
			if seen[string(key)] {
				t.Errorf("%s: %q has the key of another", name, b.AppendText(nil, v))
			}
			seen[string(key)] = true
		}
	}
}

// If this failed, a broken record would stop or crash what reads the topic.
func TestGarbageIsRejected(t *testing.T) {
	reg := newRegistry(t)
	tab := timeEntry()
	src := change.Get()
	defer src.Release()
	entries(src, tab, 3)
	e := newEncoder(t, reg, tab)
	records := encodeAll(t, e, src)
	d := avro.NewDecoder(reg)
	at := change.Coord{Topic: &change.Topic{Name: tab.Topic}, Partition: 3, Offset: 99}
	b := change.Get()
	defer b.Release()
	ok := records[1]
	refuse := func(key, value, pos, unchanged []byte, code problem.Code) {
		t.Helper()
		want(t, d.Append(t.Context(), b, at, key, value, avro.Headers{Pos: pos, Unchanged: unchanged}, 0), code)
		if b.Len() != 0 {
			t.Fatal("a refused record was appended")
		}
	}
	refuse(ok.key, []byte("garbage"), nil, nil, avro.ErrGarbage)
	refuse(ok.key, []byte{}, nil, nil, avro.ErrGarbage)
	refuse([]byte{1, 2}, ok.value, nil, nil, avro.ErrGarbage)
	refuse(ok.key, append(bytes.Clone(ok.value), 0), nil, nil, avro.ErrGarbage)
	refuse(ok.key, ok.value, []byte("short"), nil, avro.ErrGarbage)
	refuse(ok.key, ok.value, nil, []byte("no_such_column"), avro.ErrGarbage)
	refuse(ok.key, append([]byte{0, 0, 1, 0, 0}, ok.value[5:]...), nil, nil, avro.ErrUnknownSchema)
	refuse(ok.key, append(bytes.Clone(ok.key[:5]), ok.value[5:]...), nil, nil, avro.ErrGarbage) // the key's schema
	for n := 5; n < len(ok.value); n++ {
		refuse(ok.key, ok.value[:n], nil, nil, avro.ErrGarbage)
	}
	err := d.Append(t.Context(), b, at, ok.key, ok.value[:20], avro.Headers{}, 0)
	want(t, err, avro.ErrGarbage, "offset 99", "partition 3", tab.Topic)
	if err := d.Append(t.Context(), b, at, ok.key, nil, avro.Headers{}, 0); err != nil || b.Len() != 0 {
		t.Fatalf("a raw tombstone: %v, %d changes", err, b.Len())
	}
	id, err := reg.Register(t.Context(), "unreadable", `{"type":"record","name":"x","fields":[{"name":"m","type":{"type":"map","values":"string"}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	refuse(ok.key, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(id)), ok.value[5:]...), nil, nil, avro.ErrUnreadableSchema)
	if err := d.Append(t.Context(), b, at, ok.key, ok.value, avro.Headers{}, 0); err != nil || b.Len() != 1 { // Remedy: TW-AVRO-SCHEMA
		t.Fatalf("written again: %v, %d changes", err, b.Len())
	}
}

// If this failed, an outage of the registry would park records, or a refusal be
// tried for ever.
func TestRegistryErrorsAreClassified(t *testing.T) {
	status, body := 500, `{"error_code":50001,"message":"down"}`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		if _, err := w.Write([]byte(body)); err != nil {
			t.Error(err)
		}
	}))
	reg, err := avro.NewRegistry(strings.Replace(s.URL, "http://", "http://user:secret@", 1))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(reg.URL(), "secret") {
		t.Fatal("the address shows the password")
	}
	for _, x := range []struct {
		status int
		body   string
		code   problem.Code
	}{
		{500, `{"error_code":50001,"message":"down"}`, avro.ErrRegistryUnavailable},
		{503, ``, avro.ErrRegistryUnavailable},
		{429, ``, avro.ErrRegistryUnavailable},
		{409, `{"error_code":409,"message":"incompatible"}`, avro.ErrIncompatible},
		{422, `{"error_code":42201,"message":"invalid"}`, avro.ErrIncompatible},
		{401, `{"error_code":401,"message":"no"}`, avro.ErrRegistryDenied},
	} {
		status, body = x.status, x.body
		_, err := reg.Register(t.Context(), "s", `"string"`)
		want(t, err, x.code)
		if strings.Contains(err.Error(), "secret") {
			t.Fatalf("the error shows the password: %v", err)
		}
	}
	status, body = 200, `{"id":1}` // Remedy: TW-REGISTRY-DENIED
	if id, err := reg.Register(t.Context(), "s", `"string"`); err != nil || id != 1 {
		t.Fatalf("with the right: id %d, %v", id, err)
	}
	s.Close()
	_, err = reg.SchemaByID(t.Context(), 1)
	want(t, err, avro.ErrRegistryUnavailable)
	if _, err := avro.NewRegistry("localhost:8081"); !problem.Has(err, avro.ErrRegistryDenied) {
		t.Fatalf("a URL without a scheme: %v", err)
	}
}
