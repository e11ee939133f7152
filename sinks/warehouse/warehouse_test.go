package warehouse

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit/leak"
	"github.com/tallywire/tallywire/pipeline"
)

var server *embedded.Postgres

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	var err error
	if server, err = embedded.StartPostgres(context.Background(), embedded.PostgresOptions{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	leak.Main(m, server.Stop)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var databases int

// fresh gives the DSN of an empty database, and a connection to look into it.
func fresh(tb testing.TB) (string, *pgx.Conn) {
	tb.Helper()
	databases++
	db := fmt.Sprintf("warehouse%d", databases)
	if err := server.CreateDatabase(tb.Context(), db); err != nil {
		tb.Fatal(err)
	}
	conn, err := pgx.Connect(tb.Context(), server.DSN(db))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return server.DSN(db), conn
}

func open(tb testing.TB, dsn string, topics ...string) *Sink {
	tb.Helper()
	s, err := New(Config{DSN: secret.DSNOf(dsn), Topics: topics}, Options{Name: "warehouse"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s
}

func exec(tb testing.TB, conn *pgx.Conn, sql string) {
	tb.Helper()
	if _, err := conn.Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

// text is the answer to a query as one text: rows by newline, columns by |.
func text(tb testing.TB, conn *pgx.Conn, sql string) string {
	tb.Helper()
	rows, err := conn.Query(tb.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
	var lines []string
	for rows.Next() {
		var cells []string
		for _, v := range rows.RawValues() {
			if v == nil {
				cells = append(cells, "-")
			} else {
				cells = append(cells, string(v))
			}
		}
		lines = append(lines, strings.Join(cells, "|"))
	}
	if rows.Err() != nil {
		tb.Fatalf("%s: %v", sql, rows.Err())
	}
	return strings.Join(lines, "\n")
}

func want(tb testing.TB, conn *pgx.Conn, sql, answer string) {
	tb.Helper()
	if got := text(tb, conn, sql); got != answer {
		tb.Errorf("%s\n got %s\nwant %s", sql, got, answer)
	}
}

// feed makes batches as they come from Kafka: one topic, one partition.
type feed struct {
	topic *change.Topic
	table *change.Table
	next  int64
}

func newFeed(topic string, id byte) *feed {
	c := must(avro.Pack())[topic]
	return &feed{topic: &change.Topic{Name: topic, ID: [16]byte{id}, Partitions: 1}, table: c.Table}
}

// batch takes rows as column → text; a row without columns but the key is a
// deletion.
func (f *feed) batch(rows ...map[string]any) *change.Batch {
	b := change.Get()
	from := f.next
	for _, r := range rows {
		row := b.Row(len(f.table.Columns))
		for i, col := range f.table.Columns {
			v, set := r[col.Name]
			switch {
			case !set && len(r) == 1:
				row[i] = change.UnchangedValue()
			case !set && col.Nullable:
			default:
				row[i] = f.value(b, col, v)
			}
		}
		c := b.Append(f.table, change.Update)
		if len(r) == 1 {
			c.Op, c.Old = change.Delete, row
		} else {
			c.New = row
		}
		c.Coord = change.Coord{Topic: f.topic, Offset: f.next}
		f.next++
	}
	b.Ranges = append(b.Ranges, change.Range{Topic: f.topic, From: from, To: f.next})
	return b
}

func (f *feed) value(b *change.Batch, col change.Column, v any) change.Value {
	switch col.Kind {
	case change.Int:
		n, _ := v.(int)
		return change.IntValue(int64(n))
	case change.Float32:
		x, _ := v.(float64)
		return change.Float32Value(float32(x))
	case change.String:
		s, _ := v.(string)
		return b.SpanString(change.String, s)
	case change.Decimal:
		switch v := v.(type) {
		case change.Value:
			return v
		case int:
			return change.DecimalValue(int64(v), col.Scale)
		}
		return change.DecimalValue(0, col.Scale)
	case change.Bool:
		x, _ := v.(bool)
		return change.BoolValue(x)
	case change.Date:
		x, _ := v.(int)
		return change.DateValue(int64(x))
	case change.TimestampTZ:
		x, _ := v.(int)
		return change.TimestampTZValue(int64(x))
	}
	panic("no value for " + col.Kind.String())
}

func at(topic *change.Topic) []change.Coord { return []change.Coord{{Topic: topic}} }

func claim(tb testing.TB, s *Sink, owner string, f *feed) int64 {
	tb.Helper()
	offsets, err := s.Claim(tb.Context(), owner, at(f.topic))
	if err != nil {
		tb.Fatal(err)
	}
	if offsets[0] < 0 {
		if err := s.SetOffsets(tb.Context(), owner, []change.Coord{{Topic: f.topic, Offset: f.next}}); err != nil {
			tb.Fatal(err)
		}
	}
	return offsets[0]
}

func write(tb testing.TB, s *Sink, owner string, b *change.Batch) []pipeline.Failure {
	tb.Helper()
	defer b.Release()
	failures, err := s.WriteWithOffsets(tb.Context(), owner, b)
	if err != nil {
		tb.Fatal(err)
	}
	return failures
}

type m = map[string]any

// Would be lost: the end of a replay, or a deletion, or the fence (invariant 10).
func TestRowsAndOffsetsMoveTogether(t *testing.T) {
	for _, size := range []int{1, few + 1} { // both write paths
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dsn, conn := fresh(t)
			s, f := open(t, dsn, "ps.customer"), newFeed("ps.customer", 1)
			if n := claim(t, s, "a", f); n != -1 {
				t.Fatalf("an offset of an empty warehouse: %d", n)
			}
			rows := func(name string) (out []map[string]any) {
				for i := range size {
					out = append(out, m{"customer_id": fmt.Sprint(i), "name": name, "active": true, "updated_at": i})
				}
				return out
			}
			write(t, s, "a", f.batch(rows("first")...))
			// Within a batch the last change of a key decides.
			write(t, s, "a", f.batch(append(rows("second"), rows("third")...)...))
			n := int64(3 * size)
			want(t, conn, "SELECT count(*), min(name), max(name), min(_offset), max(_partition) FROM ps.customer", fmt.Sprintf("%d|third|third|%d|0", size, 2*size))
			want(t, conn, "SELECT next_offset, owner FROM _tallywire.offsets", fmt.Sprintf("%d|a", n))

			// The same batch again: not at the stored offset.
			f.next = int64(size)
			b := f.batch(append(rows("again"), rows("again")...)...)
			if _, err := s.WriteWithOffsets(t.Context(), "a", b); !problem.Has(err, pipeline.ErrFenced) {
				t.Errorf("a batch from an old offset: %v", err)
			}
			b.Release()
			// A replay after a reset: rows keep their newest version.
			if err := s.SetOffsets(t.Context(), "a", at(f.topic)); err != nil {
				t.Fatal(err)
			}
			f.next = 0
			write(t, s, "a", f.batch(rows("old")...))
			want(t, conn, "SELECT DISTINCT name FROM ps.customer", "third")
			f.next = n
			if err := s.SetOffsets(t.Context(), "a", []change.Coord{{Topic: f.topic, Offset: n}}); err != nil {
				t.Fatal(err)
			}

			// A successor fences: another process's session.
			s2 := open(t, dsn, "ps.customer")
			if got := claim(t, s2, "b", f); got != n {
				t.Errorf("the successor finds offset %d, want %d", got, n)
			}
			b = f.batch(rows("fenced")...)
			if _, err := s.WriteWithOffsets(t.Context(), "a", b); !problem.Has(err, pipeline.ErrFenced) {
				t.Errorf("the predecessor wrote: %v", err)
			}
			b.Release()
			if err := s.SetOffsets(t.Context(), "a", at(f.topic)); !problem.Has(err, pipeline.ErrFenced) {
				t.Errorf("the predecessor set an offset: %v", err)
			}
			want(t, conn, "SELECT DISTINCT name FROM ps.customer", "third")
			f.next = n
			write(t, s2, "b", f.batch(rows("fourth")...))
			want(t, conn, "SELECT DISTINCT name FROM ps.customer", "fourth")

			var gone []map[string]any
			for i := range size {
				gone = append(gone, m{"customer_id": fmt.Sprint(i)})
			}
			write(t, s2, "b", f.batch(append(gone, rows("fifth")[1:]...)...)) // few among many
			want(t, conn, "SELECT count(*), min(name) FROM ps.customer", fmt.Sprintf("%d|%s", size-1, map[bool]string{true: "fifth", false: "-"}[size > 1]))
			write(t, s2, "b", f.batch(gone...))
			want(t, conn, "SELECT count(*) FROM ps.customer", "0")
		})
	}
}

// Would be lost: good rows beside a bad one, or the bad one's place.
func TestBadRowsAreNamed(t *testing.T) {
	for _, size := range []int{5, 3 * few} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dsn, conn := fresh(t)
			s, f := open(t, dsn, "ps.cost_rate"), newFeed("ps.cost_rate", 1)
			claim(t, s, "a", f)
			exec(t, conn, "ALTER TABLE ps.cost_rate ADD CHECK (currency <> 'XXX')")
			row := func(id int, with m) m {
				r := m{"cost_rate_id": fmt.Sprint(id), "resource_id": "7", "currency": "EUR", "rate": 1_0000}
				for k, v := range with {
					r[k] = v
				}
				return r
			}
			var rows []map[string]any
			for i := range size {
				rows = append(rows, row(i, nil))
			}
			rows[1] = row(1, m{"rate": change.DecimalValue(123456789_0000, 4)})
			rows[2] = row(2, m{"currency": "E\x00R"})
			rows[3] = row(3, m{"currency": "XXX"})
			failures := write(t, s, "a", f.batch(append(rows, row(4, m{"currency": "XXX"}))...))
			var got []string
			for _, f := range failures {
				got = append(got, fmt.Sprint(f.Index, problem.Of(f.Err).ID))
				if pipeline.Classify(f.Err) != problem.Reject || strings.Contains(f.Err.Error(), "123456") || strings.Contains(f.Err.Error(), "XXX") {
					t.Errorf("failure %v", f.Err)
				}
			}
			if w := fmt.Sprint([]string{"1TW-WAREHOUSE-VALUE", "2TW-WAREHOUSE-VALUE", "3TW-WAREHOUSE-ROW", fmt.Sprint(size, "TW-WAREHOUSE-ROW")}); fmt.Sprint(got) != w {
				t.Errorf("failures %v, want %v", got, w)
			}
			// Of key 4 the refused version was the last: the one before it stands.
			want(t, conn, "SELECT count(*), count(*) FILTER (WHERE cost_rate_id IN ('1','2','3')), count(*) FILTER (WHERE cost_rate_id = '4') FROM ps.cost_rate", fmt.Sprintf("%d|0|1", size-3))
			want(t, conn, "SELECT next_offset FROM _tallywire.offsets", fmt.Sprint(size+1))

			// A later version that fits replaces one that does not.
			if failures := write(t, s, "a", f.batch(row(1, m{"currency": "\x00"}), row(1, nil))); len(failures) != 0 {
				t.Errorf("a superseded change failed: %v", failures[0].Err)
			}
			want(t, conn, "SELECT rate FROM ps.cost_rate WHERE cost_rate_id = '1'", "1.0000") // Remedy: TW-WAREHOUSE-VALUE

			// Remedy: TW-WAREHOUSE-ROW, one way and the other.
			if failures := write(t, s, "a", f.batch(row(3, nil))); len(failures) != 0 {
				t.Errorf("the corrected row: %v", failures[0].Err)
			}
			exec(t, conn, "ALTER TABLE ps.cost_rate DROP CONSTRAINT cost_rate_currency_check")
			if failures := write(t, s, "a", f.batch(row(4, m{"currency": "XXX"}))); len(failures) != 0 {
				t.Errorf("without the constraint: %v", failures[0].Err)
			}
			want(t, conn, "SELECT cost_rate_id, currency FROM ps.cost_rate WHERE cost_rate_id IN ('3', '4') ORDER BY 1", "3|EUR\n4|XXX")
		})
	}
}

// Would be lost: rows of a topic that no longer exists would stand beside new ones.
func TestTopicCreatedAgain(t *testing.T) {
	dsn, conn := fresh(t)
	s, f := open(t, dsn, "ps.project"), newFeed("ps.project", 1)
	claim(t, s, "a", f)
	write(t, s, "a", f.batch(m{"project_id": "1", "name": "x"}))
	again := newFeed("ps.project", 2)
	_, err := s.Claim(t.Context(), "b", at(again.topic))
	if !problem.Has(err, ErrRecreated) || !strings.Contains(problem.Of(err).WhatToDo(), `TRUNCATE "ps"."project"`) {
		t.Fatalf("claiming a topic that was created again: %v", err)
	}
	exec(t, conn, "TRUNCATE ps.project") // and the offsets may stay
	if n := claim(t, s, "b", again); n != -1 {
		t.Errorf("offset %d of the old topic was taken for one of the new", n)
	}
	write(t, s, "b", again.batch(m{"project_id": "2", "name": "y"}))
	want(t, conn, "SELECT project_id FROM ps.project", "2")
	// The remedy, as it is printed.
	third := newFeed("ps.project", 3)
	_, err = s.Claim(t.Context(), "c", at(third.topic))
	if err == nil {
		t.Fatal("no halt")
	}
	_, sql, _ := strings.Cut(problem.Of(err).WhatToDo(), "restart: ")
	exec(t, conn, sql)
	if n := claim(t, s, "c", third); n != -1 { // Remedy: TW-WAREHOUSE-TOPIC-RECREATED
		t.Errorf("offset %d after the remedy", n)
	}
	write(t, s, "c", third.batch(m{"project_id": "3", "name": "z"}))
	want(t, conn, "SELECT project_id FROM ps.project", "3")
}

// Would be lost: rows, silently, when a filled table was dropped by hand.
func TestDroppedTableIsNoticed(t *testing.T) {
	dsn, conn := fresh(t)
	s, f := open(t, dsn, "ps.project"), newFeed("ps.project", 1)
	claim(t, s, "a", f)
	write(t, s, "a", f.batch(m{"project_id": "1"}))
	exec(t, conn, "DROP TABLE ps.project")
	b := f.batch(m{"project_id": "2"})
	defer b.Release()
	if _, err := s.WriteWithOffsets(t.Context(), "a", b); !problem.Has(err, ErrTable) {
		t.Errorf("writing into a dropped table: %v", err)
	}
	want(t, conn, "SELECT next_offset FROM _tallywire.offsets", "1") // it did not move alone
	err := open(t, dsn, "ps.project").Prepare(t.Context())
	if !problem.Has(err, ErrLostTable) {
		t.Fatalf("starting without the table: %v", err)
	}
	_, sql, _ := strings.Cut(problem.Of(err).WhatToDo(), "restart: ")
	exec(t, conn, sql) // Remedy: TW-WAREHOUSE-TABLE-LOST
	s, f = open(t, dsn, "ps.project"), newFeed("ps.project", 1)
	if n := claim(t, s, "b", f); n != -1 {
		t.Errorf("it goes on at offset %d", n)
	}
	write(t, s, "b", f.batch(m{"project_id": "1", "name": "x"}, m{"project_id": "2", "name": "y"}))
	want(t, conn, "SELECT project_id FROM ps.project ORDER BY 1", "1\n2")
}

// Would be lost: fields that a newer process writes, cut off in silence.
func TestFieldOfANewerContract(t *testing.T) {
	dsn, conn := fresh(t)
	older := maps.Clone(must(avro.Pack()))
	c := *older["ps.customer"]
	table := *c.Table
	table.Columns = slices.DeleteFunc(slices.Clone(table.Columns), func(col change.Column) bool { return col.Name == "email" })
	c.Table = table.Index()
	older["ps.customer"] = &c
	s, err := New(Config{DSN: secret.DSNOf(dsn), Topics: []string{"ps.customer"}}, Options{Name: "warehouse", Contracts: older})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // of a test's first sink
	f := newFeed("ps.customer", 1)
	claim(t, s, "a", f)
	row := m{"customer_id": "1", "number": "C-1", "name": "x", "email": "a@b.example"}
	b := f.batch(row)
	defer b.Release()
	if _, err := s.WriteWithOffsets(t.Context(), "a", b); !problem.Has(err, ErrField) || !strings.Contains(err.Error(), "email") {
		t.Fatalf("a field that is not in the contract: %v", err)
	}
	want(t, conn, "SELECT count(*)::text FROM ps.customer", "0")
	newer := open(t, dsn, "ps.customer") // Remedy: TW-WAREHOUSE-FIELD
	f.next = 0
	if n := claim(t, newer, "b", f); n > 0 {
		t.Errorf("it goes on at offset %d", n)
	}
	write(t, newer, "b", f.batch(row))
	want(t, conn, "SELECT email FROM ps.customer", "a@b.example")
}

// Would be lost: delivery, for ever, after one broken session.
func TestBrokenSessionIsMadeAgain(t *testing.T) {
	dsn, conn := fresh(t)
	s, f := open(t, dsn, "ps.project"), newFeed("ps.project", 1)
	claim(t, s, "a", f)
	exec(t, conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tallywire warehouse' AND datname = current_database()")
	b := f.batch(m{"project_id": "1"})
	defer b.Release()
	if _, err := s.WriteWithOffsets(t.Context(), "a", b); pipeline.Classify(err) != problem.Retry {
		t.Fatalf("a lost session: %v", err)
	}
	// Remedy: TW-WAREHOUSE-UNAVAILABLE
	if _, err := s.WriteWithOffsets(t.Context(), "a", b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.next = 1
	b2 := f.batch(m{"project_id": "2"})
	defer b2.Release()
	if _, err := s.WriteWithOffsets(ctx, "a", b2); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled write: %v", err)
	}
	if _, err := s.WriteWithOffsets(t.Context(), "a", b2); err != nil {
		t.Fatal(err)
	}
}

// Would be lost: the secrecy of cost rates (invariant 13).
func TestRolesFollowSensitivity(t *testing.T) {
	dsn, conn := fresh(t)
	s := open(t, dsn)
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		sql     string
		allowed bool // to the reader; Cost may all
	}{
		{"SELECT hours, waiting_for FROM ps.time_entry_costed", true},
		{"SELECT cost FROM ps.time_entry_costed", false},
		{"SELECT rate FROM ps.time_entry_costed", false},
		{"SELECT rate FROM ps.cost_rate", false},
		{"SELECT valid_from FROM ps.cost_rate", true},
		{"SELECT revenue, approved_hours FROM ps.margin_by_project_month", true},
		{"SELECT labour_cost FROM ps.margin_by_project_month", false},
		{"SELECT margin FROM ps.margin_by_project_month", false},
		{"SELECT margin_pct FROM ps.margin_by_project_month", false},
		{"SELECT name FROM ps.customer", true},
	} {
		for role, allowed := range map[string]bool{RoleReader: c.allowed, RoleCost: true} {
			exec(t, conn, "SET ROLE "+role)
			_, err := conn.Exec(t.Context(), c.sql)
			if (err == nil) != allowed {
				t.Errorf("%s as %s: %v", c.sql, role, err)
			}
			exec(t, conn, "RESET ROLE")
		}
	}
	want(t, conn, "SELECT col_description('ps.cost_rate'::regclass, attnum) FROM pg_attribute WHERE attrelid = 'ps.cost_rate'::regclass AND attname = 'rate'", "Cost of one hour, in currency.")
	want(t, conn, "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'ps.time_entry_costed'::regclass AND attname IN ('cost', 'work_date', 'updated_at') ORDER BY attname",
		"numeric(24,10)\ntimestamp with time zone\ndate")
}

// Would be lost: a new field, or a start, when a contract grows.
func TestContractGrows(t *testing.T) {
	dsn, conn := fresh(t)
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "ALTER TABLE ps.customer DROP COLUMN email") // as an older version made it
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, conn, "SELECT has_column_privilege('tallywire_reader', 'ps.customer', 'email', 'SELECT')", "t")
	exec(t, conn, "DROP VIEW ps.margin_by_project_month; ALTER TABLE ps.invoice ALTER COLUMN total TYPE numeric(10,3)")
	if err := open(t, dsn).Prepare(t.Context()); !problem.Has(err, ErrTable) || !strings.Contains(err.Error(), `"total"`) {
		t.Errorf("a changed type: %v", err)
	}
	// Remedy: TW-WAREHOUSE-TABLE
	exec(t, conn, "ALTER TABLE ps.invoice ALTER COLUMN total TYPE numeric(14,2)")
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Error(err)
	}
	exec(t, conn, "DROP TABLE ps.invoice CASCADE; DELETE FROM _tallywire.offsets WHERE topic = 'ps.invoice'")
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Error(err)
	}
	want(t, conn, "SELECT count(*)::text FROM ps.margin_by_project_month", "0")
}

