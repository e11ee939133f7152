package truth_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/demo/truth"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/sinks/warehouse"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func pool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	p, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// copyEntity delivers what the PSA should come to through the real sink, in
// place of the way over Kafka.
func copyEntity(t *testing.T, psa *pgxpool.Pool, sink *warehouse.Sink, entity string) {
	t.Helper()
	contracts, err := avro.Pack()
	if err != nil {
		t.Fatal(err)
	}
	table := contracts[entity].Table
	tx, err := psa.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // read only
	if _, err := tx.Exec(t.Context(), "SET LOCAL TimeZone = 'UTC'"); err != nil {
		t.Fatal(err)
	}
	sql, err := truth.SQL(entity)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := tx.Query(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	topic := &change.Topic{Name: entity, ID: [16]byte{1}, Partitions: 1}
	b := change.Get()
	flush := func() {
		if failures, err := sink.Write(t.Context(), b); err != nil || len(failures) > 0 {
			t.Fatal(entity, failures, err)
		}
		b.Reset()
	}
	for n := int64(0); rows.Next(); n++ {
		row := b.Row(len(table.Columns))
		for i, v := range rows.RawValues() {
			if v != nil {
				row[i] = parse(t, b, &table.Columns[i], string(v))
			}
		}
		c := b.Append(table, change.Update)
		c.New, c.Coord = row, change.Coord{Topic: topic, Offset: n}
		if b.Len() == 5000 {
			flush()
		}
	}
	if rows.Err() != nil {
		t.Fatal(entity, rows.Err())
	}
	flush()
	b.Release()
}

func parse(t *testing.T, b *change.Batch, c *change.Column, s string) change.Value {
	switch c.Kind {
	case change.Bool:
		return change.BoolValue(s == "t")
	case change.Date:
		d, err := time.Parse(time.DateOnly, s)
		if err != nil {
			t.Fatal(err)
		}
		return change.DateValue(d.Unix() / 86400)
	case change.TimestampTZ:
		d, err := time.Parse("2006-01-02 15:04:05.999999-07", s)
		if err != nil {
			t.Fatal(err)
		}
		return change.TimestampTZValue(d.UnixMicro())
	case change.Decimal:
		_, frac, _ := strings.Cut(s, ".")
		n, err := strconv.ParseInt(strings.Replace(s, ".", "", 1), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return change.DecimalValue(n, int16(len(frac)))
	}
	return b.SpanString(change.String, s)
}

// Would be lost: the judge. It must find nothing where there is nothing, each
// kind of difference where there is one, hide what is restricted, and let a
// moving system settle.
func TestCompare(t *testing.T) {
	server := testkit.NewPostgres(t, "")
	for _, db := range []string{"psa", "warehouse"} {
		if err := server.CreateDatabase(t.Context(), db); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := firm.Seed(t.Context(), server.DSN("psa")); err != nil {
		t.Fatal(err)
	}
	if _, err := firm.Load(t.Context(), server.DSN("psa"), 5000); err != nil {
		t.Fatal(err)
	}
	psa, wh := pool(t, server.DSN("psa")), pool(t, server.DSN("warehouse"))
	exec := func(p *pgxpool.Pool, sql string) {
		t.Helper()
		if _, err := p.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// Entries that wait for each kind of thing.
	exec(psa, `DELETE FROM customer WHERE id = 3`)
	exec(psa, `DELETE FROM project WHERE id = 60`)
	exec(psa, `UPDATE cost_rate SET currency = 'CHF' WHERE employee_id = 20`)

	sink, err := warehouse.New(warehouse.Config{DSN: secret.DSNOf(server.DSN("warehouse"))}, warehouse.Options{Name: "warehouse"})
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close() //nolint:errcheck // it ends a session
	for _, e := range truth.Entities {
		if e != truth.Margin {
			copyEntity(t, psa, sink, e)
		}
	}
	compare := func(o truth.Options) *truth.Report {
		t.Helper()
		r, err := truth.Compare(t.Context(), psa, wh, o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := compare(truth.Options{})
	t.Logf("%d rows compared in %.1f s", r.Rows, r.Seconds)
	if r.Count != 0 || r.Rows < 600_000 {
		t.Fatalf("%d differences in %d rows, such as %v", r.Count, r.Rows, r.Differences)
	}
	for _, e := range r.Entities {
		if e.PSA == 0 || e.PSA != e.Warehouse {
			t.Errorf("%s: %d rows in the PSA, %d in the warehouse", e.Entity, e.PSA, e.Warehouse)
		}
	}
	var waiting, free int
	if err := wh.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE labour_cost IS NULL AND waiting_entries > 0 AND margin IS NULL AND margin_pct IS NULL),
		count(*) FILTER (WHERE revenue = 0 AND margin_pct IS NULL AND margin = -labour_cost) FROM ps.margin_by_project_month`).Scan(&waiting, &free); err != nil {
		t.Fatal(err)
	}
	if waiting < 10 || free < 1 {
		t.Errorf("%d project months wait, %d have no revenue: the test shows nothing", waiting, free)
	}

	// One difference of each kind.
	var key string
	if err := wh.QueryRow(t.Context(), `UPDATE ps.time_entry_costed SET cost = cost + 0.000001 WHERE time_entry_id = (
		SELECT min(time_entry_id) FROM ps.time_entry_costed WHERE status = 'approved' AND waiting_for IS NULL AND project_id = '1') RETURNING time_entry_id`).Scan(&key); err != nil {
		t.Fatal(err)
	}
	exec(wh, `DELETE FROM ps.time_entry WHERE time_entry_id = '77'`)
	exec(wh, `INSERT INTO ps.customer SELECT 'x''"\1', number, name, legal_entity, country, tax_id, email, active, updated_at, _topic_id, 0, 0 FROM ps.customer LIMIT 1`)
	exec(wh, `UPDATE ps.project SET budget_hours = NULL, name = '' WHERE project_id = '2'`)
	r = compare(truth.Options{})
	got := map[string]truth.Difference{}
	for _, d := range r.Differences {
		got[d.Entity+" "+d.Column] = d
	}
	for name, want := range map[string][3]string{
		"ps.time_entry_costed cost": {key, "[restricted]", "[restricted]"},
		"ps.time_entry ":            {"77", "a row", "no row"},
		"ps.customer ":              {`x'"\1`, "no row", "a row"},
		"ps.project budget_hours":   {"2", "213", "null"},
		truth.Margin + " margin":    {"", "[restricted]", "[restricted]"},
	} {
		d, ok := got[name]
		if !ok || want[0] != "" && d.Key != want[0] || d.PSA != want[1] || d.Warehouse != want[2] {
			t.Errorf("%s: %+v, want %v", name, d, want)
		}
	}

	// Mended while we look.
	done := make(chan *truth.Report, 1)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	go func() {
		r, err := truth.Compare(ctx, psa, wh, truth.Options{Settle: time.Minute, Every: 50 * time.Millisecond})
		if err != nil {
			t.Error(err)
		}
		done <- r
	}()
	exec(wh, `DELETE FROM ps.customer WHERE customer_id LIKE 'x%'`)
	exec(wh, fmt.Sprintf(`UPDATE ps.time_entry_costed SET cost = cost - 0.000001 WHERE time_entry_id = '%s'`, key))
	copyMissing := `INSERT INTO ps.time_entry SELECT '77', resource_id, project_id, task_number, work_date, hours, billable, status, note, bill_rate, created_at, updated_at, _topic_id, 0, 0 FROM ps.time_entry WHERE time_entry_id = '78'`
	exec(psa, `UPDATE time_entry a SET employee_id = b.employee_id, project_id = b.project_id, task_number = b.task_number, work_date = b.work_date, hours = b.hours, billable = b.billable,
		status = b.status, note = b.note, bill_rate = b.bill_rate, created_at = b.created_at, updated_at = b.updated_at FROM time_entry b WHERE a.id = 77 AND b.id = 78`)
	exec(wh, copyMissing)
	exec(wh, `UPDATE ps.time_entry_costed a SET resource_id = b.resource_id, project_id = b.project_id, project_number = b.project_number, customer_id = b.customer_id, customer_name = b.customer_name,
		work_date = b.work_date, hours = b.hours, billable = b.billable, status = b.status, cost_rate_id = b.cost_rate_id, rate = b.rate, cost = b.cost, waiting_for = b.waiting_for, updated_at = b.updated_at
		FROM ps.time_entry_costed b WHERE a.time_entry_id = '77' AND b.time_entry_id = '78'`)
	exec(wh, `UPDATE ps.project SET budget_hours = 213, name = (SELECT name FROM ps.project WHERE project_id = '2') WHERE project_id = '2'`)
	var name string
	if err := psa.QueryRow(t.Context(), `SELECT name FROM project WHERE id = 2`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	if _, err := wh.Exec(t.Context(), `UPDATE ps.project SET name = $1 WHERE project_id = '2'`, name); err != nil {
		t.Fatal(err)
	}
	if r = <-done; r == nil || r.Count != 0 {
		t.Errorf("after it was mended: %+v", r)
	}
}
