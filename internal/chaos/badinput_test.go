package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tallywire/tallywire/internal/console"
	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

// command runs the binary to its end.
func command(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), "ERP_SECRET="+secret)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		return out.String(), errs.String() + err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestBadConfiguration: a mistake that is not found, or not told with its
// place, runs as something else than was meant.
func TestBadConfiguration(t *testing.T) {
	const good = "kafka: {brokers: [kafka:9092, 'other:9092']}\nregistry: {embedded: true}\ncontrol: {embedded: true}\n" +
		"sources:\n  psa: {type: postgres, dsn: postgres://psa@db/psa, tables: [public.*]}\n"
	for _, c := range []struct {
		name, text string
		want       []string // in the message; empty: the file is good
	}{
		{"good", good, nil},
		{
			"forgotten part", strings.Replace(good, "control: {embedded: true}", "", 1),
			[]string{"TW-CONFIG-VALUE", "no control.dsn says", ".yml:1:18: control", "control: {embedded: true}"},
		},
		{
			"unknown key", strings.Replace(good, "tables", "tabels", 1),
			[]string{"TW-CONFIG-KEY", `unknown key "tabels" in sources.psa`, `did you mean "tables"?`, ".yml:5:53"},
		},
		{
			"unknown top-level key", good + "transfroms: {}\n",
			[]string{"TW-CONFIG-KEY", `did you mean "transforms"?`, ".yml:6:1"},
		},
		{
			"wrong type", good + "partitions: many\n",
			[]string{"TW-CONFIG-TYPE", "want a whole number, got a text", ".yml:6:13: partitions"},
		},
		{
			"list expected", strings.Replace(good, "[public.*]", "public.*", 1),
			[]string{"TW-CONFIG-TYPE", "want a list, got a text", "sources.psa.tables"},
		},
		{
			"missing secret", strings.Replace(good, "postgres://psa@db/psa", "env:NO_SUCH_SECRET", 1),
			[]string{"TW-CONFIG-SECRET", "NO_SUCH_SECRET is not set", ".yml:5:30: sources.psa.dsn", "set the variable"},
		},
		{
			"missing secret file", strings.Replace(good, "postgres://psa@db/psa", "file:/no/such/secret", 1),
			[]string{"TW-CONFIG-SECRET", "/no/such/secret", "sources.psa.dsn"},
		},
		{
			"secret in the text", strings.Replace(good, "postgres://psa@", "postgres://psa:hunter2@", 1),
			[]string{"TW-CONFIG-SECRET", "sources.psa.dsn", "env:NAME"},
		},
		{
			"unknown component", good + "sinks:\n  w: {type: warehose}\n",
			[]string{"TW-CONFIG-VALUE", `did you mean "warehouse"?`, ".yml:7:"},
		},
		{"no YAML", good + "sinks: [\n", []string{"TW-CONFIG-SYNTAX", ".yml:"}},
		{
			"all at once", strings.NewReplacer("tables", "tabels", "postgres://psa@db/psa", "env:NO_SUCH_SECRET").Replace(good) + "partitions: many\n",
			[]string{"TW-CONFIG-KEY", "TW-CONFIG-SECRET", "TW-CONFIG-TYPE"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tallywire.yml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, verb := range []string{"check", "run"} {
				if verb == "run" && c.want == nil {
					continue
				}
				_, stderr, code := command(t.Context(), verb, "-c", file)
				if (code == 0) != (c.want == nil) {
					t.Errorf("%s: exit code %d", verb, code)
				}
				for _, w := range c.want {
					if !strings.Contains(stderr, w) {
						t.Errorf("%s does not say %q", verb, w)
					}
				}
				if strings.Contains(stderr, "hunter2") {
					t.Errorf("%s shows the secret", verb)
				}
				if t.Failed() {
					t.Log(stderr)
				}
			}
		})
	}
}

