package registry_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/internal/testkit"
)

var rawTable = (&change.Table{
	Source: "psa", Connector: &change.Connector{Name: "postgresql", Version: "1", Fields: []change.SourceField{{Name: "txId", Of: change.SourceXID}, {Name: "lsn", Of: change.SourceLSN}, {Name: "xmin"}}},
	Database: "psa", Schema: "public", Name: "kinds", Topic: "psa.public.kinds", OldFull: true,
	Columns: []change.Column{
		{Name: "id", Type: "bigint", Kind: change.Int, Width: 8},
		{Name: "hours", Type: "numeric(6,2)", Kind: change.Decimal, Precision: 6, Scale: 2},
		{Name: "any", Type: "numeric", Kind: change.Decimal, Precision: -1, Scale: -1},
		{Name: "day", Type: "date", Kind: change.Date},
		{Name: "clock", Type: "time without time zone", Kind: change.Time},
		{Name: "local", Type: "timestamp without time zone", Kind: change.Timestamp},
		{Name: "at", Type: "timestamp with time zone", Kind: change.TimestampTZ, Precision: 6},
		{Name: "never", Type: "timestamp with time zone", Kind: change.TimestampTZ, Precision: 6},
		{Name: "u", Type: "uuid", Kind: change.UUID},
		{Name: "tags", Type: "text[]", Kind: change.Array, Elem: &change.Column{Kind: change.String}},
		{Name: "blob", Type: "bytea", Kind: change.Bytes},
		{Name: "nothing", Type: "text", Kind: change.String},
	}, Key: []int{0},
}).Index()

func produceBoth(t *testing.T, c *kafka.Cluster, reg *avro.Registry) {
	t.Helper()
	ctx := t.Context()
	all, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	costed := all["ps.time_entry_costed"].Table
	b := change.Get()
	defer b.Release()
	raw := b.Append(rawTable, change.Create)
	raw.Time, raw.XID, raw.Pos = 1_770_000_000_123_456, 77, change.Pos{System: 1, Timeline: 1, LSN: 4711, Kind: change.PosCommit, Ordinal: 2}
	row := b.Row(len(rawTable.Columns))
	row[0], row[1] = change.IntValue(1<<40), change.DecimalValue(-75, 1)
	row[2], row[3] = b.SpanString(change.String, ""), change.DateValue(20_515)
	row[2] = change.DecimalValue(1500, 3)
	row[4], row[5] = change.TimeValue(3_723_000_100), change.TimestampValue(-1)
	row[6], row[7] = change.TimestampTZValue(1_770_000_000_000_001), change.TimestampTZValue(change.PosInfinity)
	row[8] = b.Span(change.UUID, []byte("0123456789abcdef"))
	tags := b.Row(2)
	tags[0] = b.SpanString(change.String, "ä")
	row[9], row[10] = b.Array([]change.Dim{{Len: 2, Lower: 1}}, tags), b.Span(change.Bytes, []byte{0, 255})
	raw.New = row
	can := b.Append(costed, change.Update)
	row = b.Row(len(costed.Columns))
	for name, v := range map[string]change.Value{
		"time_entry_id": b.SpanString(change.String, "5"), "resource_id": b.SpanString(change.String, "12"),
		"project_id": b.SpanString(change.String, "17"), "status": b.SpanString(change.String, "approved"),
		"work_date": change.DateValue(20_515), "hours": change.DecimalValue(75, 1), "billable": change.BoolValue(true),
		"rate": change.DecimalValue(985_000, 4), "cost": change.DecimalValue(738_750_000, 6), "updated_at": change.TimestampTZValue(1_770_000_000_000_001),
	} {
		row[costed.Column(name)] = v
	}
	can.New = row

	cl, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := range b.Changes {
		ch := &b.Changes[i]
		if _, err := c.EnsureTopic(ctx, kafka.TopicSpec{Name: ch.Table.Topic, Partitions: 2}); err != nil {
			t.Fatal(err)
		}
		e, err := avro.NewEncoder(ctx, reg, ch.Table)
		if err != nil {
			t.Fatal(err)
		}
		key, err := e.AppendKey(nil, b, ch)
		if err != nil {
			t.Fatal(err)
		}
		value, err := e.AppendValue(nil, b, ch)
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: ch.Table.Topic, Key: key, Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// readForeign lets Python's confluent-kafka read the topics, and gives what it
// printed, by topic.
func readForeign(t *testing.T, brokers, url string) map[string]map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	python, err := testkit.Python(ctx, testkit.PythonClient)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, python, "testdata/read_topics.py", brokers, url, "psa.public.kinds=1", "ps.time_entry_costed=1")
	var problems bytes.Buffer
	cmd.Stderr = &problems
	text, err := cmd.Output()
	if err != nil {
		t.Fatalf("the foreign client: %v\n%s", err, problems.String())
	}
	out := map[string]map[string]any{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var v map[string]any
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		out[v["topic"].(string)] = v
	}
	return out
}