// Would be lost: a start, once a contract has a wider field; or the view above it,
// and who may read it.
func TestContractWidens(t *testing.T) {
	dsn, conn := fresh(t)
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	margin := text(t, conn, "SELECT pg_get_viewdef('ps.margin_by_project_month'::regclass)")
	types := "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'ps.time_entry_costed'::regclass AND attname IN ('hours', 'cost') ORDER BY attname"
	is := text(t, conn, types)
	older := func() { // as an older version made them, with rows
		exec(t, conn, `DROP VIEW ps.margin_by_project_month;
			ALTER TABLE ps.time_entry_costed ALTER hours TYPE numeric(5,1), ALTER cost TYPE numeric(9,2);
			CREATE VIEW ps.margin_by_project_month AS SELECT NULL::text AS legal_entity, NULL::text AS currency, project_id, cost AS project_number FROM ps.time_entry_costed`)
	}
	older()
	// A sink that does not make the view does not drop it.
	if err := open(t, dsn, "ps.time_entry_costed").Prepare(t.Context()); !problem.Has(err, ErrTable) || !strings.Contains(err.Error(), "view ps.margin_by_project_month depends on column") {
		t.Fatalf("a sink without the view: %v", err)
	}
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, conn, types, is)
	want(t, conn, "SELECT pg_get_viewdef('ps.margin_by_project_month'::regclass)", margin)
	want(t, conn, "SELECT has_column_privilege('tallywire_reader', 'ps.margin_by_project_month', 'revenue', 'SELECT'), has_column_privilege('tallywire_reader', 'ps.margin_by_project_month', 'margin', 'SELECT')", "t|f")

	// A view of the firm's own is not dropped: it is named.
	older()
	exec(t, conn, "CREATE VIEW ps.own AS SELECT sum(cost) FROM ps.time_entry_costed")
	err := open(t, dsn).Prepare(t.Context())
	if !problem.Has(err, ErrTable) || !strings.Contains(err.Error(), "view ps.own depends on column") {
		t.Fatalf("a view of the firm's own: %v", err)
	}
	want(t, conn, "SELECT count(*)::text FROM ps.margin_by_project_month", "0")
	exec(t, conn, "DROP VIEW ps.own")
	if err := open(t, dsn).Prepare(t.Context()); err != nil {
		t.Error(err)
	}
}

