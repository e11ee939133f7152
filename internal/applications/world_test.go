package applications

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// asked skips a test that fetches hundreds of megabytes, unless it is meant.
func asked(t *testing.T) {
	t.Helper()
	if os.Getenv("TALLYWIRE_APPLICATIONS") == "" {
		t.Skip("installs a real application: make applications")
	}
}

// within bounds the wait for what becomes true.
const within = 5 * time.Minute

// world is an application's database and the warehouse, on one server, Kafka,
// Redis, and tallywire between them.
type world struct {
	pg        *embedded.Postgres
	from      *pgx.Conn // the application's database
	to        *pgx.Conn // the warehouse
	truth     map[string]truth
	redis     *embedded.Redis
	tallywire *process
	contracts avro.Catalogue
}

// truth is what a contract's rows are, in SQL over the application's tables: a
// SELECT with all fields of the contract by name. Of a view it has the view's
// columns, and before them what names a row, which key makes of them.
type truth struct {
	rows string
	sums []string // of the fields, compared too
	key  string   // of a view
}

const marginView = "ps.margin_by_project_month"

// margin is the truth of the warehouse's view, with CTEs over the application's
// tables: jobs (project_id, project_number, project_name, customer_id,
// legal_entity, currency), entries (project_id, day, hours, cost; null: not
// known), and lines (project_id, day, amount; negative: given back). It asks for
// each project and each month what lies in it, and groups nothing.
func margin(ctes string) truth {
	return truth{key: "project_id || ' ' || month", sums: []string{"sum(approved_hours)", "sum(labour_cost)", "sum(revenue)", "sum(margin)", "count(margin_pct)"}, rows: `WITH RECURSIVE ` + ctes + `,
		span AS (SELECT min(day) AS first, max(day) AS last FROM (SELECT day FROM entries UNION ALL SELECT day FROM lines) d),
		months AS (SELECT make_date(y, m, 1) AS month, (make_date(y, m, 1) + interval '1 month')::date AS next
			FROM span, generate_series(extract(year FROM first)::int, extract(year FROM last)::int) y, generate_series(1, 12) m)
		SELECT p.project_id || ' ' || month AS row, p.legal_entity, p.currency, p.project_id, p.project_number, p.project_name, p.customer_id, month,
		coalesce(e.hours, 0)::numeric(38,6) AS approved_hours, e.waiting AS waiting_entries, coalesce(e.waiting_hours, 0)::numeric(38,6) AS waiting_hours,
		c.cost AS labour_cost, r.revenue, r.revenue - c.cost AS margin, CASE WHEN r.revenue <> 0 THEN (r.revenue - c.cost) / r.revenue * 100 END AS margin_pct
		FROM jobs p CROSS JOIN months
		CROSS JOIN LATERAL (SELECT count(*) AS n, sum(hours) AS hours, count(*) FILTER (WHERE cost IS NULL) AS waiting, sum(hours) FILTER (WHERE cost IS NULL) AS waiting_hours, sum(cost) AS cost
			FROM entries e WHERE e.project_id = p.project_id AND day >= month AND day < next) e
		CROSS JOIN LATERAL (SELECT CASE WHEN e.waiting = 0 THEN coalesce(e.cost, 0)::numeric(38,10) END AS cost) c
		CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(sum(amount), 0)::numeric(38,2) AS revenue FROM lines l WHERE l.project_id = p.project_id AND day >= month AND day < next) r
		WHERE e.n + r.n > 0`}
}

// halfEven is SQL that rounds a numeric to six digits, halves to the even one.
func halfEven(x string) string {
	return fmt.Sprintf("CASE WHEN abs((%[1]s) * 1000000 %% 1) = 0.5 THEN round((%[1]s) * 500000) * 2 / 1000000 ELSE round(%[1]s, 6) END::numeric(10,6)", x)
}

