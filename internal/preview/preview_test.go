package preview

import (
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/registry"
	"github.com/tallywire/tallywire/internal/rules"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/records"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
	"github.com/tallywire/tallywire/transforms/mapping"
)

func TestMain(m *testing.M) { leak.Main(m) }

// day is how far back the tests look, and much is memory that all keys fit into.
const day, much = 24 * time.Hour, 256 << 20

// previewBed is a broker that holds raw records as a source writes them, and what
// the rules of old.yml made of them.
type previewBed struct {
	t      *testing.T
	dir    string
	broker string
	obs    *obs.Obs
	kc     *kafka.Cluster
	reg    *avro.Registry
	table  *change.Table
	side   *Side
}

const previewRules = `
sources: {psa: {type: postgres, dsn: env:TW_TEST_NOT_SET_AT_ALL}}
transforms:
  canonical:
    type: map
    topics:
      - from: psa.public.employee
        to: ps.resource
        fields: {resource_id: id}
      - from: psa.public.line
        to: ps.time_entry
        where: '!row.gone'
        fields:
          time_entry_id: "line-{id}"
          resource_id: user_id
          project_id: "=P-1"
          task_number: "=none"
          work_date: spent_on
          hours: 'round(decimal(row.hours), 2, "half_even")'
          billable: true
          status: status
          note: null
          bill_rate: rate
          created_at: "=2026-01-01T00:00:00Z"
          updated_at: "=2026-01-01T00:00:00Z"
`

// miniKafka gives a broker of its own, of this process.
func miniKafka(t *testing.T) string {
	t.Helper()
	broker, err := embedded.StartMiniKafka(t.Context(), t.TempDir(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = broker.Close() })
	return broker.Addr()
}

func newPreviewBed(t *testing.T, broker string) *previewBed {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	o := obs.New(log)
	kc, err := kafka.New(kafka.Config{Brokers: []string{broker}}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kc.Close)
	srv, err := registry.New(t.Context(), kc, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Close)
	web := httptest.NewServer(srv)
	t.Cleanup(web.Close)
	bed := &previewBed{t: t, broker: broker, obs: o, kc: kc, dir: t.TempDir()}
	bed.put("old.yml", previewRules)
	if bed.reg, err = avro.NewRegistry(web.URL); err != nil {
		t.Fatal(err)
	}
	bed.side = bed.sideOf(bed.dir + "/old.yml")
	bed.table = &change.Table{Source: "psa", Schema: "public", Name: "line", Topic: "psa.public.line", OldFull: true, Key: []int{0}}
	for _, col := range [][2]string{
		{"id", "bigint"}, {"user_id", "bigint"}, {"hours", "double precision"}, {"spent_on", "date"}, {"status", "text"}, {"rate", "numeric(12,4)"}, {"gone", "boolean"},
	} {
		named, ok := pgoutput.NamedType(col[1])
		if !ok {
			t.Fatal(col)
		}
		named.Column.Name, named.Column.Nullable = col[0], col[0] != "id"
		bed.table.Columns = append(bed.table.Columns, named.Column)
	}
	bed.table.Index()
	bed.table.Connector = &change.Connector{Name: "postgresql", Version: "1"}
	bed.table.Database = "psa"
	return bed
}

// changed are the old rules with pieces replaced, as a file.
func (b *previewBed) changed(name string, oldnew ...string) string {
	b.t.Helper()
	text := b.text()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			b.t.Fatal("the rules do not have " + oldnew[i])
		}
		text = strings.Replace(text, oldnew[i], oldnew[i+1], 1)
	}
	return b.put(name, text)
}

