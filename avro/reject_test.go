package avro_test

import (
	"bytes"
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
		if err := avro.NewDecoder(registryOf(t, e, tab)).Append(t.Context(), out, change.Coord{Topic: &change.Topic{Name: tab.Topic}}, key, value, nil, nil, 0); err != nil {
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
	}
	row := fillCosted(b, tab, 1)
	row[0] = change.NullValue()
	_, err := e.AppendKeyOf(nil, b, row)
	want(t, err, avro.ErrNull, "time_entry_id")
}

// If this failed, a text array of another shape would arrive bent, and one bad
// row of a source would stop its table.
func TestWhatRawRecordsRefuse(t *testing.T) {
	tab := kinds()
	e := newEncoder(t, newRegistry(t), tab)
	b := change.Get()
	defer b.Release()
	c := b.Append(tab, change.Create)
	c.New = b.Row(len(tab.Columns))
	c.New[0], c.New[1] = change.IntValue(1), b.SpanString(change.String, "k")
	if _, err := e.AppendValue(nil, b, c); err != nil {
		t.Fatal(err)
	}
	elems := b.Row(2)
	elems[0], elems[1] = change.IntValue(1), change.IntValue(2)
	for _, x := range []struct {
		column string
		v      change.Value
		code   problem.Code
	}{
		{"a", b.Array([]change.Dim{{Len: 2, Lower: 0}}, elems), avro.ErrNoForm},
		{"a", b.Array([]change.Dim{{Len: 1, Lower: 1}, {Len: 2, Lower: 1}}, elems), avro.ErrNoForm},
		{"nh", change.SpecialDecimal(change.Infinite), avro.ErrNoForm},
		{"i2", change.IntValue(1 << 15), avro.ErrNoForm},
		{"d", b.SpanString(change.Text, "today"), avro.ErrKind},
		{"ts", b.SpanString(change.Text, "294276-12-31 23:59:59"), avro.ErrNoForm},
		{"tstz", b.SpanString(change.Text, "294276-12-31 23:59:59+00"), avro.ErrNoForm},
	} {
		c.New[tab.Column(x.column)] = x.v
		_, err := e.AppendValue(nil, b, c)
		want(t, err, x.code, "field "+x.column+" of psa.public.kinds")
		c.New[tab.Column(x.column)] = change.NullValue()
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
		want(t, d.Append(t.Context(), b, at, key, value, pos, unchanged, 0), code)
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
	err := d.Append(t.Context(), b, at, ok.key, ok.value[:20], nil, nil, 0)
	want(t, err, avro.ErrGarbage, "offset 99", "partition 3", tab.Topic)
	if err := d.Append(t.Context(), b, at, ok.key, nil, nil, nil, 0); err != nil || b.Len() != 0 {
		t.Fatalf("a raw tombstone: %v, %d changes", err, b.Len())
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
	s.Close()
	_, err = reg.SchemaByID(t.Context(), 1)
	want(t, err, avro.ErrRegistryUnavailable)
	if _, err := avro.NewRegistry("localhost:8081"); !problem.Has(err, avro.ErrRegistryDenied) {
		t.Fatalf("a URL without a scheme: %v", err)
	}
}
