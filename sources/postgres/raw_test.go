package postgres

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"github.com/tallywire/tallywire/avro"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/kafka"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/pipeline/ingest"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
)

// story is what happens to a few tables, before the source starts and while it
// runs, and what must be in their raw topics then: what test_decoding says of
// it, and for partitioned tables, which it calls by their partitions, what is
// said here.
type story struct {
	setup  string
	keys   map[string][]string
	during []string
	also   []history.Change // of tables that test_decoding does not name
}

var stories = map[string]story{
	// A value without a form, in the row before, refused what corrects it.
	"NaN corrected, and deleted": {
		setup: `CREATE TABLE fee (id int PRIMARY KEY, amount numeric(5,2), note text); ALTER TABLE fee REPLICA IDENTITY FULL;
			INSERT INTO fee VALUES (1, 'NaN', 'loaded')`,
		keys: map[string][]string{"public.fee": {"id"}},
		during: []string{
			`INSERT INTO fee VALUES (2, 'NaN', 'x'), (3, 'NaN', 'y')`, `UPDATE fee SET amount = 5 WHERE id = 2`, `DELETE FROM fee WHERE id = 3`,
			`UPDATE fee SET note = 'again' WHERE id = 1`, `DELETE FROM fee WHERE id = 1`,
		},
	},
	"values that Avro has no form for": {
		setup: `CREATE TABLE odd (id int PRIMARY KEY, list int[], fees numeric(5,2)[], at timestamp, moment timestamptz, amount numeric(4,1));
			INSERT INTO odd VALUES (1, '{{1,2},{3,4}}', '{NaN,1.5}', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59+00', 'NaN')`,
		keys: map[string][]string{"public.odd": {"id"}},
		during: []string{
			`INSERT INTO odd VALUES (2, '[0:1]={7,8}', '{{1.25}}', '294247-01-10 04:00:54.775808', '-infinity', 1)`,
			`UPDATE odd SET list = '{1}', fees = NULL, at = 'infinity', moment = now(), amount = 2 WHERE id = 1`,
			`UPDATE odd SET amount = 'NaN'`, `DELETE FROM odd`,
		},
	},
	"a key without a form": {
		setup: `CREATE TABLE rate (amount numeric(4,1), at timestamp, list int[], n int, PRIMARY KEY (amount, at, list));
			INSERT INTO rate VALUES ('NaN', '294276-12-31 00:00', '{{1}}', 1)`,
		keys: map[string][]string{"public.rate": {"amount", "at", "list"}},
		during: []string{
			`INSERT INTO rate VALUES (999.9, '2024-01-01', '{1}', 1)`, `UPDATE rate SET n = 2`,
			`UPDATE rate SET amount = 1 WHERE amount = 'NaN'`, `UPDATE rate SET amount = 'NaN', n = 3`, `DELETE FROM rate`,
		},
	},
	"a key that is stored out of line": {
		setup: `CREATE TABLE doc (k text, part int, n int, PRIMARY KEY (k, part)); ALTER TABLE doc ALTER k SET STORAGE EXTERNAL;
			INSERT INTO doc SELECT string_agg(md5(i::text), ''), 1, 1 FROM generate_series(1, 70) i`,
		keys:   map[string][]string{"public.doc": {"k", "part"}},
		during: []string{`UPDATE doc SET n = 2`, `UPDATE doc SET n = 3, part = 2`, `DELETE FROM doc`},
	},
	"large values that are not resent": {
		setup: `CREATE TABLE page (id int PRIMARY KEY, body text, octets bytea, n int); ALTER TABLE page ALTER body SET STORAGE EXTERNAL; ALTER TABLE page ALTER octets SET STORAGE EXTERNAL;
			INSERT INTO page VALUES (1, repeat('x', 5000), decode(repeat('00ff', 3000), 'hex'), 1)`,
		keys:   map[string][]string{"public.page": {"id"}},
		during: []string{`UPDATE page SET n = 2`, `UPDATE page SET body = repeat('y', 5000)`, `UPDATE page SET octets = NULL, n = 3`},
	},
	// O-35
	"a row that had no form, and an update that leaves its large value": {
		setup:  `CREATE TABLE item (id int PRIMARY KEY, a numeric(10,2), body text); ALTER TABLE item ALTER body SET STORAGE EXTERNAL`,
		keys:   map[string][]string{"public.item": {"id"}},
		during: []string{`INSERT INTO item VALUES (1, 'NaN', repeat('b', 9600))`, `UPDATE item SET a = 5`},
	},
	// The server marks rows by the identity of the root; the log holds what the
	// partition's own says.
	"partitions of another identity": {
		setup: `CREATE TABLE hour (id int, month int, note text, body text, PRIMARY KEY (id, month)) PARTITION BY LIST (month);
			CREATE TABLE hour_1 PARTITION OF hour FOR VALUES IN (1); CREATE TABLE hour_2 PARTITION OF hour FOR VALUES IN (2);
			ALTER TABLE hour_1 ALTER body SET STORAGE EXTERNAL; ALTER TABLE hour_2 ALTER body SET STORAGE EXTERNAL;
			ALTER TABLE hour REPLICA IDENTITY FULL; ALTER TABLE hour_1 REPLICA IDENTITY FULL`,
		keys: map[string][]string{"public.hour": {"id", "month"}},
		during: []string{
			`INSERT INTO hour VALUES (1, 1, 'a', repeat('x', 5000)), (2, 2, 'b', repeat('y', 5000))`,
			`UPDATE hour SET note = 'c'`, `UPDATE hour SET id = id + 10`, `DELETE FROM hour`,
		},
		also: func() (cs []history.Change) {
			add := func(op byte, old, new history.Row) {
				cs = append(cs, history.Change{Table: "public.hour", Op: op, Old: old, New: new})
			}
			row := func(id, month, note, letter string) history.Row {
				return history.Row{"id": id, "month": month, "note": note, "body": strings.Repeat(letter, 5000)}
			}
			a, b := row("1", "1", "a", "x"), row("2", "2", "b", "y")
			c, d := row("1", "1", "c", "x"), row("2", "2", "c", "y")
			e, f := row("11", "1", "c", "x"), row("12", "2", "c", "y")
			add('c', nil, a)
			add('c', nil, b)
			add('u', a, c)
			add('u', b, d)
			add('u', c, e)
			add('u', d, f)
			add('d', e, nil)
			add('d', f, nil)
			return cs
		}(),
	},
}