// Would be lost: rows of a contract whose columns are wider than it says.
func TestColumnsWiderThanTheContract(t *testing.T) {
	dir := t.TempDir()
	schema := `{"type":"record","name":"Seat","namespace":"firm","topic":"ps.seat","doc":"Seats.","owner":"IT","key":["seat_id"],"fields":[
		{"name":"seat_id","type":"string","doc":"Its number.","owner":"IT","sensitivity":"internal"},
		{"name":"floor","type":["null","int"],"default":null,"doc":"Its floor.","owner":"IT","sensitivity":"internal"},
		{"name":"share","type":["null","float"],"default":null,"doc":"Of the room.","owner":"IT","sensitivity":"internal"}]}`
	if err := os.WriteFile(filepath.Join(dir, "seat.avsc"), []byte(schema), 0o644); err != nil {
		t.Fatal(err)
	}
	all := must(avro.LoadCatalogue(dir))
	dsn, conn := fresh(t)
	s := must(New(Config{DSN: secret.DSNOf(dsn), Topics: []string{"ps.seat"}}, Options{Name: "warehouse", Contracts: all}))
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	exec(t, conn, "ALTER TABLE ps.seat ALTER floor TYPE numeric, ALTER share TYPE double precision")
	f := &feed{topic: &change.Topic{Name: "ps.seat", ID: [16]byte{1}, Partitions: 1}, table: all["ps.seat"].Table}
	claim(t, s, "a", f)
	row := func(floor int) *change.Batch { return f.batch(m{"seat_id": "7", "floor": floor, "share": 0.5}) }
	write(t, s, "a", row(1))
	write(t, s, "a", row(2))
	want(t, conn, "SELECT seat_id, floor, share FROM ps.seat", "7|2|0.5")
}