// trial is a stack under bad input. unwell are the components that are to be
// so just now; all others have to run.
type trial struct {
	*stack
	changes int
	unwell  map[string]bool
}

// scene is one kind of bad input: a subtest, on the stack of the others.
func (s *trial) scene(name string, f func()) {
	s.t.Run(name, func(t *testing.T) {
		whole := s.t
		s.t = t
		defer func() { s.t = whole }()
		began := time.Now()
		f()
		t.Logf("%v", time.Since(began).Round(100*time.Millisecond))
	})
}

func (s *trial) status(ctx context.Context) (st console.Status, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/api/status", nil)
	if err != nil {
		return st, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return st, err
	}
	defer res.Body.Close()
	return st, json.NewDecoder(res.Body).Decode(&st)
}

// is waits until a component is in a state, for a reason that has all the words.
func (s *trial) is(name string, state obs.State, words ...string) {
	s.t.Helper()
	s.unwell[name] = state != obs.Running
	s.until(patience, fmt.Sprintf("%s is %s: %s", name, state, words), func(ctx context.Context) (bool, string) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		for _, c := range st.Components {
			if c.Name != name {
				continue
			}
			now := fmt.Sprintf("it is %s: %s; %s", c.State, c.Reason, c.Remedy)
			if c.State != state || state != obs.Running && c.Remedy == "" {
				return false, now
			}
			for _, w := range words {
				if !strings.Contains(c.Reason, w) {
					return false, now
				}
			}
			return true, now
		}
		return false, "there is no such component"
	})
}

// flows shows that nothing else was stopped: a change still gets through to
// the warehouse and the ERP, and all that is not unwell runs.
func (s *trial) flows() {
	s.t.Helper()
	s.changes++
	name := fmt.Sprintf("Still here %d", s.changes)
	s.sql(s.psaPool, fmt.Sprintf("update customer set name = '%s', updated_at = now() where id = (select min(id) from customer)", name))
	s.until(patience, "a good change is in the warehouse", func(ctx context.Context) (bool, string) {
		var n int
		err := s.warehouse.QueryRow(ctx, "select count(*) from ps.customer where name = $1", name).Scan(&n)
		return err == nil && n == 1, fmt.Sprint(n, err)
	})
	s.until(patience, "a good change is in the ERP", func(context.Context) (bool, string) {
		sets, err := erp.ReadLedger(s.dir + "/erp")
		if err != nil {
			return false, err.Error()
		}
		for _, r := range sets["customers"] {
			if r.Fields["displayName"] == name {
				return true, ""
			}
		}
		return false, "it is not"
	})
	s.until(patience, "all else runs", func(ctx context.Context) (bool, string) {
		st, err := s.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		var not []string
		for _, c := range st.Components {
			if c.State != obs.Running && !s.unwell[c.Name] {
				not = append(not, fmt.Sprintf("%s is %s: %s", c.Name, c.State, c.Reason))
			}
		}
		return len(not) == 0 && len(st.Components) > 0, fmt.Sprint(not)
	})
}

type parkedRow struct {
	Stage, Topic, Key, Code, Reason, Remedy string
	WaitsFor                                string `json:"waits_for"`
	Attempts                                int
}

// parked is what the command line lists.
func (s *trial) parked(ctx context.Context) ([]parkedRow, error) {
	out, stderr, code := command(ctx, "parked", "list", "-c", s.config, "--output", "json")
	if code != 0 {
		return nil, fmt.Errorf("parked list: exit code %d: %s", code, stderr)
	}
	var rows []parkedRow
	return rows, json.Unmarshal([]byte(out), &rows)
}