// newWorld starts the server with two databases, of which the application fills
// the one called application.
func newWorld(t *testing.T, truth map[string]truth) *world {
	t.Helper()
	w := &world{truth: truth}
	var err error
	if w.pg, err = embedded.StartPostgres(t.Context(), embedded.PostgresOptions{Params: map[string]string{"fsync": "off", "jit": "off", "timezone": "UTC"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.pg.Stop(); err != nil {
			t.Error(err)
		}
	})
	for db, conn := range map[string]**pgx.Conn{"application": &w.from, "warehouse": &w.to, "control": nil} {
		if err := w.pg.CreateDatabase(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		if conn == nil {
			continue
		}
		if *conn, err = pgx.Connect(t.Context(), w.pg.DSN(db)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*conn).Close(context.Background()) })
		if _, err := (*conn).Exec(t.Context(), "SET TIME ZONE 'UTC'"); err != nil { // moments as text
			t.Fatal(err)
		}
	}
	if w.contracts, err = avro.Pack(); err != nil {
		t.Fatal(err)
	}
	return w
}

// capture runs tallywire with the example of a firm until the test ends. What the
// machine has to give, and the file does not say, are servers, a free port and a
// folder.
func (w *world) capture(t *testing.T, firm string) {
	t.Helper()
	kafka := testkit.NewKafka(t, embedded.KafkaOptions{Dir: filepath.Join(t.TempDir(), "kafka")})
	w.redis = testkit.NewRedis(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "examples", firm))); err != nil {
		t.Fatal(err)
	}
	var free [2]string
	for i := range free {
		var err error
		if free[i], err = embedded.FreeAddr(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "tallywire.yml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = fmt.Appendf(text, "\nkafka: {brokers: [%q]}\nredis: {addr: %q}\nregistry: {embedded: true, listen: %q}\nhttp: {listen: %q}\ncontrol: {dsn: env:CONTROL_DSN}\nstate_dir: %q\n",
		kafka.Addr(), w.redis.Addr, free[0], free[1], filepath.Join(dir, "state"))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.tallywire = &process{
		config: file, http: free[1], log: filepath.Join(dir, "tallywire.log"),
		env: []string{"APPLICATION_DSN=" + w.pg.DSN("application"), "WAREHOUSE_DSN=" + w.pg.DSN("warehouse"), "CONTROL_DSN=" + w.pg.DSN("control")},
	}
	t.Cleanup(func() { w.tallywire.end(t, syscall.SIGINT) })
	w.tallywire.start(t)
}

// await waits until the warehouse equals the SQL, for all contracts, and gives
// how many rows each has. Nothing is parked then, and nothing halted.
func (w *world) await(t *testing.T) (rows map[string]int) {
	t.Helper()
	began := time.Now()
	w.until(t, "the warehouse equals the application's tables", func() (bool, string) {
		var differ []string
		rows, differ = w.compare(t)
		return len(differ) == 0, fmt.Sprintf("%d places differ, the first of them:\n%s", len(differ), strings.Join(differ[:min(20, len(differ))], "\n"))
	})
	t.Logf("equal after %.0f s: %v rows", time.Since(began).Seconds(), rows)
	w.until(t, "all components tell that nothing is parked", func() (bool, string) {
		st, err := w.tallywire.status(t.Context())
		if err != nil {
			return false, err.Error()
		}
		for _, c := range st.Components {
			if c.State.Down() {
				t.Fatalf("%s %s is %s: %s", c.Kind, c.Name, c.State, c.Reason)
			}
			if c.Parked != 0 {
				t.Fatalf("%s %s parked %d records: %s", c.Kind, c.Name, c.Parked, c.Reason)
			}
		}
		return st.ParkedCount == 0, fmt.Sprintf("%d records are parked", st.ParkedCount)
	})
	return rows
}

// until polls what is to become true; a process that ended by itself, and a
// component that halted, end the wait.
func (w *world) until(t *testing.T, what string, is func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, not := is()
		if ok {
			return
		}
		if st, err := w.tallywire.status(ctx); err == nil {
			for _, c := range st.Components {
				if c.State.Down() {
					t.Fatalf("%s %s halted before %s: %s", c.Kind, c.Name, what, c.Reason)
				}
			}
		}
		select {
		case <-tick.C:
		case <-w.tallywire.done:
			t.Fatalf("tallywire ended by itself before %s: %s\n%s", what, not, w.tallywire.tail())
		case <-ctx.Done():
			t.Fatalf("after %v: not yet: %s: %s\n%s", within, what, not, w.tallywire.tail())
		}
	}
}