// put writes a configuration, and gives its file.
func (b *previewBed) put(name, text string) (file string) {
	b.t.Helper()
	file = filepath.Join(b.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return file
}

func (b *previewBed) text() string {
	b.t.Helper()
	text, err := os.ReadFile(b.dir + "/old.yml")
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}

type lineRow struct {
	op     change.Op
	id     int64
	hours  float64
	status string
	gone   bool
	ago    time.Duration
}

// raw writes rows as the source does.
func (b *previewBed) raw(rows ...lineRow) {
	b.t.Helper()
	batch := change.Get()
	defer batch.Release()
	b.rows(batch, rows)
	b.write(batch)
}

func (b *previewBed) rows(batch *change.Batch, rows []lineRow) {
	for i, r := range rows {
		row := batch.Row(len(b.table.Columns))
		set := func(name string, v change.Value) { row[b.table.Column(name)] = v }
		set("id", change.IntValue(r.id))
		set("user_id", change.IntValue(7))
		set("hours", change.Float64Value(r.hours))
		set("spent_on", change.DateValue(change.Days(2026, 3, 31)))
		set("status", batch.SpanString(change.String, r.status))
		set("rate", change.DecimalValue(1205000+r.id, 4))
		set("gone", change.BoolValue(r.gone))
		c := batch.Append(b.table, r.op)
		c.Time, c.Pos = time.Now().Add(-r.ago).UnixMicro(), change.Pos{LSN: uint64(i + 1)}
		switch r.op {
		case change.Delete:
			c.Old = row
		case change.Update:
			c.Old, c.New = row, row
		default:
			c.New = row
		}
	}
}

// write puts the records of a batch into their topics.
func (b *previewBed) write(batch *change.Batch) {
	b.t.Helper()
	outs := records.NewOutputs(b.kc, b.reg, func(t *change.Table) kafka.TopicSpec {
		return kafka.TopicSpec{Name: t.Topic, Default: 3, Compact: t.Source == ""}
	}, 0, nil)
	if err := outs.EnsureAll(b.t.Context(), batch); err != nil {
		b.t.Fatal(err)
	}
	rs := new(records.Buffer)
	if err := outs.Encode(rs, batch, 0, batch.Len()); err != nil || len(rs.Refused) > 0 {
		b.t.Fatal(err, rs.Refused)
	}
	cl, err := b.kc.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		b.t.Fatal(err)
	}
	defer cl.Close()
	all := make([]*kgo.Record, len(rs.Records))
	for i := range rs.Records {
		all[i] = &rs.Records[i]
	}
	if err := cl.ProduceSync(b.t.Context(), all...).FirstErr(); err != nil {
		b.t.Fatal(err)
	}
}

// transformed writes rows, and what the old rules make of them.
func (b *previewBed) transformed(rows ...lineRow) {
	b.t.Helper()
	b.raw(rows...)
	in := change.Get()
	b.rows(in, rows)
	trial, err := mapping.NewTrial(b.side.stage, b.side.rules.Contracts)
	if err != nil {
		b.t.Fatal(err)
	}
	out, _, err := trial.Apply(b.t.Context(), in)
	if err != nil {
		b.t.Fatal(err)
	}
	defer out.Release()
	b.write(out)
}

// committed sets the offsets of the running transform to the ends of its topics.
func (b *previewBed) committed() {
	b.t.Helper()
	ends, err := b.kc.Admin().ListEndOffsets(b.t.Context(), b.table.Topic)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.kc.Admin().CommitOffsets(b.t.Context(), pipeline.GroupOf("canonical"), ends.Offsets()); err != nil {
		b.t.Fatal(err)
	}
}

