package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const bookingContract = `{"type": "record", "name": "BookingCost", "namespace": "ps", "doc": "What a booking costs.", "topic": "ps.booking_cost", "key": ["booking_id"], "owner": "finance",
  "fields": [
    {"name": "booking_id", "type": "string", "doc": "The booking.", "owner": "psa", "sensitivity": "internal"},
    {"name": "project", "type": ["null", "string"], "default": null, "doc": "Number of the project above its work.", "owner": "psa", "sensitivity": "internal"},
    {"name": "customer", "type": ["null", "string"], "default": null, "doc": "Name of the project's customer.", "owner": "psa", "sensitivity": "internal"},
    {"name": "cost", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 22, "scale": 10}], "default": null, "doc": "Hours by the rate in force.", "owner": "finance", "sensitivity": "restricted"},
    {"name": "waiting_for", "type": ["null", "string"], "default": null, "doc": "What is missing.", "owner": "psa", "sensitivity": "internal"}]}`

// TestChaosLookups: bookings name works of a tree, whose topmost rows that have one
// name a project; rates are of people and days. All of it changes while three
// processes come, go and are killed, and Redis is emptied. In the end the warehouse has
// what SQL over the tables says.
func TestChaosLookups(t *testing.T) { chaosProcesses(t, bookingShop, 2) }

var bookingShop = shop{
	tables: "public.booking, public.work, public.project, public.customer, public.cost_rate",
	keys:   map[string][]string{"public.booking": {"id"}, "public.work": {"id"}, "public.project": {"id"}, "public.customer": {"id"}, "public.cost_rate": {"id"}},
	make: []string{
		`create table work (id int primary key, parent_id int, project_id text)`,
		`create table booking (id int primary key, work_ref text, employee_id text, day date not null, hours float8 not null, deleted bool not null default false)`,
		`update cost_rate set currency = 'EUR'`,
		`update project set currency = case when id % 5 = 0 then 'USD' else 'EUR' end`,
		`insert into work select n, case when n > 5 then 1 + n % 5 end, case when n <= 5 then (select id::text from project order by id offset n limit 1) end from generate_series(1, 20) n`,
		`insert into booking select n, 'task,' || 1 + n % 20, (select id::text from employee order by id offset n % 8 limit 1), (select max(valid_from) from cost_rate) + n % 30, n / 8.0 from generate_series(1, 200) n`,
	},
	contract: bookingContract,
	transforms: `
      - from: psa.public.booking
        to: ps.booking_cost
        where: row.deleted == false
        key: "b-{id}"
        waiting_for: waiting_for
        lookups:
          work: {topic: psa.public.work, on: 'after(row.work_ref, "task,")', climb: parent_id, until: ref.project_id != null}
          project: {topic: psa.public.project, on: work.project_id}
          customer: {topic: psa.public.customer, on: project.customer_id}
          rate:
            topic: psa.public.cost_rate
            on: row.employee_id
            by: employee_id
            in_force: {from: valid_from, to: valid_to, at: day}
            agree: ref.currency == project.currency
        fields:
          project: project.number
          customer: customer.name
          cost: 'round(decimal(row.hours), 6, "half_even") * rate.rate'`,
	change: book,
	compared: []compared{{
		"ps.booking_cost", `with recursive up as (
	select b.id, w.parent_id, w.project_id, 1 as n from booking b join work w on w.id::text = substring(b.work_ref from 'task,(.*)')
	union all select u.id, w.parent_id, w.project_id, n + 1 from up u join work w on w.id = u.parent_id where u.project_id is null and n < 100)
select 'b-' || b.id, concat_ws('|', coalesce(p.number, '-'), coalesce(c.name, '-'), coalesce(trim_scale(b.hours::numeric * r.rate)::text, '-'),
	up.id is null or p.id is null or c.id is null or r.rate is null)
from booking b left join up on up.id = b.id and up.project_id is not null
left join project p on p.id::text = up.project_id left join customer c on c.id = p.customer_id
left join lateral (select rate from cost_rate r where r.employee_id::text = b.employee_id and r.valid_from <= b.day and (r.valid_to is null or r.valid_to > b.day)
	and r.currency = p.currency order by valid_from desc, id desc limit 1) r on true
where not b.deleted`,
		`select booking_id, concat_ws('|', coalesce(project, '-'), coalesce(customer, '-'), coalesce(trim_scale(cost)::text, '-'), waiting_for is not null) from ps.booking_cost`,
	}},
	emitted: "ps.booking_cost",
	impossible: `with recursive emitted as (select * from jsonb_to_recordset($1::text::jsonb) as e(booking_id text, project text, customer text, cost numeric, waiting_for text)),
up as (
	select id as work, id, parent_id, project_id from versions.work
	union select u.work, w.id, w.parent_id, w.project_id from up u join versions.work w on w.id = u.parent_id where u.project_id is null)
select e::text from emitted e where not exists (
	select from versions.booking b where 'b-' || b.id = e.booking_id and not b.deleted and (e.waiting_for is not null or exists (
		select from up
		join versions.project p on p.id::text = up.project_id and p.number = e.project
		join versions.customer c on c.id = p.customer_id and c.name = e.customer
		join versions.cost_rate r on r.employee_id::text = b.employee_id and r.valid_from <= b.day and (r.valid_to is null or r.valid_to > b.day) and r.currency = p.currency
		where up.work::text = substring(b.work_ref from 'task,(.*)') and b.hours::numeric * r.rate = e.cost)))`,
	seen: `select count(cost) > 10 and count(distinct project) > 1 from ps.booking_cost`,
}