// sees holds how many rows came while it was captured against how many were
// entered: nothing was equal because nothing happened.
func (w *world) sees(t *testing.T, before, after, more map[string]int) {
	t.Helper()
	for topic, n := range more {
		if got := after[topic] - before[topic]; got != n {
			t.Errorf("%s has %d rows more than before, want %d", topic, got, n)
		}
		if before[topic] == 0 {
			t.Errorf("%s had no rows to load", topic)
		}
	}
}

// finds plants errors in the warehouse, which the comparison must find: one in
// the last digit of an hour, one in a text, a row that is gone; and in the view,
// one cent, an entry of another month, each column that has no value, and errors
// of the view itself.
func (w *world) finds(t *testing.T) {
	t.Helper()
	var margins, losses, waiting, revenue int
	if err := w.to.QueryRow(t.Context(), "SELECT count(margin), count(*) FILTER (WHERE margin < 0), count(*) FILTER (WHERE waiting_entries > 0), count(*) FILTER (WHERE revenue <> 0) FROM "+marginView).
		Scan(&margins, &losses, &waiting, &revenue); err != nil {
		t.Fatal(err)
	}
	t.Logf("the view has %d margins, %d of them negative; %d rows wait, %d have revenue", margins, losses, waiting, revenue)
	if min(margins-losses, losses, waiting, revenue) == 0 {
		t.Error("the view has no rows of one of these sorts: their equality says nothing")
	}
	one := " WHERE time_entry_id = (SELECT max(time_entry_id) FROM ps.time_entry WHERE hours > 0)"
	priced := " WHERE time_entry_id = (SELECT max(time_entry_id) FROM ps.time_entry_costed WHERE cost > 0 AND (project_id, date_trunc('month', work_date)::date) IN (SELECT project_id, month FROM ps.margin_by_project_month WHERE margin IS NOT NULL))"
	// The view as another text.
	view := func(old, with string) string {
		return fmt.Sprintf("DO $do$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW %[1]s AS ' || replace(pg_get_viewdef('%[1]s'), $old$%[2]s$old$, $new$%[3]s$new$); END $do$", marginView, old, with)
	}
	type planted struct {
		sql  string
		in   string // table, or a column of it
		want int    // −1: some
	}
	all := []planted{
		{"UPDATE ps.time_entry SET hours = hours + 0.000001" + one, "ps.time_entry", 2}, // the field, and the sum
		{"UPDATE ps.time_entry SET note = coalesce(note, '') || ' '" + one, "ps.time_entry", 1},
		{"DELETE FROM ps.time_entry" + one, "ps.time_entry", 2}, // the row, and the sum
		{"UPDATE ps.time_entry_costed SET cost = cost + 0.0000000001" + priced, marginView, -1},
		{"UPDATE ps.time_entry_costed SET work_date = work_date + 31" + one, marginView, -1},
		{"UPDATE ps.invoice_line SET amount = amount + 0.01 WHERE invoice_line_id = (SELECT max(invoice_line_id) FROM ps.invoice_line JOIN ps.invoice USING (invoice_id) WHERE status = 'issued')", marginView, -1},
		{"UPDATE ps.project SET name = name || ' ' WHERE project_id = (SELECT max(project_id) FROM ps.margin_by_project_month WHERE revenue > 0)", marginView, -1},
		{view("(- l.amount)", "l.amount"), marginView, -1},                               // credit notes are added
		{view("'issued'::text", "'void'::text"), marginView, -1},                         // what was cancelled counts
		{view("l.project_id", "('x' || l.project_id)"), marginView, -1},                  // revenue lies beside its hours
		{view("c.work_date)::timestamp", "c.work_date + 1)::timestamp"), marginView, -1}, // the last day of a month is in the next
		{view("count(c.waiting_for)", "0::bigint"), marginView, -1},                      // a cost that is too low is shown
	}
	columns := w.columns(t, marginView)
	for _, empty := range columns {
		if empty.Name == "project_id" || empty.Name == "month" { // they name the row
			continue
		}
		var list []string
		for _, c := range columns {
			if c == empty {
				c.Name = "NULL::" + c.Type + " AS " + c.Name
			}
			list = append(list, c.Name)
		}
		all = append(all, planted{
			fmt.Sprintf("DO $do$ BEGIN EXECUTE 'CREATE OR REPLACE VIEW %[1]s AS SELECT %[2]s FROM (' || rtrim(pg_get_viewdef('%[1]s'), ';') || ') v'; END $do$", marginView, strings.Join(list, ", ")),
			marginView + " " + empty.Name, -1,
		})
	}
	for _, c := range all {
		tx, err := w.to.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), c.sql); err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		_, found := w.compare(t)
		table, column, _ := strings.Cut(c.in, " ")
		var differ []string
		for _, d := range found {
			if (strings.HasPrefix(d, table+" ") || strings.HasPrefix(d, table+",")) && (column == "" || strings.Contains(d, ", "+column+": ")) {
				differ = append(differ, d)
			}
		}
		if c.want < 0 && len(differ) == 0 || c.want >= 0 && len(differ) != c.want {
			t.Errorf("after %s the comparison finds %d differences in %s, want %d: %q", c.sql, len(differ), c.in, c.want, differ)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// compare holds every field of every row, and the sums, of one side against the
// other, as text.
func (w *world) compare(t *testing.T) (rows map[string]int, differ []string) {
	t.Helper()
	rows = map[string]int{}
	for topic, truth := range w.truth {
		var there bool
		if err := w.to.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", topic).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			differ = append(differ, topic+": no table")
			continue
		}
		table := "SELECT * FROM " + topic
		var columns []string
		if truth.key == "" {
			for _, f := range w.contracts[topic].Fields {
				columns = append(columns, f.Name)
			}
		} else {
			table = fmt.Sprintf("SELECT %s AS row, * FROM %s", truth.key, topic)
			columns = []string{"row"}
			for _, c := range w.columns(t, topic) {
				columns = append(columns, c.Name)
			}
		}
		want := texts(t, w.from, truth.rows, columns)
		got := texts(t, w.to, table, columns)
		rows[topic] = len(want)
		for key, row := range want {
			other, is := got[key]
			if !is {
				differ = append(differ, fmt.Sprintf("%s %s: no row in the warehouse", topic, key))
				continue
			}
			for i := range row {
				if row[i] != other[i] {
					differ = append(differ, fmt.Sprintf("%s %s, %s: the application has %s, the warehouse %s", topic, key, columns[i], row[i], other[i]))
				}
			}
		}
		for key := range got {
			if _, is := want[key]; !is {
				differ = append(differ, fmt.Sprintf("%s %s: a row in the warehouse alone", topic, key))
			}
		}
		if len(truth.sums) > 0 {
			sum := func(conn *pgx.Conn, rows string) (text string) {
				sql := fmt.Sprintf("SELECT concat_ws(' ', %s) FROM (%s) r", strings.Join(truth.sums, ", "), rows)
				if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
				return text
			}
			if a, b := sum(w.from, truth.rows), sum(w.to, table); a != b {
				differ = append(differ, fmt.Sprintf("%s, %s: the application has %s, the warehouse %s", topic, strings.Join(truth.sums, ", "), a, b))
			}
		}
	}
	slices.Sort(differ)
	return rows, differ
}

