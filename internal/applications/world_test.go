package applications

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/config"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/supervise"
	"github.com/tallywire/tallywire/internal/testkit/leak"
	_ "github.com/tallywire/tallywire/sinks/warehouse"
	_ "github.com/tallywire/tallywire/sources/postgres"
	_ "github.com/tallywire/tallywire/transforms/mapping"
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

// world is an application's database, tallywire, and the warehouse, all on one
// server.
type world struct {
	pg        *embedded.Postgres
	from      *pgx.Conn // the application's database
	to        *pgx.Conn // the warehouse
	truth     map[string]truth
	obs       *obs.Obs
	done      chan struct{} // closed when tallywire has ended
	err       error         // why it ended
	contracts avro.Catalogue
}

// truth is what a contract's rows are, in SQL over the application's tables: a
// SELECT with all fields of the contract by name.
type truth struct {
	rows string
	sums []string // of the fields, compared too
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
// machine has to give, and the file does not say, is a free port and a folder.
func (w *world) capture(t *testing.T, firm string) {
	t.Helper()
	t.Setenv("APPLICATION_DSN", w.pg.DSN("application"))
	t.Setenv("WAREHOUSE_DSN", w.pg.DSN("warehouse"))
	t.Setenv("CONTROL_DSN", w.pg.DSN("control"))
	name := filepath.Join("..", "..", "examples", firm, "tallywire.yml")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	free := net.JoinHostPort("127.0.0.1", "0")
	head := fmt.Sprintf("\nkafka: {listen: %q}\nregistry: {listen: %q}\nhttp: {listen: %q}\ncontrol: {dsn: env:CONTROL_DSN}\nstate_dir: %q\n", free, free, free, t.TempDir())
	cfg, err := config.Parse(name, append(text, head...), config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.obs, w.done = obs.New(slog.New(slog.NewTextHandler(io.Discard, nil))), make(chan struct{})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { // ends with stop, which the cleanup waits for
		defer close(w.done)
		w.err = supervise.Run(ctx, cfg, w.obs, supervise.RunOptions{Version: "test"})
	}()
	t.Cleanup(func() {
		stop()
		<-w.done
		if w.err != nil {
			t.Errorf("tallywire ended with %v", w.err)
		}
	})
}

// await waits until the warehouse equals the SQL, for all contracts, and gives
// how many rows each has.
func (w *world) await(t *testing.T) map[string]int {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		rows, differ := w.compare(t)
		if len(differ) == 0 {
			t.Logf("equal after %.0f s: %v rows", time.Since(began).Seconds(), rows)
			break
		}
		select {
		case <-tick.C:
		case <-w.done:
			t.Fatalf("tallywire ended: %v", w.err)
		case <-ctx.Done():
			t.Fatalf("the warehouse differs after %v; %d places, the first of them:\n%s\n%s", within, len(differ), strings.Join(differ[:min(20, len(differ))], "\n"), w.states())
		}
		if h := w.obs.Halted(); h != "" {
			t.Fatalf("a component halted: %s", h)
		}
	}
	rows, _ := w.compare(t)
	for _, v := range w.obs.Views() {
		if v.Parked != 0 {
			t.Errorf("%s %s parked %d records", v.Kind, v.Name, v.Parked)
		}
	}
	return rows
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
// the last digit of an hour, one in a text, and a row that is gone.
func (w *world) finds(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		sql  string
		want int
	}{
		{"UPDATE ps.time_entry SET hours = hours + 0.000001", 2}, // the field, and the sum
		{"UPDATE ps.time_entry SET note = coalesce(note, '') || ' '", 1},
		{"DELETE FROM ps.time_entry", 2}, // the row, and the sum
	} {
		tx, err := w.to.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), c.sql+" WHERE time_entry_id = (SELECT max(time_entry_id) FROM ps.time_entry WHERE hours > 0)"); err != nil {
			t.Fatal(err)
		}
		if _, differ := w.compare(t); len(differ) != c.want {
			t.Errorf("after %s the comparison finds %d differences, want %d: %q", c.sql, len(differ), c.want, differ)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) states() string {
	var b strings.Builder
	for _, v := range w.obs.Views() {
		fmt.Fprintf(&b, "%s %s: %s %s, %d parked\n", v.Kind, v.Name, v.State, v.Reason, v.Parked)
	}
	return b.String()
}

// compare holds every field of every row, and the sums, of one side against the
// other, as text.
func (w *world) compare(t *testing.T) (rows map[string]int, differ []string) {
	t.Helper()
	rows = map[string]int{}
	for topic, truth := range w.truth {
		c := w.contracts[topic]
		var columns []string
		for _, f := range c.Fields {
			columns = append(columns, f.Name)
		}
		want := texts(t, w.from, truth.rows, columns)
		var there bool
		if err := w.to.QueryRow(t.Context(), "SELECT to_regclass($1) IS NOT NULL", topic).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			differ = append(differ, topic+": no table")
			continue
		}
		table := "SELECT * FROM " + topic
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
		if all[row[0]] != nil {
			t.Fatalf("two rows have the key %s", row[0])
		}
		all[row[0]] = row
	}
	if err := found.Err(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}