// state is all that a broker holds: what a preview must leave as it is.
func (b *previewBed) state() string {
	b.t.Helper()
	adm := b.kc.Admin()
	ends, err := adm.ListEndOffsets(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	groups, err := adm.ListGroups(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	offsets := adm.FetchManyOffsets(b.t.Context(), groups.Groups()...)
	text := fmt.Sprint(groups.Groups())
	for _, o := range ends.Offsets().Sorted() {
		text += fmt.Sprintf(" %s/%d=%d", o.Topic, o.Partition, o.At)
	}
	for _, name := range groups.Groups() {
		for _, o := range offsets[name].Fetched.Offsets().Sorted() {
			text += fmt.Sprintf(" %s:%s/%d=%d", name, o.Topic, o.Partition, o.At)
		}
	}
	return text
}

// sideOf is a configuration's rules.
func (b *previewBed) sideOf(file string) *Side {
	b.t.Helper()
	book, err := rules.Read(file)
	if err != nil {
		b.t.Fatal(err)
	}
	stage, err := book.Stage("canonical", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	side, err := NewSide(book, stage)
	if err != nil {
		b.t.Fatal(err)
	}
	return side
}

// preview gives what the rules of a file change over a day, beside those of with
// or, where that is "", the topics; and sees that nothing is written.
func (b *previewBed) preview(differs bool, file, with string, back time.Duration, memory int) *Result {
	b.t.Helper()
	before := b.state()
	kc, err := kafka.New(kafka.Config{Brokers: []string{b.broker}}, b.obs) // one remembers topics that it asked for in vain
	if err != nil {
		b.t.Fatal(err)
	}
	defer kc.Close()
	p := &Preview{Now: b.sideOf(file), Kafka: kc, Registry: b.reg, Memory: memory, Progress: io.Discard}
	if with != "" {
		p.Before = b.sideOf(with)
	}
	res, err := p.Run(b.t.Context(), time.Now().Add(-back))
	if err != nil {
		b.t.Fatal(err)
	}
	if res.Differs != differs {
		b.t.Errorf("it differs: %v, want %v\n%+v", res.Differs, differs, res)
	}
	if after := b.state(); after != before {
		b.t.Errorf("a preview wrote: before\n%s\nafter\n%s", before, after)
	}
	return res
}

func (r *Result) topic(name string) Topic {
	for _, t := range r.Topics {
		if t.Topic == name {
			return t
		}
	}
	return Topic{}
}

// counts are keys, equal, changed, new, gone.
func (t *Topic) counts() [5]int { return [5]int{t.Keys, t.Equal, t.Changed, t.New, t.Gone} }

// Lost if this fails: a rule is put in place that changes other fields than its
// author thinks, deletes what the ERP has, or parks what went through.
func TestPreviewAgainstTheTopics(t *testing.T) {
	t.Run("kfake", func(t *testing.T) { previewAgainstTheTopics(t, miniKafka(t)) })
	t.Run("kafka", func(t *testing.T) {
		if testing.Short() {
			t.Log("short: on kfake only")
			return
		}
		previewAgainstTheTopics(t, testkit.NewKafka(t, embedded.KafkaOptions{}).Addr())
	})
}

func previewAgainstTheTopics(t *testing.T, broker string) {
	b := newPreviewBed(t, broker)
	b.transformed(lineRow{op: change.Create, id: 90, hours: 9.125, status: "draft", ago: 90 * time.Hour}) // before the window
	b.transformed(
		lineRow{op: change.Create, id: 1, hours: 1.125, status: "draft"},
		lineRow{op: change.Create, id: 2, hours: 2.5, status: "approved"},
		lineRow{op: change.Create, id: 3, hours: 3.135, status: "approved", gone: true},
		lineRow{op: change.Create, id: 4, hours: 4, status: "draft"},
		lineRow{op: change.Update, id: 4, hours: 4.125, status: "approved"},
		lineRow{op: change.Create, id: 5, hours: 5, status: "draft"},
		lineRow{op: change.Delete, id: 5, hours: 5, status: "draft"},
		lineRow{op: change.Create, id: 6, hours: 6, status: "submitted"},
		lineRow{op: change.Update, id: 6, hours: 600, status: "submitted"},
	)

	same := b.preview(false, b.changed("same.yml"), "", day, much)
	if got := same.topic("ps.time_entry"); got.counts() != [5]int{6, 6, 0, 0, 0} || same.Differs || same.Sampled != 1 || len(same.Rejected) > 0 {
		t.Errorf("the same rules differ: %+v", same)
	}
	if len(same.Raw) != 2 || !same.Raw[0].Missing || same.Raw[1].Records != 10 { // and the tombstone of 5
		t.Errorf("read was %+v", same.Raw)
	}

	// Rounding, a note, a cost that may not be shown.
	file := b.changed("new.yml", `2, "half_even"`, `2, "down"`, "note: null", "note: status", "bill_rate: rate", "bill_rate: 'row.rate * 2'")
	res := b.preview(true, file, "", day, much)
	got := res.topic("ps.time_entry")
	if got.counts() != [5]int{6, 2, 4, 0, 0} {
		t.Errorf("counts are %v", got.counts())
	}
	names := map[string]int{}
	for _, f := range got.Fields {
		names[f.Field] = f.Keys
		if sensitive := f.Field == "bill_rate"; f.Hidden != !shown(b.field(f.Field)) || sensitive && f.Hidden == (f.Examples[0].New != nil) {
			t.Errorf("field %+v is shown, or hidden, wrongly", f)
		}
	}
	if want := map[string]int{"note": 4, "bill_rate": 4}; !reflect.DeepEqual(names, want) {
		t.Errorf("fields that differ are %v, want %v", names, want)
	}
	if x := got.Fields[0]; x.Field == "note" && (len(x.Examples) != 3 || x.Examples[0].Key != "line-1") {
		t.Errorf("examples are %+v", x)
	}
	up := b.preview(true, b.changed("up.yml", `2, "half_even"`, `2, "up"`), "", day, much) // 1.125 and 4.125 were 1.12 and 4.12
	if got := up.topic("ps.time_entry"); len(got.Fields) != 1 || got.Fields[0].Field != "hours" || got.Fields[0].Keys != 2 || *got.Fields[0].Examples[0].Old != "1.12" || *got.Fields[0].Examples[0].New != "1.13" {
		t.Errorf("rounding: %+v", got)
	}

	where := b.preview(true, b.changed("where.yml", "'!row.gone'", `'row.status == "approved"'`), "", day, much)
	if got := where.topic("ps.time_entry"); got.counts() != [5]int{6, 3, 0, 1, 2} || got.NewKeys[0] != "line-3" || strings.Join(got.Lost, " ") != "line-1 line-6" {
		t.Errorf("where: %+v", got)
	}

	bad := b.preview(true, b.changed("bad.yml", "decimal(row.hours), 2", "decimal(row.hours) * 100, 2"), "", day, much) // 60,000 does not fit numeric(6,2)
	if len(bad.Rejected) != 1 || bad.Rejected[0].Code != "TW-AVRO-DECIMAL-OVERFLOW" || bad.Rejected[0].Rows != 1 || !strings.HasPrefix(bad.Rejected[0].At, "psa.public.line, partition ") {
		t.Errorf("rejected are %+v", bad.Rejected)
	}
	if got := bad.topic("ps.time_entry"); bad.Skipped != 1 || got.Keys != 5 { // what the row was before is not compared with what it is
		t.Errorf("skipped are %d, compared %+v", bad.Skipped, got)
	}

	// What came since, and the transform has not read, is no difference.
	b.committed()
	b.raw(lineRow{op: change.Update, id: 1, hours: 8, status: "approved"}, lineRow{op: change.Create, id: 7, hours: 7, status: "draft"})
	late := b.preview(false, b.changed("same.yml"), "", day, much)
	if late.Raw[1].Unread != 2 || late.Differs {
		t.Errorf("what is under way counts: %+v", late)
	}
}

func (b *previewBed) field(name string) avro.Field {
	f, _ := b.side.rules.Contracts["ps.time_entry"].Field(name)
	return f
}

// If this failed, keys that only the old rules made would stay in the warehouse
// for ever, and nobody would have been told; and a window without rows would read
// as one in which nothing differs.
func TestPreviewWithOtherRules(t *testing.T) {
	b := newPreviewBed(t, miniKafka(t))
	b.raw(
		lineRow{op: change.Create, id: 1, hours: 1.5, status: "draft"},
		lineRow{op: change.Create, id: 2, hours: 2.5, status: "aproved"},
		lineRow{op: change.Create, id: 3, hours: 3.5, status: "aproved"},
		lineRow{op: change.Update, id: 3, hours: 3.5, status: "approved"},
	)
	old := b.dir + "/old.yml"
	same := b.preview(true, old, old, day, much) // a row is rejected by both
	if got := same.topic("ps.time_entry"); got.counts() != [5]int{2, 2, 0, 0, 0} || len(same.Rejected) != 1 || same.Rejected[0].Rows != 1 || same.Rejected[0].Code != "TW-MAP-VALUE" || len(same.Before) != 1 {
		t.Errorf("%+v", same)
	}
	moved := b.preview(true, b.changed("moved.yml", "line-{id}", "psa-{id}"), old, day, much)
	if got := moved.topic("ps.time_entry"); got.counts() != [5]int{4, 0, 0, 2, 2} || strings.Join(got.NewKeys, " ") != "psa-1 psa-3" || strings.Join(got.Lost, " ") != "line-1 line-3" {
		t.Errorf("%+v", got)
	}
	if err := b.kc.Shared().ProduceSync(t.Context(), &kgo.Record{Topic: b.table.Topic, Key: []byte("k"), Value: []byte("no Avro")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	odd := b.preview(true, old, old, day, much)
	if len(odd.Rejected) != 2 || odd.Rejected[0].Code != "TW-AVRO-GARBAGE" || odd.topic("ps.time_entry").Equal != 2 {
		t.Errorf("a record that is none of ours: %+v", odd)
	}
	many := make([]lineRow, 6000)
	for i := range many {
		many[i] = lineRow{op: change.Create, id: int64(1000 + i), hours: 1, status: "draft"}
	}
	b.raw(many...)
	if most := b.preview(true, old, old, day, 1<<20); most.Sampled < 2 || most.topic("ps.time_entry").Keys < 500 || most.topic("ps.time_entry").Keys > 3500 {
		t.Errorf("of 6000 keys, %d were compared, one of %d", most.topic("ps.time_entry").Keys, most.Sampled)
	}
	if none := b.preview(false, old, old, time.Nanosecond, much); len(none.Raw) != 2 || !none.Raw[0].Missing || none.Raw[1].Missing || none.Raw[1].Records > 0 {
		t.Errorf("a window without rows: %+v", none.Raw)
	}
}

// Lost if this fails: a long window takes all memory of the machine that people
// look from, or counts keys of which a part was dropped.
func TestPreviewKeepsToItsMemory(t *testing.T) {
	p := &Preview{sampled: 1, Memory: 100 * (overhead + 1000), keys: map[string]map[string]*sides{}}
	for round := range 3 {
		for i := range 1000 {
			p.keep("ps.time_entry", fmt.Sprintf("line-%d", i), madeRecord{made: true, fields: make([]byte, 1000), millis: int64(round)}, round%2 == 1)
			p.thin()
		}
	}
	kept := p.keys["ps.time_entry"]
	used := 0
	for key, k := range kept {
		used += overhead + len(key) + len(k.old.fields) + len(k.new.fields)
		if !k.old.made || !k.new.made {
			t.Errorf("%s has one record only", key)
		}
	}
	if used != p.used || used > p.Memory || p.sampled < 16 || len(kept) < 10 {
		t.Errorf("%d keys take %d, counted as %d, of %d; one of %d is kept", len(kept), used, p.used, p.Memory, p.sampled)
	}
	// Of several partitions the later one counts.
	q := &Preview{sampled: 1, Memory: 1 << 20, keys: map[string]map[string]*sides{}}
	q.keep("t", "k", madeRecord{made: true, partition: 1, millis: 2, fields: []byte("b")}, false)
	q.keep("t", "k", madeRecord{made: true, partition: 2, millis: 1, fields: []byte("a")}, false)
	if got := string(q.keys["t"]["k"].new.fields); got != "b" {
		t.Errorf("the record is %q", got)
	}
	q.keep("t", "k", madeRecord{made: true, partition: 1, millis: 1, fields: []byte("c")}, false) // a clock that was set back
	if got := string(q.keys["t"]["k"].new.fields); got != "c" {
		t.Errorf("the record is %q", got)
	}
}
