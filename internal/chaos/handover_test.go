package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tallywire/tallywire/internal/redis"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

// shop is what processes share in a chaos test.
type shop struct {
	tables     string              // that are captured
	keys       map[string][]string // of them
	make       []string            // SQL, at the source
	contract   string
	transforms string // YAML, a list of rules
	// change is one transaction of a writer.
	change func(ctx context.Context, t *testing.T, pool *pgxpool.Pool, rng *rand.Rand)
	// compared are queries of two columns, key and value: at the source, and of the
	// warehouse.
	compared []compared
	// seen is a query of the warehouse that is true after the load, where what is compared
	// is there at all; "": it goes without saying.
	seen string
	// emitted is a canonical topic, and impossible a query at the source that gives those of
	// all its records, $1, which no versions of the rows make; versions.t has what was ever
	// in table t.
	emitted, impossible string
}

type compared struct{ table, truth, got string }

const handOverContract = `{"type": "record", "name": "Contact", "namespace": "ps", "doc": "Who has an address.", "topic": "ps.contact", "key": ["email"], "owner": "sales",
  "fields": [
    {"name": "email", "type": "string", "doc": "The address.", "owner": "sales", "sensitivity": "confidential"},
    {"name": "user_id", "type": "string", "doc": "Who has it.", "owner": "sales", "sensitivity": "internal"}]}`

const processesConfiguration = `
kafka: {brokers: ["%[1]s"]}
registry: {url: "http://%[2]s"}
redis: {addr: "%[3]s"}
control: {dsn: %[4]q}
http: {listen: "%[5]s"}
state_dir: %[6]s
instance: %[10]s
partitions: 6
contracts: [%[9]s]
sources:
  psa: {type: postgres, dsn: %[7]q, slot: tallywire_psa, publication: tallywire_psa, tables: [%[11]s]}
transforms:
  canonical:
    type: map
    topics:%[12]s
sinks:
  warehouse: {type: warehouse, dsn: %[8]q}
`

// TestChaosHandOver: rows hand their key to each other, in transactions, and rates
// move between people, under the default replica identity, while tallywire is
// killed and Redis is emptied. In the end the warehouse has what the tables have:
// no address without its owner, no rate under the key that it had.
func TestChaosHandOver(t *testing.T) { chaosProcesses(t, handOverShop, 0) }

// TestChaosProcesses is TestChaosHandOver with three processes, of which two come
// when it runs already, and any is killed: partitions move to them and back, and
// their state with them.
func TestChaosProcesses(t *testing.T) { chaosProcesses(t, handOverShop, 2) }

var handOverShop = shop{
	tables: "public.contact, public.cost_rate",
	keys:   map[string][]string{"public.contact": {"user_id"}, "public.cost_rate": {"id"}},
	make: []string{
		`create table contact (user_id int primary key, email text unique deferrable initially deferred)`,
		`insert into contact select n, 'address ' || n from generate_series(1, 30) n`,
	},
	contract: handOverContract,
	transforms: `
      - {from: psa.public.contact, to: ps.contact, where: row.email != null, claims: true}
      - {from: psa.public.cost_rate, to: ps.cost_rate, fields: {cost_rate_id: "{employee_id}/{id}", resource_id: employee_id}}`,
	change: handOver,
	compared: []compared{
		{"ps.contact", "select email, user_id::text from contact where email is not null", "select email, user_id from ps.contact"},
		{"ps.cost_rate", "select employee_id || '/' || id, rate::text from cost_rate", "select cost_rate_id, rate::text from ps.cost_rate"},
	},
}

