// Backlog: the table, and the changes that wait behind a slot.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	fullRows = 2_000_000 // of backlog A
	perTx    = 1_000     // rows in a transaction of backlog A
)

const (
	table       = "public.time_entry"
	publication = "peers"
)

// schema makes the table, and the two kinds of backlog. The slot is made before
// its backlog, and the two backlogs one after the other: a slot reads the WAL
// of all databases, so that nothing but its own rows may lie between its
// position and its last row. A note is one of 4 million pairs of phrases: text
// that compresses like text.
const schema = `
create table time_entry (id bigint primary key, employee_id int, project_id int, task_id int, work_date date, minutes int,
  bill_rate numeric(12,4), cost_rate numeric(12,4), billable boolean, status text, note text, created_at timestamptz, updated_at timestamptz);
create publication peers for table time_entry;

create function phrases() returns text[] language sql as $$
  select array_agg(left(p, 20 + n % 20) order by n)
  from (select n, (select string_agg((array['review','with','customer','draft','of','the','interim','report','call','about','scope','travel','to','site','workshop','on',
    'migration','testing','invoice','preparation','status','meeting','and','analysis','for','design','second','round','notes','team','open','points'])
    [1 + (hashint8(n * 100 + w) & 31)], ' ' order by w) from generate_series(1, 8) w) p
  from generate_series(0, 2047) n) s $$;

create function entry(i bigint, phrase text[]) returns time_entry language sql as $$
  select row(i, (hashint8(i) & 1023), (hashint8(i + 1) & 4095), (hashint8(i + 2) & 16383), date '2024-01-01' + (hashint8(i + 3) & 511), 15 * (1 + (hashint8(i + 4) & 31)),
    (8000 + (hashint8(i + 5) & 8191)) / 100.0, (4000 + (hashint8(i + 6) & 4095)) / 100.0, (hashint8(i + 7) & 3) > 0, (array['draft','submitted','approved','invoiced'])[1 + (hashint8(i + 8) & 3)],
    phrase[1 + (hashint8(i + 9) & 2047)] || ' ' || phrase[1 + (hashint8(i + 10) & 2047)], timestamptz '2026-01-05 08:00Z' + i * interval '1 ms', timestamptz '2026-01-05 08:00Z' + i * interval '1 ms')::time_entry $$;

create procedure bulk(total bigint, per int) language plpgsql as $$
declare phrase text[] := phrases(); n bigint := 0;
begin
  while n < total loop
    insert into time_entry select (entry(i, phrase)).* from generate_series(n + 1, n + per) i;
    commit;
    n := n + per;
  end loop;
end $$;

-- Of ten changes six are inserts, three updates of some row that is there, one
-- is a delete of the oldest; transactions of 1, 2 and 3 in turns.
create procedure oltp(total bigint) language plpgsql as $$
declare phrase text[] := phrases(); ops text[] := '{i,i,u,i,d,i,u,i,u,i}'; newest bigint := 0; oldest bigint := 1; size int := 1; filled int := 0; i bigint; e time_entry;
begin
  for n in 0 .. total - 1 loop
    case ops[1 + n % 10]
    when 'i' then
      newest := newest + 1;
      e := entry(newest, phrase);
      insert into time_entry values (e.*);
    when 'u' then
      i := oldest + ((hashint8(n)::bigint & 2147483647) % (newest - oldest + 1));
      update time_entry set minutes = minutes + 15, status = 'submitted', updated_at = updated_at + interval '1 minute' where id = i;
    else
      delete from time_entry where id = oldest;
      oldest := oldest + 1;
    end case;
    filled := filled + 1;
    if filled = size then
      commit;
      filled := 0;
      size := 1 + size % 3;
    end if;
  end loop;
  commit;
end $$;
`

// backlog is what waits behind a base slot; each run reads a copy of that slot.
type backlog struct {
	Name     string // of its database, and of its base slot
	Changes  int64
	Records  int64  // that it must give in Kafka: a delete gives a tombstone, too
	End      string // an LSN after the last commit: a message of pg_logical_emit_message is there
	RowBytes float64
}