// Would be lost: rows without a value that their contract does not ask for any
// more; or a start, once a later version has widened a column.
func TestContractAsksForLess(t *testing.T) {
	dsn, conn := fresh(t)
	if err := open(t, dsn, "ps.cost_rate").Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "ALTER TABLE ps.cost_rate ALTER valid_to SET NOT NULL, ALTER rate TYPE numeric(16,6), ADD COLUMN former text NOT NULL, ADD COLUMN own date NOT NULL DEFAULT '2026-01-01'")
	s, f := open(t, dsn, "ps.cost_rate"), newFeed("ps.cost_rate", 1)
	claim(t, s, "a", f)
	write(t, s, "a", f.batch(m{"cost_rate_id": "1", "rate": 82_5000}))
	want(t, conn, "SELECT cost_rate_id, rate, valid_to, former, own FROM ps.cost_rate", "1|82.500000|-|-|2026-01-01")
	want(t, conn, "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'ps.cost_rate'::regclass AND attname = 'own'", "t")
	for _, typ := range []string{"numeric(14,3)", "numeric(20,3)", "text"} {
		exec(t, conn, "ALTER TABLE ps.cost_rate ALTER rate TYPE "+typ)
		if err := open(t, dsn, "ps.cost_rate").Prepare(t.Context()); !problem.Has(err, ErrTable) || !strings.Contains(err.Error(), typ) {
			t.Errorf("a narrower type: %v", err)
		}
	}
	exec(t, conn, "ALTER TABLE ps.cost_rate ALTER rate TYPE numeric USING rate::numeric")
	if err := open(t, dsn, "ps.cost_rate").Prepare(t.Context()); err != nil {
		t.Error(err)
	}
}