// isParked waits until a record is parked; words are parts of its reason.
func (s *trial) isParked(stage, topic, key, code string, words ...string) parkedRow {
	s.t.Helper()
	var found parkedRow
	s.until(patience, fmt.Sprintf("%s %s is parked at %s with %s", topic, key, stage, code), func(ctx context.Context) (bool, string) {
		rows, err := s.parked(ctx)
		if err != nil {
			return false, err.Error()
		}
		for _, r := range rows {
			if r.Stage != stage || r.Topic != topic || key != "*" && r.Key != key || r.Code != code || r.Remedy == "" {
				continue
			}
			found = r
			for _, w := range words {
				if !strings.Contains(r.Reason, w) {
					return false, r.Reason
				}
			}
			return true, ""
		}
		return false, fmt.Sprintf("%+v", rows)
	})
	return found
}

func (s *trial) nothingParked() {
	s.t.Helper()
	s.until(patience, "nothing is parked", func(ctx context.Context) (bool, string) {
		rows, err := s.parked(ctx)
		return err == nil && len(rows) == 0, fmt.Sprintf("%+v %v", rows, err)
	})
}

// do runs a command that must succeed.
func (s *trial) do(args ...string) string {
	s.t.Helper()
	out, stderr, code := command(s.t.Context(), append(args, "-c", s.config)...)
	if code != 0 {
		s.t.Fatalf("tallywire %v: exit code %d: %s", args, code, stderr)
	}
	return out
}

// doctor checks that doctor finds it too; it gives 4 when something is not well.
func (s *trial) doctor(want ...string) {
	s.t.Helper()
	out, stderr, code := command(s.t.Context(), "doctor", "-c", s.config, "--output", "json")
	if code != 4 {
		s.t.Errorf("doctor: exit code %d, want 4", code)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			s.t.Errorf("doctor does not say %q", w)
		}
	}
	if s.t.Failed() {
		s.t.Log(out, stderr)
	}
}

// extra are sources beside the good one, each with a mistake of its own.
const extra = `
  lowwal: {type: postgres, dsn: %q, tables: [public.*]}
  noright: {type: postgres, dsn: %q, tables: [public.note]}
  keyless: {type: postgres, dsn: %q, tables: [public.note, public.keyless]}
  busy: {type: postgres, dsn: %q, slot: busy, publication: busy, tables: [public.note]}
`