// book is one transaction: a booking comes, changes or goes, a work gets another
// parent or project, a rate changes, moves to another person or goes.
func book(ctx context.Context, t *testing.T, pool *pgxpool.Pool, rng *rand.Rand) {
	n := func(k int) int { return 1 + rng.IntN(k) }
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		exec := func(sql string, args ...any) {
			if err == nil {
				_, err = tx.Exec(ctx, sql, args...)
			}
		}
		for range n(3) {
			switch rng.IntN(10) {
			case 0, 1, 2:
				exec(`insert into booking values ($1, $2, (select id::text from employee order by id offset $3 limit 1), (select max(valid_from) from cost_rate) - 20 + $4::int, $5)
					on conflict (id) do update set work_ref = excluded.work_ref, employee_id = excluded.employee_id, day = excluded.day, hours = excluded.hours, deleted = not booking.deleted`,
					n(250), fmt.Sprintf("%s,%d", []string{"task", "task", "task", "task", "task", "task", "task", "bug"}[rng.IntN(8)], n(21)), rng.IntN(8), n(60), float64(n(80))/8)
			case 3:
				exec("delete from booking where id = $1", n(250))
			case 4, 5:
				child := n(20)
				parent := n(child) // of which the first has none above it, in the end
				if rng.IntN(8) == 0 {
					parent = n(20) // perhaps in a circle
				}
				exec("insert into work values ($1, $2) on conflict (id) do update set parent_id = excluded.parent_id", child, parent)
			case 6:
				exec("update work set project_id = case when $3 then (select id::text from project order by id offset $2 limit 1) end where id = $1", n(20), n(10), rng.IntN(4) > 0)
			case 7:
				exec("delete from work where id = $1 and $2", n(20), rng.IntN(8) == 0)
			case 8:
				exec("update cost_rate set rate = rate + 1, updated_at = now() where id = (select id from cost_rate order by id offset $1 limit 1)", rng.IntN(40))
			default:
				exec("update cost_rate set employee_id = (select id from employee order by id offset $2 limit 1), updated_at = now() where id = (select id from cost_rate order by id offset $1 limit 1)", rng.IntN(40), rng.IntN(8))
			}
		}
		return err
	})
	if err != nil && ctx.Err() == nil && !strings.Contains(err.Error(), "deadlock") {
		t.Error(err)
	}
}