// configurations gives what writes the configuration of each process of a shop.
func (s *stack) configurations(f shop) (write func(instance, http string) (file string)) {
	s.t.Helper()
	contracts := filepath.Join(s.dir, "contracts")
	if err := os.Mkdir(contracts, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(contracts, "firm.avsc"), []byte(f.contract), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return func(instance, http string) (file string) {
		text := fmt.Sprintf(processesConfiguration, s.kafka.Addr(), s.serving.Addr, s.redis.Addr, s.far.DSN("control"), http, filepath.Join(s.dir, "state-"+instance), s.sourceDSN(), s.far.DSN("warehouse"), contracts, instance, f.tables, f.transforms)
		file = filepath.Join(s.dir, instance+".yml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
		return file
	}
}

func chaosProcesses(t *testing.T, f shop, more int) {
	s := newStack(t)
	rng := seeded(t)
	for _, sql := range f.make {
		s.sql(s.psaPool, sql)
	}
	if _, err := history.New(nil).Witness(t.Context(), s.psaPool, "truth"); err != nil {
		t.Fatal(err)
	}
	s.firm = history.New(f.keys)
	if err := s.firm.BaseOf(t.Context(), s.psaPool); err != nil {
		t.Fatal(err)
	}
	same := func(ctx context.Context) (bool, string) { return s.same(ctx, f.compared) }
	write := s.configurations(f)
	s.config = write("chaos", s.http)
	state, err := redis.Open(t.Context(), s.redis.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()

	s.start()
	s.until(patience, "the load", same)
	if f.seen != "" {
		var seen bool
		if err := s.warehouse.QueryRow(t.Context(), f.seen).Scan(&seen); err != nil || !seen {
			t.Errorf("what this is about is not there (%v): %s", err, f.seen)
		}
	}
	s.firm.Loaded()
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	for i := range 2 {
		own := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		busy.Go(func() {
			for ctx.Err() == nil {
				f.change(ctx, t, s.psaPool, own)
				s.pause(5 * time.Millisecond)
			}
		})
	}
	others := make([]*process, more)
	configs := make([]string, more)
	for i := range others {
		configs[i] = write(fmt.Sprintf("other%d", i), freeAddr(t))
		others[i] = s.launch(s.binary, configs[i])
		defer func() { s.signal(others[i], syscall.SIGKILL) }()
	}
	for round := range 6 {
		s.pause(time.Duration(500+rng.IntN(1500)) * time.Millisecond)
		if round%3 == 1 {
			if err := state.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			s.pause(time.Duration(rng.IntN(800)) * time.Millisecond)
		}
		if i := rng.IntN(more + 1); i < more {
			s.signal(others[i], syscall.SIGKILL)
			others[i] = s.launch(s.binary, configs[i])
			continue
		}
		s.kill()
		s.start()
	}
	s.pause(time.Second)
	stop()
	busy.Wait()
	s.until(patience, "the warehouse to have what the tables have", same)
	if n := strings.Count(s.tail(), "TW-MAP-"); n > 0 {
		t.Errorf("rows were parked:\n%s", s.tail())
	}
	s.rawExact(s.firm, history.Options{})
	if f.emitted != "" {
		s.possible(f)
	}
}

// possible holds every record that a canonical topic ever got, not the last alone,
// against what the source ever had. A record made of halves of two versions of a row
// would be seen by whoever reads at that moment.
func (s *stack) possible(f shop) {
	ctx := s.t.Context()
	asJSON := func(rows []history.Row) string {
		out := make([]map[string]any, len(rows))
		for i, r := range rows {
			out[i] = map[string]any{}
			for k, v := range r {
				if out[i][k] = v; v == history.Null {
					out[i][k] = nil
				}
			}
		}
		b, err := json.Marshal(out)
		if err != nil {
			s.t.Fatal(err)
		}
		return string(b)
	}
	s.sql(s.psaPool, "create schema versions")
	for _, name := range s.firm.Tables() {
		table := strings.TrimPrefix(name, "public.")
		s.sql(s.psaPool, fmt.Sprintf("create table versions.%s (like %s)", table, name))
		if _, err := s.psaPool.Exec(ctx, fmt.Sprintf("insert into versions.%s select distinct * from jsonb_populate_recordset(null::%s, $1::text::jsonb)", table, name), asJSON(s.firm.Versions(name))); err != nil {
			s.t.Fatal(err)
		}
		s.sql(s.psaPool, "analyze versions."+table)
	}
	rows, err := history.ReadRows(ctx, s.cluster, s.registry.SchemaByID, f.emitted)
	if err != nil {
		s.t.Fatal(err)
	}
	found, err := s.psaPool.Query(ctx, f.impossible, asJSON(rows))
	if err != nil {
		s.t.Fatal(err)
	}
	bad, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%d records of %s", len(rows), f.emitted)
	for _, b := range bad[:min(len(bad), 20)] {
		s.t.Errorf("%s: no versions of the rows make %s", f.emitted, b)
	}
}

// handOver is one transaction: two swap their address, one hands it to another who
// had none, one goes, one comes; a rate goes to another person, or goes.
func handOver(ctx context.Context, t *testing.T, pool *pgxpool.Pool, rng *rand.Rand) {
	a, b, r := 1+rng.IntN(30), 1+rng.IntN(30), rng.IntN(40)
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		exec := func(sql string, args ...any) {
			if err == nil {
				_, err = tx.Exec(ctx, sql, args...)
			}
		}
		// Rows are locked in one order, or the two writers would wait for each other.
		exec("select 1 from contact where user_id in ($1, $2) order by user_id for update", a, b)
		switch rng.IntN(4) {
		case 0:
			exec("update contact c set email = o.email from contact o where (c.user_id, o.user_id) in (($1, $2), ($2, $1))", a, b)
		case 1:
			exec("update contact set email = null where user_id = $1 and $1 <> $2", a, b)
		case 2:
			exec("delete from contact where user_id = $1", a)
			exec("insert into contact values ($1, null) on conflict (user_id) do nothing", b)
		default: // somebody takes an address that nobody has
			exec("insert into contact values ($1, null) on conflict (user_id) do nothing", a)
			exec(`update contact set email = f.email from (select 'address ' || n as email from generate_series(1, 30) n
				where not exists (select from contact where email = 'address ' || n) order by random() limit 1) f where user_id = $1 and contact.email is null`, a)
		}
		switch rng.IntN(3) {
		case 0:
			exec("update cost_rate set employee_id = (select id from employee order by random() limit 1), updated_at = now() where id = (select id from cost_rate order by id offset $1 limit 1)", r)
		case 1:
			exec("update cost_rate set rate = rate + 1, updated_at = now() where id = (select id from cost_rate order by id offset $1 limit 1)", r)
		default:
			if rng.IntN(10) == 0 {
				exec("delete from cost_rate where id = (select id from cost_rate order by id offset $1 limit 1)", r)
			}
		}
		return err
	})
	if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "contact_email_key") && !strings.Contains(err.Error(), "deadlock") {
		t.Error(err) // two writers may take one address; one of them is refused
	}
}

// same compares.
func (s *stack) same(ctx context.Context, all []compared) (bool, string) {
	for _, c := range all {
		read := func(pool *pgxpool.Pool, sql string) (map[string]string, error) {
			rows, err := pool.Query(ctx, sql)
			if err != nil {
				return nil, err
			}
			out := map[string]string{}
			var k, v string
			_, err = pgx.ForEachRow(rows, []any{&k, &v}, func() error { out[k] = v; return nil })
			return out, err
		}
		want, err := read(s.psaPool, c.truth)
		if err != nil {
			return false, err.Error()
		}
		got, err := read(s.warehouse, c.got)
		if err != nil {
			return false, err.Error()
		}
		var differ []string
		for k, v := range want {
			if got[k] != v {
				differ = append(differ, fmt.Sprintf("%s is %q, want %q", k, got[k], v))
			}
		}
		for k, v := range got {
			if _, is := want[k]; !is {
				differ = append(differ, fmt.Sprintf("%s is %q, and should not be", k, v))
			}
		}
		if len(differ) > 0 {
			return false, fmt.Sprintf("%s: %d of %d differ: %s", c.table, len(differ), len(want), strings.Join(differ[:min(len(differ), 5)], "; "))
		}
	}
	return true, ""
}