func checkForeign(t *testing.T, got map[string]map[string]any) {
	t.Helper()
	raw := got["psa.public.kinds"]
	value := raw["value"].(map[string]any)
	for _, f := range []string{"ts_ms", "ts_us", "ts_ns"} { // when it was encoded
		if n, ok := value[f].(float64); !ok || n <= 0 {
			t.Errorf("%s is %v", f, value[f])
		}
		delete(value, f)
	}
	if d := cmp.Diff(map[string]any{"id": float64(1 << 40)}, raw["key"]); d != "" {
		t.Errorf("the raw key:\n%s", d)
	}
	if d := cmp.Diff(map[string]any{
		"before": nil,
		"after": map[string]any{
			"id": float64(1 << 40), "hours": "Decimal:-7.50", "any": "1.500", "day": "date:2026-03-03", "clock": "time:01:02:03.000100",
			"local": "datetime:1969-12-31 23:59:59.999999", "at": "2026-02-02T02:40:00.000001Z", "never": "infinity",
			"u": "UUID:30313233-3435-3637-3839-616263646566", "tags": []any{"ä", nil}, "blob": "hex:00ff", "nothing": nil,
		},
		"source": map[string]any{
			"version": "1", "connector": "postgresql", "name": "psa", "ts_ms": 1770000000123.0, "snapshot": "false", "db": "psa",
			"sequence": `["4711","2"]`, "ts_us": 1770000000123456.0, "ts_ns": 1770000000123456000.0, "schema": "public", "table": "kinds",
			"txId": 77.0, "lsn": 4711.0, "xmin": nil,
		},
		"transaction": nil, "op": "c",
	}, raw["value"]); d != "" {
		t.Errorf("the raw value:\n%s", d)
	}
	can := got["ps.time_entry_costed"]
	if can["key"] != "5" {
		t.Errorf("the canonical key is %v", can["key"])
	}
	if d := cmp.Diff(map[string]any{
		"time_entry_id": "5", "resource_id": "12", "project_id": "17", "project_number": nil, "customer_id": nil, "customer_name": nil,
		"legal_entity": nil, "currency": nil, "work_date": "date:2026-03-03", "hours": "Decimal:7.500000", "billable": true, "status": "approved",
		"cost_rate_id": nil, "rate": "Decimal:98.5000", "cost": "Decimal:738.7500000000", "waiting_for": nil,
		"updated_at": "datetime:2026-02-02 02:40:00.000001+00:00",
	}, can["value"]); d != "" {
		t.Errorf("the canonical value:\n%s", d)
	}
}

// If this failed, nobody but tallywire could read what it writes.
func TestPythonReadsThroughTheEmbeddedRegistry(t *testing.T) {
	c := newCluster(t)
	s, err := registry.New(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := httptest.NewServer(s)
	defer h.Close()
	reg, err := avro.NewRegistry(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	produceBoth(t, c, reg)
	checkForeign(t, readForeign(t, c.Brokers()[0], h.URL))
}

// If this failed, a foreign writer could not feed a canonical topic.
func TestPythonWritesWhatWeRead(t *testing.T) {
	c := newCluster(t)
	s, err := registry.New(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := httptest.NewServer(s)
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	topic, err := c.EnsureTopic(ctx, kafka.TopicSpec{Name: "ps.cost_rate", Partitions: 1, Compact: true})
	if err != nil {
		t.Fatal(err)
	}
	python, err := testkit.Python(ctx, testkit.PythonClient)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, python, "testdata/write_topic.py", c.Brokers()[0], h.URL, topic.Name, "../../avro/contracts/cost_rate.avsc").CombinedOutput(); err != nil {
		t.Fatalf("the foreign client: %v\n%s", err, out)
	}
	reg, err := avro.NewRegistry(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	cl, err := c.Client(kgo.ConsumeTopics(topic.Name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	fs := cl.PollRecords(ctx, 1)
	if err := fs.Err(); err != nil {
		t.Fatal(err)
	}
	r := fs.Records()[0]
	b := change.Get()
	defer b.Release()
	if err := avro.NewDecoder(reg).Append(ctx, b, change.Coord{Topic: topic}, r.Key, r.Value, avro.Headers{}, 0); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range b.Changes[0].New {
		got = append(got, string(b.AppendText(nil, v)))
	}
	if d := cmp.Diff([]string{"12/7", "12", "2026-03-03", "", "98.5000", "EUR", "2026-02-02 02:40:00.000001+00"}, got); d != "" {
		t.Error(d)
	}
	if key := change.AppendKey(nil, b, &b.Changes[0]); string(key) != "12/7" {
		t.Errorf("the key is %q", key)
	}
	// Our own writer must be given the id that Python got.
	contracts, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	e, err := avro.NewEncoder(ctx, reg, contracts[topic.Name].Table)
	if err != nil {
		t.Fatal(err)
	}
	value, err := e.AppendValue(nil, b, &b.Changes[0])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(value, r.Value) {
		t.Errorf("we write %x, Python wrote %x", value, r.Value)
	}
}

// The same through a registry of another maker; and our client classifies its
// answers as it does those of the embedded one.
func TestPythonReadsThroughApicurio(t *testing.T) {
	c := newCluster(t)
	a := testkit.NewApicurio(t)
	reg, err := avro.NewRegistry(a.URL())
	if err != nil {
		t.Fatal(err)
	}
	if err := reg.Ping(t.Context()); err != nil {
		t.Errorf("asking whether it is there: %v", err)
	}
	produceBoth(t, c, reg)
	checkForeign(t, readForeign(t, c.Brokers()[0], a.URL()))
	b := change.Get()
	defer b.Release()
	err = avro.NewDecoder(reg).Append(t.Context(), b, change.Coord{}, nil, []byte{0, 0, 9, 9, 9, 1}, avro.Headers{}, 0)
	if !problem.Has(err, avro.ErrUnknownSchema) {
		t.Errorf("an unknown id: %v", err)
	}
	if _, err := reg.Register(t.Context(), "invalid-value", `{"type":"nonsense"}`); !problem.Has(err, avro.ErrIncompatible) {
		t.Errorf("an invalid schema: %v", err)
	}
}