// Would be lost: a start of several processes at once, or one with no more
// rights than it needs.
func TestStartTogetherAndWithFewRights(t *testing.T) {
	dsn, conn := fresh(t)
	var wg sync.WaitGroup
	for range 4 {
		s := open(t, dsn)
		wg.Go(func() {
			if err := s.Prepare(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	name := conn.Config().Database
	exec(t, conn, "CREATE ROLE modest_"+name+" LOGIN")
	modest := server.DSNAs("modest_"+name, name)
	err := open(t, modest).Prepare(t.Context())
	if !problem.Has(err, ErrDenied) || pipeline.Classify(err) != problem.Halt {
		t.Errorf("a login without rights: %v", err)
	}
	// The roles are there already: CREATE on a database is then enough.
	dsn2, conn2 := fresh(t)
	exec(t, conn2, "GRANT CREATE ON DATABASE "+conn2.Config().Database+" TO modest_"+name)
	modest = server.DSNAs("modest_"+name, conn2.Config().Database)
	if err := open(t, modest).Prepare(t.Context()); err != nil {
		t.Errorf("a login with CREATE on %s: %v", dsn2, err)
	}
	// Or no such right, and schemas that are its own.
	dsn3, conn3 := fresh(t)
	exec(t, conn3, "CREATE SCHEMA ps AUTHORIZATION modest_"+name+"; CREATE SCHEMA _tallywire AUTHORIZATION modest_"+name)
	modest = server.DSNAs("modest_"+name, conn3.Config().Database)
	for range 2 {
		if err := open(t, modest).Prepare(t.Context()); err != nil {
			t.Errorf("a login whose schemas are there on %s: %v", dsn3, err)
		}
	}
	if _, err := New(Config{DSN: secret.DSNOf("postgres://x:hunter2@[::1")}, Options{Name: "w"}); !problem.Has(err, ErrDSN) || strings.Contains(fmt.Sprintf("%+v", err), "hunter2") {
		t.Errorf("a broken dsn: %v", err)
	}
	open(t, dsn) // Remedy: TW-WAREHOUSE-DSN
	if _, err := New(Config{DSN: secret.DSNOf(dsn), Topics: []string{"ps.nope"}}, Options{Name: "w"}); !problem.Has(err, ErrTopic) {
		t.Errorf("a topic without a contract: %v", err)
	}
	open(t, dsn, "ps.project") // Remedy: TW-WAREHOUSE-TOPIC
	if err := open(t, "postgres://postgres@127.0.0.1:1/x?connect_timeout=2").Prepare(t.Context()); pipeline.Classify(err) != problem.Retry {
		t.Errorf("a warehouse that is down: %v", err)
	}
}

// Would be lost: the margin of a project that is invoiced in another currency, which
// would be the difference of two currencies.
func TestMarginIsByCurrency(t *testing.T) {
	dsn, conn := fresh(t)
	s := open(t, dsn)
	feeds := map[string]*feed{}
	put := func(topic string, row m) {
		if feeds[topic] == nil {
			feeds[topic] = newFeed(topic, 1)
			claim(t, s, "a", feeds[topic])
		}
		write(t, s, "a", feeds[topic].batch(row))
	}
	put("ps.project", m{"project_id": "1", "name": "x", "currency": "EUR"})
	put("ps.invoice", m{"invoice_id": "1", "kind": "invoice", "status": "issued", "invoice_date": 20500, "currency": "USD"})
	put("ps.invoice", m{"invoice_id": "2", "kind": "invoice", "status": "issued", "invoice_date": 20500, "currency": "EUR"})
	put("ps.invoice_line", m{"invoice_line_id": "1", "invoice_id": "1", "project_id": "1", "amount": 10000})
	put("ps.invoice_line", m{"invoice_line_id": "2", "invoice_id": "2", "project_id": "1", "amount": 7000})
	put("ps.time_entry_costed", m{"time_entry_id": "1", "project_id": "1", "status": "approved", "work_date": 20500, "hours": 2_000_000, "cost": 60_0000000000, "currency": "EUR"})
	const margin = "SELECT currency, approved_hours::numeric(9,1), waiting_entries, labour_cost::numeric(9,2), revenue, margin::numeric(9,2) FROM ps.margin_by_project_month ORDER BY currency"
	want(t, conn, margin, "EUR|2.0|0|60.00|70.00|10.00\nUSD|0.0|0|0.00|100.00|100.00")
	// What waits and names no currency is the project's.
	put("ps.time_entry_costed", m{"time_entry_id": "2", "project_id": "1", "status": "approved", "work_date": 20501, "hours": 1_000_000, "waiting_for": "a rate"})
	want(t, conn, margin, "EUR|3.0|1|-|70.00|-\nUSD|0.0|0|0.00|100.00|100.00")
	// Of a project that is not there, nobody knows which.
	put("ps.invoice_line", m{"invoice_line_id": "3", "invoice_id": "2", "project_id": "9", "amount": 500})
	put("ps.time_entry_costed", m{"time_entry_id": "3", "project_id": "9", "status": "approved", "work_date": 20501, "hours": 1_000_000, "waiting_for": "project 9"})
	want(t, conn, strings.Replace(margin, " ORDER", " WHERE project_id = '9' ORDER", 1), "EUR|0.0|0|-|5.00|-\n-|1.0|1|-|0.00|-")
}

// Would be lost: the truth about a firm whose hours nobody costs, which would read
// as a margin of 100 %.
func TestMarginIsUnknownWhereNothingIsCosted(t *testing.T) {
	dsn, conn := fresh(t)
	s := open(t, dsn)
	put := func(topic string, row m) {
		f := newFeed(topic, 1)
		claim(t, s, "a", f)
		write(t, s, "a", f.batch(row))
	}
	put("ps.project", m{"project_id": "1", "name": "x"})
	put("ps.invoice", m{"invoice_id": "1", "kind": "invoice", "status": "issued", "invoice_date": 20500})
	put("ps.invoice_line", m{"invoice_line_id": "1", "invoice_id": "1", "project_id": "1", "amount": 10000})
	const margin = "SELECT revenue, labour_cost, margin, margin_pct::numeric(9,2) FROM ps.margin_by_project_month WHERE project_id = '1'"
	want(t, conn, margin, "100.00|-|-|-")
	put("ps.time_entry_costed", m{"time_entry_id": "1", "project_id": "2"})
	want(t, conn, margin, "100.00|0.0000000000|100.0000000000|100.00")
}