// backlogs makes both, or finds them in the state folder.
func (w *world) backlogs(ctx context.Context) error {
	file := filepath.Join(w.state, "backlogs.json")
	if b, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(b, &w.logs); err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		return w.checkBacklogs(ctx)
	}
	w.logs = map[string]*backlog{}
	for _, name := range []string{"base_a", "base_b"} {
		b, err := w.makeBacklog(ctx, name)
		if err != nil {
			return fmt.Errorf("making the backlog %s: %w", name, err)
		}
		w.logs[name] = b
	}
	if err := w.pg.Exec(ctx, "postgres", "checkpoint"); err != nil {
		return err
	}
	b, err := json.Marshal(w.logs)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

func (w *world) makeBacklog(ctx context.Context, name string) (b *backlog, err error) {
	began := time.Now()
	// What is there is half of one, whose making was interrupted.
	drop := fmt.Sprintf(`select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = '%s'`, name)
	if err := errors.Join(w.pg.Exec(ctx, "postgres", drop), w.pg.Exec(ctx, "postgres", "drop database if exists "+name+" with (force)"), w.pg.CreateDatabase(ctx, name)); err != nil {
		return nil, err
	}
	q, err := pgx.Connect(ctx, w.pg.DSN(name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close(context.WithoutCancel(ctx))) }()
	if _, err := q.Exec(ctx, schema, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, err
	}
	if _, err := q.Exec(ctx, `select pg_create_logical_replication_slot($1, 'pgoutput')`, name); err != nil {
		return nil, err
	}
	b = &backlog{Name: name}
	fill := fmt.Sprintf("call bulk(%d, %d)", w.o.rows, perTx)
	b.Changes, b.Records = w.o.rows, w.o.rows
	if name == "base_b" {
		b.Changes = w.o.rows / 2
		b.Records = b.Changes + b.Changes/10
		fill = fmt.Sprintf("call oltp(%d)", b.Changes)
	}
	if _, err := q.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return nil, err
	}
	if _, err := q.Exec(ctx, fill, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, err
	}
	err = q.QueryRow(ctx, `select pg_logical_emit_message(false, 'peers', 'the end')::text, avg(pg_column_size(t))::float8 from (select * from time_entry limit 10000) t`).Scan(&b.End, &b.RowBytes)
	if err != nil {
		return nil, err
	}
	// Hint bits and visibility are set here, not in somebody's measurement.
	if _, err := q.Exec(ctx, "vacuum analyze time_entry"); err != nil {
		return nil, err
	}
	w.say("backlog %s: %d changes, rows of %.0f octets, made in %.0f s", name, b.Changes, b.RowBytes, time.Since(began).Seconds())
	return b, nil
}

// checkBacklogs drops copies that a killed run left behind, and makes sure that
// the base slots can still be copied.
func (w *world) checkBacklogs(ctx context.Context) error {
	q, err := pgx.Connect(ctx, w.pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer q.Close(context.WithoutCancel(ctx))
	if _, err := q.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name not like 'base%' and not active`); err != nil {
		return fmt.Errorf("dropping slots of an earlier run: %w", err)
	}
	for name := range w.logs {
		var there bool
		if err := q.QueryRow(ctx, `select exists (select from pg_replication_slots where slot_name = $1 and wal_status <> 'lost')`, name).Scan(&there); err != nil {
			return err
		}
		if !there {
			return fmt.Errorf("%s holds no slot %s any more: delete the folder, it is made again", w.state, name)
		}
	}
	return nil
}

// copySlot gives a contender a slot of its own with the backlog behind it. A
// slot is copied into the database that the session is in.
func (w *world) copySlot(ctx context.Context, b *backlog, name string) error {
	if err := w.pg.Exec(ctx, b.Name, fmt.Sprintf(`select pg_copy_logical_replication_slot('%s', '%s')`, b.Name, name)); err != nil {
		return fmt.Errorf("copying slot %s: %w", b.Name, err)
	}
	return nil
}

// dropSlot drops it as soon as its reader has let go of it.
func (w *world) dropSlot(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := w.pg.Exec(ctx, "postgres", fmt.Sprintf(`select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '%s'`, name))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("dropping slot %s: %w", name, err)
		case <-tick.C:
		}
	}
}