// Lost if this fails: rows that are wrong or missing in the raw topics, and
// nothing says so. Read back by goavro, held against test_decoding.
func TestRawTopicsHoldEveryRowAsItWas(t *testing.T) {
	for _, version := range []string{embedded.Postgres15, embedded.Postgres18} {
		t.Run(version, func(t *testing.T) {
			pg := testkit.NewPostgres(t, version)
			for name, s := range stories {
				t.Run(name, func(t *testing.T) { s.tell(t, pg) })
			}
		})
	}
}

// newEnv is a Kafka and a registry that run here.
func newEnv(t *testing.T) *pipeline.Env {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	o := obs.New(slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	cluster, err := kafka.New(kafka.Config{Brokers: fake.ListenAddrs()}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	schemas := srfake.New()
	t.Cleanup(schemas.Close)
	reg, err := avro.NewRegistry(schemas.URL())
	if err != nil {
		t.Fatal(err)
	}
	return &pipeline.Env{Kafka: cluster, Registry: reg, Obs: o, Instance: "test", Partitions: 3}
}

func (s story) tell(t *testing.T, pg *embedded.Postgres) {
	ctx := t.Context()
	d := newDB(t, pg)
	d.sql("ALTER DATABASE %s SET timezone TO 'UTC'; SET timezone TO 'UTC'", d.name)
	d.sql("%s", s.setup)
	d.sql("CREATE TABLE fence (id int PRIMARY KEY)")
	d.sql("SELECT pg_create_logical_replication_slot('%s_truth', 'test_decoding')", d.name)
	pool, err := pgxpool.New(ctx, pg.DSN(d.name))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	h := history.New(s.keys)
	if err := h.BaseOf(ctx, pool); err != nil {
		t.Fatal(err)
	}
	env := newEnv(t)
	src := d.source()
	run, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- ingest.Run(run, env, pipeline.IngestSpec{Name: "psa", Source: src})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	topics := []string{"psa.public.fence"}
	for name := range s.keys {
		topics = append(topics, "psa."+name)
	}
	// until waits for what is committed now, and gives what the topics hold.
	fence := 0
	until := func() *history.Seen {
		t.Helper()
		fence++
		d.sql("INSERT INTO fence VALUES (%d)", fence)
		ctx, cancel := context.WithTimeout(ctx, testkit.Patience)
		defer cancel()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			seen, err := history.ReadTopics(ctx, env.Kafka, env.Registry.SchemaByID, topics...)
			if err == nil && seen.Has("public.fence", fmt.Sprint(fence)) {
				return seen
			}
			select {
			case <-ctx.Done():
				t.Fatalf("the topics do not hold it: %v", err)
			case err := <-ended:
				ended <- nil
				t.Fatalf("the source ended: %v", err)
			case <-tick.C:
			}
		}
	}
	until()
	h.Loaded()
	for _, sql := range s.during {
		d.sql("%s", sql)
	}
	seen := until()
	if _, err := h.Witness(ctx, pool, d.name+"_truth"); err != nil {
		t.Fatal(err)
	}
	h.Commit(s.also...)
	if h.Changes() < len(s.during) {
		t.Fatalf("%d changes: the story proves nothing", h.Changes())
	}
	for _, f := range h.Check(seen, history.Options{}) {
		t.Error(f)
	}
	view := src.comp.View()
	if view.Parked > 0 {
		t.Errorf("%d rows are parked", view.Parked)
	}
}