// newTrial starts a stack whose configuration names the bad sources too.
func newTrial(t *testing.T) *trial {
	s := &trial{stack: newStack(t), unwell: map[string]bool{}}
	ctx := t.Context()
	low, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{
		Dir: filepath.Join(s.dir, "low"), Params: map[string]string{"fsync": "off", "wal_level": "replica"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := low.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := s.psa.CreateDatabase(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"create table note (id int primary key, body text not null)", "alter table note replica identity full",
		"create table keyless (a int)", "insert into note values (1, 'one')", "create publication busy for table note",
		"create role weak login", "grant select on all tables in schema public to weak",
	} {
		if err := s.psa.Exec(ctx, "other", q); err != nil {
			t.Fatal(err)
		}
	}
	s.sql(s.psaPool, "create table scratch (a int)")
	s.sql(s.psaPool, "alter table invoice alter total type numeric(24,2)") // the contract has 14 digits
	// So few entries that what is shown here does not wait for the load.
	s.sql(s.psaPool, "delete from time_entry where work_date < '2026-06-20'")
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	other := s.psa.DSN("other")
	more := fmt.Sprintf(extra, low.DSN("postgres"), s.psa.DSNAs("weak", "other"), other, other)
	changed := strings.Replace(string(text), "transforms:", strings.TrimPrefix(more, "\n")+"transforms:", 1)
	if err := os.WriteFile(s.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// occupy streams from the slot busy until the connection is closed.
func (s *trial) occupy() *pgconn.PgConn {
	s.t.Helper()
	ctx := s.t.Context()
	cfg, err := pgconn.ParseConfig(s.psa.DSN("other"))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["wal_sender_timeout"] = "0"
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := pglogrepl.CreateReplicationSlot(ctx, c, "busy", "pgoutput", pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication}); err != nil {
		s.t.Fatal(err)
	}
	err = pglogrepl.StartReplication(ctx, c, "busy", 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'busy'"}})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// rawHas waits until a raw topic has so many committed records.
func (s *trial) rawHas(topic string, n int) {
	s.t.Helper()
	s.until(patience, fmt.Sprintf("%s has %d records", topic, n), func(ctx context.Context) (bool, string) {
		seen, err := history.ReadTopics(ctx, s.cluster, s.registry.SchemaByID, topic)
		if err != nil {
			return false, err.Error()
		}
		return seen.Records >= n, fmt.Sprint(seen.Records)
	})
}

// inWarehouse waits until a query of the warehouse counts one.
func (s *trial) inWarehouse(q string) {
	s.t.Helper()
	s.until(patience, q, func(ctx context.Context) (bool, string) {
		var n int
		if err := s.warehouse.QueryRow(ctx, q).Scan(&n); err != nil {
			s.t.Fatal(err)
		}
		return n == 1, fmt.Sprint(n)
	})
}

func (s *trial) other(q string) {
	s.t.Helper()
	if err := s.psa.Exec(s.t.Context(), "other", q); err != nil {
		s.t.Fatal(err)
	}
}

// TestBadInput: what is wrong with one source, one record or one customer
// stops nothing else, is told with a way out, and that way works.
func TestBadInput(t *testing.T) {
	s := newTrial(t)
	holder := s.occupy()
	s.start()

	s.scene("wal_level replica", func() {
		s.is("lowwal", obs.Halted, "TW-PG-WAL-LEVEL", "wal_level", "replica")
	})
	s.scene("no replication right", func() {
		s.is("noright", obs.Halted, "TW-PG-NO-REPLICATION", "weak")
	})
	s.scene("table without a key", func() {
		s.is("keyless", obs.Halted, "TW-PG-NO-KEY", "public.keyless")
	})
	s.scene("slot in use", func() {
		s.is("busy", obs.Retrying, "TW-PG-SLOT-IN-USE", `"busy"`)
	})
	s.scene("the rest flows", func() {
		s.is("psa", obs.Running)
		// Remedy: TW-NOT-RUNNING
		if out, stderr, _ := command(s.t.Context(), "status", "-c", s.config); !strings.Contains(out, "canonical") || strings.Contains(stderr, "TW-NOT-RUNNING") {
			s.t.Errorf("status: %s%s", out, stderr)
		}
		s.flows()
		// A pattern that also matches a table without a key leaves it out, and says so.
		if log, err := os.ReadFile(filepath.Join(s.dir, "tallywire.log")); err != nil ||
			!strings.Contains(string(log), "TW-PG-NO-KEY") || !strings.Contains(string(log), "public.scratch") {
			s.t.Errorf("nothing is said of public.scratch (%v)", err)
		}
		s.doctor("TW-PG-WAL-LEVEL", "wal_level = logical", "TW-PG-NO-REPLICATION", "ALTER ROLE", "TW-PG-NO-KEY", "PRIMARY KEY", "streamed by the server process")
	})
	s.scene("slot freed", func() {
		if err := holder.Close(s.t.Context()); err != nil {
			s.t.Fatal(err)
		}
		s.is("busy", obs.Running) // Remedy: TW-PG-SLOT-IN-USE
		s.rawHas("busy.public.note", 1)
	})

	s.scene("garbage in a raw topic", func() {
		cl, err := s.cluster.Client()
		if err != nil {
			s.t.Fatal(err)
		}
		defer cl.Close()
		for _, r := range []*kgo.Record{
			{Topic: "psa.public.customer", Key: []byte("who?"), Value: []byte("what?")},
			{Topic: "psa.public.customer", Key: nil, Value: []byte{0, 0, 0, 0, 99, 1, 2, 3}},
		} {
			if err := cl.ProduceSync(s.t.Context(), r).FirstErr(); err != nil {
				s.t.Fatal(err)
			}
		}
		s.isParked("canonical", "psa.public.customer", "*", "TW-AVRO-GARBAGE")
		s.isParked("canonical", "psa.public.customer", "*", "TW-AVRO-UNKNOWN-SCHEMA", "99")
		s.flows()
		// Remedy: TW-AVRO-GARBAGE, TW-AVRO-UNKNOWN-SCHEMA
		s.do("parked", "discard", "canonical", "--topic", "psa.public.customer", "--all")
		s.nothingParked()
		s.flows()
	})

	s.scene("a numeric too large for its contract", func() {
		s.sql(s.psaPool, `insert into invoice select 900001, 'INV-900001', customer_id, legal_entity, kind, 'draft', invoice_date, currency, 1234567890123456.78, now() from invoice order by id limit 1`)
		s.isParked("canonical", "psa.public.invoice", "900001", "TW-AVRO-DECIMAL-OVERFLOW", "total")
		s.flows()
		s.sql(s.psaPool, "update invoice set total = 12.5 where id = 900001") // Remedy: TW-AVRO-DECIMAL-OVERFLOW
		s.nothingParked()
		s.inWarehouse("select count(*) from ps.invoice where invoice_id = '900001' and total = 12.5")
	})

	s.scene("a null that no contract takes", func() {
		s.sql(s.psaPool, "alter table customer alter name drop not null")
		s.sql(s.psaPool, "update customer set name = null where id = (select max(id) from customer)")
		r := s.isParked("canonical", "psa.public.customer", "*", "TW-MAP-NULL", "name")
		s.flows()
		s.sql(s.psaPool, fmt.Sprintf("update customer set name = 'Filled' where id = %s", r.Key)) // Remedy: TW-MAP-NULL
		s.nothingParked()
		s.inWarehouse(fmt.Sprintf("select count(*) from ps.customer where customer_id = '%s' and name = 'Filled'", r.Key))
	})

	s.scene("a kind that nobody knows", func() {
		s.sql(s.psaPool, "update invoice set kind = 'CN' where id = 900001")
		s.isParked("canonical", "psa.public.invoice", "900001", "TW-MAP-VALUE", "kind", `"CN"`, "credit_note")
		s.flows()
		s.sql(s.psaPool, "update invoice set kind = 'credit_note' where id = 900001")
		s.nothingParked()
		s.inWarehouse("select count(*) from ps.invoice where invoice_id = '900001' and kind = 'credit_note'")
	})

	s.scene("a date that no contract takes", func() {
		s.sql(s.psaPool, "update invoice set invoice_date = 'infinity' where id = 900001")
		s.isParked("canonical", "psa.public.invoice", "900001", "TW-AVRO-NO-FORM", "invoice_date")
		s.flows()
		s.sql(s.psaPool, "update invoice set invoice_date = '2026-06-30' where id = 900001") // Remedy: TW-AVRO-NO-FORM
		s.nothingParked()
		s.inWarehouse("select count(*) from ps.invoice where invoice_id = '900001' and invoice_date = '2026-06-30'")
	})

	s.scene("a record over the broker's limit", func() {
		s.sql(s.psaPool, `insert into time_entry select 9000001, employee_id, project_id, task_number, work_date, hours, billable, 'draft', repeat('x', 17000000), bill_rate, now(), now() from time_entry order by id limit 1`)
		s.isParked("psa", "psa.public.time_entry", "9000001", "TW-RECORD-TOO-LARGE", "octets")
		s.flows()
		s.sql(s.psaPool, "update time_entry set note = 'short' where id = 9000001")
		s.nothingParked()
		s.flows()
	})

	s.scene("a topic's limit lowered under a running source", func() {
		limit := "100000"
		res, err := s.cluster.Admin().AlterTopicConfigs(s.t.Context(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &limit}}, "psa.public.time_entry")
		if err != nil || res[0].Err != nil {
			s.t.Fatal(err, res)
		}
		// Text that does not compress: the broker looks at the compressed size.
		// It says that the limit is set before it heeds it: what comes until
		// then still fits.
		s.until(patience, "the record to be too large", func(ctx context.Context) (bool, string) {
			s.sql(s.psaPool, `update time_entry set note = (select string_agg(md5(random()::text), '') from generate_series(1, 20000)) where id = 9000001`)
			rows, err := s.parked(ctx)
			return err == nil && slices.ContainsFunc(rows, func(r parkedRow) bool { return r.Key == "9000001" }), fmt.Sprint(len(rows), err)
		})
		s.isParked("psa", "psa.public.time_entry", "9000001", "TW-RECORD-TOO-LARGE", limit)
		s.flows()
		// What does not repeat the note waits behind it, and both come when the
		// topic takes them.
		s.sql(s.psaPool, "update time_entry set hours = hours + 1 where id = 9000001")
		s.flows()
		s.isParked("psa", "psa.public.time_entry", "9000001", "TW-RECORD-TOO-LARGE", limit)
		limit = "2000000"
		res, err = s.cluster.Admin().AlterTopicConfigs(s.t.Context(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &limit}}, "psa.public.time_entry")
		if err != nil || res[0].Err != nil {
			s.t.Fatal(err, res)
		}
		s.do("parked", "retry", "psa", "--topic", "psa.public.time_entry", "--key", "9000001")
		s.nothingParked()
		s.flows()
		// Remedy: TW-RECORD-TOO-LARGE
		s.sql(s.psaPool, "update time_entry set note = 'short again' where id = 9000001")
		s.nothingParked()
	})

	s.scene("a large value that is not sent again", func() {
		s.sql(s.psaPool, `update time_entry set note = (select string_agg(md5(random()::text), '') from generate_series(1, 700)) where id = 9000001`)
		s.flows()
		s.sql(s.psaPool, "alter table time_entry replica identity default")
		s.sql(s.psaPool, "update time_entry set hours = hours + 1 where id = 9000001")
		s.isParked("canonical", "psa.public.time_entry", "9000001", "TW-MAP-UNCHANGED", "note")
		s.flows()
		// Remedy: TW-MAP-UNCHANGED, TW-AVRO-UNCHANGED
		s.sql(s.psaPool, "alter table time_entry replica identity full")
		s.sql(s.psaPool, "update time_entry set hours = hours + 1 where id = 9000001")
		s.nothingParked()
		s.flows()
		s.sql(s.psaPool, "update time_entry set note = 'short' where id = 9000001")
	})

	s.scene("a column widened while it flows", func() {
		s.sql(s.psaPool, "alter table cost_rate alter rate type numeric(16,4)")
		s.sql(s.psaPool, "update cost_rate set rate = 123456789012.5 where id = (select min(id) from cost_rate)")
		r := s.isParked("canonical", "psa.public.cost_rate", "*", "TW-AVRO-DECIMAL-OVERFLOW", "rate")
		s.flows()
		// invariant 13: rates are restricted.
		if log, err := os.ReadFile(filepath.Join(s.dir, "tallywire.log")); err != nil || strings.Contains(string(log)+r.Reason, "123456789012") {
			s.t.Errorf("the rate is in the log or in the reason (%v)", err)
		}
		s.sql(s.psaPool, "update cost_rate set rate = 12.5 where id = (select min(id) from cost_rate)")
		s.nothingParked()
	})

	s.scene("garbage in a canonical topic", func() {
		cl, err := s.cluster.Client()
		if err != nil {
			s.t.Fatal(err)
		}
		defer cl.Close()
		if err := cl.ProduceSync(s.t.Context(), &kgo.Record{Topic: "ps.time_entry", Key: []byte("who?"), Value: []byte("what?")}).FirstErr(); err != nil {
			s.t.Fatal(err)
		}
		for _, stage := range []string{"warehouse", "erp", "costed.ps.time_entry_costed"} {
			s.isParked(stage, "ps.time_entry", "*", "TW-AVRO-GARBAGE")
		}
		s.flows()
		for _, stage := range []string{"warehouse", "erp", "costed.ps.time_entry_costed"} {
			s.do("parked", "discard", stage, "--all")
		}
		s.nothingParked()
	})

	s.scene("the ERP rejects a customer for ever", func() {
		s.erp.SetFaults(erp.Faults{RejectCustomers: []string{"C-BAD"}})
		for _, q := range []string{
			`insert into customer select 900001, 'C-BAD', 'Unwanted', legal_entity, country, tax_id, email, true, now() from customer order by id limit 1`,
			`insert into project select 900001, 'P-BAD', 'Unwanted', 900001, p.legal_entity, p.currency, p.status, p.billing_type, p.start_date, p.end_date, p.budget_hours, now()
from project p join time_entry t on t.project_id = p.id order by t.id limit 1`,
			fmt.Sprintf(`insert into time_entry select 9000002, employee_id, 900001, task_number, '%s', 3.25, true, 'approved', null, bill_rate, now(), now() from time_entry order by id limit 1`, firm.GoLive.Format(time.DateOnly)),
		} {
			s.sql(s.psaPool, q)
		}
		s.isParked("erp", "ps.customer", "900001", "TW-REST-REJECTED", "C-BAD")
		if r := s.isParked("erp", "ps.project", "900001", "TW-REST-WAITS"); !strings.Contains(r.WaitsFor, "900001") {
			s.t.Errorf("the project waits for %q", r.WaitsFor)
		}
		if r := s.isParked("erp", "ps.time_entry", "9000002", "TW-REST-WAITS"); !strings.Contains(r.WaitsFor, "900001") {
			s.t.Errorf("the time entry waits for %q", r.WaitsFor)
		}
		s.flows()
		list := s.do("parked", "list", "--stage", "erp", "--topic", "ps.customer")
		for _, w := range []string{"ps.customer", "900001", "TW-REST-REJECTED", "remedy", "since"} {
			if !strings.Contains(list, w) {
				s.t.Errorf("parked list lacks %q:\n%s", w, list)
			}
		}
		// Still rejected: a retry changes nothing and stops nothing.
		s.do("parked", "retry", "erp", "--topic", "ps.customer", "--key", "900001")
		s.until(patience, "it was tried again", func(ctx context.Context) (bool, string) {
			rows, err := s.parked(ctx)
			for _, r := range rows {
				if r.Topic == "ps.customer" && r.Key == "900001" && r.Code == "TW-REST-REJECTED" && r.Attempts > 1 {
					return true, ""
				}
			}
			return false, fmt.Sprintf("%+v %v", rows, err)
		})
		s.flows()
		s.erp.SetFaults(erp.Faults{}) // Remedy: TW-REST-REJECTED, TW-REST-WAITS
		s.do("parked", "retry", "erp", "--topic", "ps.customer", "--key", "900001")
		s.nothingParked() // what waited went with it
	})

	s.scene("registry down", func() {
		addr := s.serving.Addr
		if err := s.serving.Close(); err != nil {
			s.t.Fatal(err)
		}
		s.other("alter table note add column extra text")
		s.other("insert into note values (2, 'two', 'more')")
		s.is("busy", obs.Retrying, "TW-REGISTRY-UNAVAILABLE", addr)
		s.flows()
		s.doctor("TW-REGISTRY-UNAVAILABLE", addr)
		s.serveSchemas(addr) // Remedy: TW-REGISTRY-UNAVAILABLE
		s.is("busy", obs.Running)
		s.rawHas("busy.public.note", 2)
	})

	s.scene("incompatible schema", func() {
		s.other("alter table note alter body type int using 7")
		s.other("insert into note values (3, 3, 'new shape')")
		s.is("busy", obs.Halted, "TW-REGISTRY-INCOMPATIBLE", "busy.public.note-value")
		s.flows()
		// Remedy: TW-REGISTRY-INCOMPATIBLE
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPut, "http://"+s.serving.Addr+"/config/busy.public.note-value", strings.NewReader(`{"compatibility": "NONE"}`))
		if err != nil {
			s.t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
			s.t.Fatal(res.Status, err)
		}
		s.stop()
		s.start()
		s.is("busy", obs.Running)
		s.rawHas("busy.public.note", 3)
		s.flows()
	})

	// docs/recovery.md, step by step.
	s.scene("a source that is started over", func() {
		s.stop()
		drop := func() {
			s.other("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'busy' and not active")
		}
		s.until(patience, "the slot to be dropped", func(ctx context.Context) (bool, string) {
			drop()
			var n int
			err := s.psaPool.QueryRow(ctx, "select count(*) from pg_replication_slots where slot_name = 'busy'").Scan(&n)
			return err == nil && n == 0, fmt.Sprint(n, err)
		})
		s.other("delete from note where id = 1")
		s.start()
		s.is("busy", obs.Halted, "TW-PG-SLOT-MISSING")
		s.stop()
		drop()
		topics, err := s.cluster.TopicsOf(s.t.Context(), "busy.")
		if err != nil {
			s.t.Fatal(err)
		}
		topics = append(topics, "_tallywire.positions.busy", "_tallywire.tables.busy", "_tallywire.parked.busy")
		if _, err := s.cluster.Admin().DeleteTopics(s.t.Context(), topics...); err != nil {
			s.t.Fatal(err)
		}
		s.start()
		s.is("busy", obs.Running)
		s.until(patience, "the rows that are there", func(ctx context.Context) (bool, string) {
			seen, err := history.ReadTopics(ctx, s.cluster, s.registry.SchemaByID, "busy.public.note")
			return err == nil && seen.Has("public.note", "2") && seen.Has("public.note", "3") && !seen.Has("public.note", "1"), fmt.Sprint(seen, err)
		})
		s.flows()
	})

	// A field that no program knows, added under way: records of before have none
	// of it, and a mistake in its file stops nothing that runs.
	s.scene("a field of the firm's own", func() {
		dir := filepath.Join(s.dir, "contracts")
		if err := os.Mkdir(dir, 0o700); err != nil {
			s.t.Fatal(err)
		}
		write := func(name, text string) {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				s.t.Fatal(err)
			}
		}
		text, err := os.ReadFile(s.config)
		if err != nil {
			s.t.Fatal(err)
		}
		write(s.config, "contracts: [contracts]\n"+string(text))
		const file = `{"extends": "ps.project", "fields": [{"name": "partner", "type": %s, "default": null, "doc": "Who answers for it.", "owner": "sales", "sensitivity": "internal"}]}`
		write(filepath.Join(dir, "project.avsc"), fmt.Sprintf(file, `"string"`))
		if _, stderr, code := command(s.t.Context(), "check", "-c", s.config); code == 0 || !strings.Contains(stderr, "project.avsc") || !strings.Contains(stderr, "field partner") {
			s.t.Errorf("check: exit %d, %s", code, stderr)
		}
		s.flows()
		write(filepath.Join(dir, "project.avsc"), fmt.Sprintf(file, `["null", "string"]`))
		s.sql(s.psaPool, "alter table project add column partner text")
		s.stop()
		s.start()
		s.flows()
		s.sql(s.psaPool, "update project set partner = 'Ada' where id = (select max(id) from project)")
		s.inWarehouse("select count(*) from ps.project where partner = 'Ada'")
		s.sql(s.psaPool, "alter table project drop column partner")
		s.sql(s.psaPool, "update project set name = name || '!' where id = (select max(id) from project)")
		s.inWarehouse("select count(*) from ps.project where partner is null and name like '%!'")
		s.flows()
	})

	s.scene("all is as it should be", func() { s.settled(patience) })
}