type column struct{ Name, Type string }

// columns are those of a table or view in the warehouse.
func (w *world) columns(t *testing.T, table string) []column {
	t.Helper()
	found, err := w.to.Query(t.Context(), `SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type
		FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, table)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(found, pgx.RowToStructByName[column])
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// texts are the rows of a query by the first column, quoted, or null.
func texts(t *testing.T, conn *pgx.Conn, query string, columns []string) map[string][]string {
	t.Helper()
	sql := fmt.Sprintf("SELECT %s::text FROM (%s) r", strings.Join(columns, "::text, "), query)
	found, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer found.Close()
	all := map[string][]string{}
	cells := make([]*string, len(columns))
	into := make([]any, len(columns))
	for i := range cells {
		into[i] = &cells[i]
	}
	for found.Next() {
		if err := found.Scan(into...); err != nil {
			t.Fatal(err)
		}
		row := make([]string, len(cells))
		for i, c := range cells {
			row[i] = "null"
			if c != nil {
				row[i] = strconv.Quote(*c)
			}
		}
		// Two rows of one key differ from what is to be there: a month has a row of no
		// currency for as long as entries of it wait for their rate.
		for all[row[0]] != nil {
			row[0] += " once more"
		}
		all[row[0]] = row
	}
	if err := found.Err(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}
