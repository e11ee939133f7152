package join_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/pipeline/pipelinetest/turns"
	"github.com/tallywire/tallywire/transforms/join"
)

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	goleak.VerifyTestMain(m)
}

func (w *world) entry(id int, resource, project string, day int64, hours int64) {
	k := strconv.Itoa(id)
	w.logs["ps.time_entry"].append(k, row{
		"time_entry_id": w.str(k), "resource_id": w.str(resource), "project_id": w.str(project), "task_number": w.str("1"),
		"work_date": change.DateValue(day), "hours": change.DecimalValue(hours, 2), "billable": change.BoolValue(true), "status": w.str("approved"),
		"created_at": change.TimestampTZValue(1), "updated_at": change.TimestampTZValue(2),
	})
}

func (w *world) project(id, customer, currency string) {
	w.logs["ps.project"].append(id, row{
		"project_id": w.str(id), "number": w.str("P" + id), "name": w.str("n"), "customer_id": w.str(customer), "legal_entity": w.str("DE"),
		"currency": w.str(currency), "status": w.str("open"), "billing_type": w.str("t"), "start_date": change.DateValue(0), "updated_at": change.TimestampTZValue(1),
	})
}

func (w *world) customer(id, name string) {
	w.logs["ps.customer"].append(id, row{
		"customer_id": w.str(id), "number": w.str(id), "name": w.str(name), "legal_entity": w.str("DE"), "active": change.BoolValue(true), "updated_at": change.TimestampTZValue(1),
	})
}

// rate: to < 0 is open.
func (w *world) rate(resource string, id int, from, to, rate int64, currency string) {
	k := resource + "/" + strconv.Itoa(id)
	r := row{"cost_rate_id": w.str(k), "resource_id": w.str(resource), "valid_from": change.DateValue(from), "rate": change.DecimalValue(rate, 4), "currency": w.str(currency), "updated_at": change.TimestampTZValue(1)}
	if to >= 0 {
		r["valid_to"] = change.DateValue(to)
	}
	w.logs["ps.cost_rate"].append(k, r)
}

func (w *world) delete(topic, key string) { w.logs[topic].append(key, nil) }

// naive computes the output from the latest rows, the plain way.
func (w *world) naive() map[string]row {
	text := func(v change.Value) string { return string(w.texts.AppendText(nil, v)) }
	entries, projects, customers, rates := w.logs["ps.time_entry"].latest(), w.logs["ps.project"].latest(), w.logs["ps.customer"].latest(), w.logs["ps.cost_rate"].latest()
	out := map[string]row{}
	for k, e := range entries {
		day := e["work_date"].Int()
		waits := ""
		wait := func(format string, args ...any) {
			if waits == "" {
				waits = fmt.Sprintf(format, args...)
			}
		}
		p := projects[text(e["project_id"])]
		if p == nil {
			wait("project %s", text(e["project_id"]))
		}
		var best row
		bestID, bestAgrees := 0, false
		for rk, x := range rates {
			if text(x["resource_id"]) != text(e["resource_id"]) || x["valid_from"].Int() > day {
				continue
			}
			if to, has := x["valid_to"]; has && day >= to.Int() {
				continue
			}
			id, _ := strconv.Atoi(rk[strings.LastIndexByte(rk, '/')+1:])
			agrees := p != nil && text(x["currency"]) == text(p["currency"])
			if best == nil || agrees && !bestAgrees || agrees == bestAgrees && (x["valid_from"].Int() > best["valid_from"].Int() || x["valid_from"].Int() == best["valid_from"].Int() && id > bestID) {
				best, bestID, bestAgrees = x, id, agrees
			}
		}
		switch {
		case best == nil:
			wait("cost_rate of resource %s on %s", text(e["resource_id"]), text(e["work_date"]))
		case !bestAgrees:
			wait("cost_rate %s, which does not agree: ref.currency == project.currency", text(e["resource_id"]))
			best = nil
		}
		var c row
		if p == nil {
			wait("customer that is not named")
		} else if c = customers[text(p["customer_id"])]; c == nil {
			wait("customer %s", text(p["customer_id"]))
		}
		r := row{join.KeyColumn: w.str(k)}
		if waits != "" {
			r[join.WaitsColumn] = w.str(waits)
		}
		for _, col := range w.logs[wide].table.Columns[2:] {
			from, name := e, col.Name
			if root, rest, dotted := strings.Cut(name, "."); dotted {
				from, name = map[string]row{"project": p, "customer": c, "cost_rate": best}[root], rest
			}
			r[col.Name] = from[name]
		}
		if !w.endIsRead {
			delete(r, "cost_rate.valid_to")
		}
		out[k] = r
	}
	return out
}

func (w *world) compare(t testing.TB) {
	t.Helper()
	out := w.logs[wide]
	emitted := out.latest()
	if !w.endIsRead { // the rule is given it, as what the lookups read, and looks away
		for k, r := range emitted {
			emitted[k] = maps.Clone(r)
			delete(emitted[k], "cost_rate.valid_to")
		}
	}
	if d := cmp.Diff(strings.Split(w.show(w.naive(), out.table), "\n"), strings.Split(w.show(emitted, out.table), "\n")); d != "" {
		t.Errorf("the wide table is not what the rows say (- computed, + emitted):\n%s", d)
	}
}

// mutate changes something, anything.
func (w *world) mutate() {
	n := func(k int) int { return w.rng.IntN(k) }
	id := func(k int) string { return strconv.Itoa(1 + n(k)) }
	currency := func() string {
		if n(8) == 0 {
			return "USD"
		}
		return "EUR"
	}
	switch n(12) {
	case 0, 1, 2, 3:
		w.entry(1+n(12), id(3), id(4), int64(n(10)), int64(25*(1+n(40))))
	case 4:
		w.delete("ps.time_entry", id(12))
	case 5, 6:
		w.project(id(4), id(3), currency())
	case 7:
		w.customer(id(3), "c"+id(100))
	case 8, 9:
		k := id(3) + "/" + strconv.Itoa(8+n(4))
		if r := w.logs["ps.cost_rate"].latest()[k]; r != nil && n(2) == 0 { // its end alone changes
			r = maps.Clone(r)
			if delete(r, "valid_to"); n(3) > 0 {
				r["valid_to"] = change.DateValue(int64(n(12)))
			}
			w.logs["ps.cost_rate"].append(k, r)
			return
		}
		from := int64(n(10))
		to := int64(-1)
		if n(2) == 0 {
			to = from + int64(n(6))
		}
		w.rate(id(3), 8+n(4), from, to, int64(1+n(900000)), currency())
	case 10:
		if n(2) == 0 {
			w.delete("ps.project", id(4))
		} else {
			w.delete("ps.customer", id(3))
		}
	case 11:
		w.delete("ps.cost_rate", id(3)+"/"+strconv.Itoa(8+n(4)))
	}
}

func miniRedis(t testing.TB) string {
	e, err := embedded.StartMiniRedis("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e.Addr()
}

// chaos runs one seed to its end and compares.
func chaos(t testing.TB, addr string, seed uint64, flushPerMille int) *world {
	ctx := t.Context()
	w := newWorld(t, addr, seed, costing())
	if err := w.rdb.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if seed%2 == 1 {
		w.most = 1 // what is left of a round of reading is left for later
		w.right.stage = w.right.make()
	}
	w.sched.Flush = func() {
		if err := w.rdb.FlushAll(context.Background()).Err(); err != nil {
			t.Error(err)
		}
	}
	for range 60 {
		for range w.rng.IntN(4) {
			w.mutate()
		}
		w.run(ctx, 6, flushPerMille, false)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	w.drain(ctx)
	w.compare(t)
	if t.Failed() {
		t.Fatalf("seed %d: left %v, right %v", seed, w.left.errs, w.right.errs)
	}
	return w
}

// The main one. Whatever order left and right rows arrive in, wherever batches
// are cut, transactions aborted, processes restarted, the two sides'
// conversations with Redis interleaved, and Redis lost: the end is what the
// rows say. If it failed, a margin would be wrong until somebody touched the
// time entry.
func TestAnyOrderGivesTheSameTable(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	for _, flush := range []int{0, 20} {
		t.Run(fmt.Sprintf("embedded, %d flushes per 1000 round trips", flush), func(t *testing.T) {
			addr := miniRedis(t)
			unknown, lost := 0, 0
			for seed := range seeds {
				w := chaos(t, addr, seed, flush)
				unknown += w.left.errs["TW-STATE-UNKNOWN"] + w.right.errs["TW-STATE-UNKNOWN"]
				lost += w.left.errs["TW-STATE-LOST"] + w.right.errs["TW-STATE-LOST"]
			}
			t.Logf("unknown %d, lost %d", unknown, lost)
			if flush > 0 && (unknown == 0 || lost == 0) {
				t.Errorf("losses were never met: unknown %d, lost %d", unknown, lost)
			}
		})
	}
	t.Run("redis-server", func(t *testing.T) {
		addr := testkit.NewRedis(t).Addr
		for seed := range uint64(15) {
			chaos(t, addr, 1000+seed, 20)
		}
	})
}

// Each order in which one step of the left and one of the right can talk to
// Redis, with up to three turns: whoever comes first and is cut off by the other
// after any of its round trips. If it failed, an entry would say for ever that it
// waits for what is there, or keep a cost that has changed.
func TestEachOrderOfTwoSteps(t *testing.T) {
	addr := miniRedis(t)
	for name, c := range map[string]struct{ before, left, right func(*world) }{
		"what it waits for comes": {
			before: func(w *world) { w.customer("1", "c"); w.rate("1", 8, 0, -1, 100, "EUR") },
			left:   func(w *world) { w.entry(1, "1", "1", 3, 100) },
			right:  func(w *world) { w.project("1", "1", "EUR") },
		},
		"its rate comes": {
			before: func(w *world) { w.customer("1", "c"); w.project("1", "1", "EUR") },
			left:   func(w *world) { w.entry(1, "1", "1", 3, 100) },
			right:  func(w *world) { w.rate("1", 8, 0, -1, 100, "EUR") },
		},
		"it moves to a project whose customer changes": {
			before: func(w *world) {
				w.customer("1", "c")
				w.customer("2", "d")
				w.project("1", "1", "EUR")
				w.project("2", "2", "EUR")
				w.rate("1", 8, 0, -1, 100, "EUR")
				w.entry(1, "1", "1", 3, 100)
			},
			left:  func(w *world) { w.entry(1, "1", "2", 3, 100) },
			right: func(w *world) { w.customer("2", "e") },
		},
		"its project goes": {
			before: func(w *world) {
				w.customer("1", "c")
				w.project("1", "1", "EUR")
				w.rate("1", 8, 0, -1, 100, "EUR")
			},
			left:  func(w *world) { w.entry(1, "1", "1", 3, 100) },
			right: func(w *world) { w.delete("ps.project", "1") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && name != "what it waits for comes" {
				return // the slow detectors see the same code
			}
			orders := 0
			for first := range 2 {
				trips := [2]int{1, 1} // of each step, learnt from the orders before
				for a := 0; a <= trips[first]; a++ {
					for b := 0; b <= trips[1-first]; b++ {
						orders++
						w := newWorld(t, addr, 1, costing())
						if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
							t.Fatal(err)
						}
						w.sched.Flush = func() {}
						c.before(w)
						w.drain(t.Context())
						c.left(w)
						c.right(w)
						var took [2]int
						n := 0
						w.sched.Choose = func(waiting []*turns.Actor) int {
							want := first
							if n >= a && n < a+b {
								want = 1 - first
							}
							n++
							i := max(0, slices.IndexFunc(waiting, func(a *turns.Actor) bool { return a.N == want }))
							took[waiting[i].N]++
							return i
						}
						w.run(t.Context(), 1000, 0, true)
						w.sched.Choose = nil
						trips = [2]int{max(trips[0], took[0]), max(trips[1], took[1])}
						w.drain(t.Context())
						w.compare(t)
						if t.Failed() {
							t.Fatalf("%d round trips of the %s, then %d of the other, then the rest", a, []string{"left", "right"}[first], b)
						}
					}
				}
			}
			t.Logf("%d orders", orders)
		})
	}
}

// settle runs both groups until nothing is left to do.
func settled(t *testing.T, w *world) map[string]row {
	t.Helper()
	w.drain(t.Context())
	w.compare(t)
	return w.logs[wide].latest()
}

func calm(t *testing.T) *world {
	w := newWorld(t, miniRedis(t), 1, costing())
	w.sched.Flush = func() {}
	return w
}

func (w *world) field(t *testing.T, table map[string]row, key, field string) string {
	t.Helper()
	if table[key] == nil {
		t.Fatalf("no row %s", key)
	}
	return string(w.texts.AppendText(nil, table[key][field]))
}

// The story of one time entry: it waits for each thing that it lacks, and follows every
// later change of them.
func TestStoryOfAnEntry(t *testing.T) {
	w := calm(t)
	want := func(rate, waiting string) {
		t.Helper()
		got := settled(t, w)
		if r, wf := w.field(t, got, "1", "cost_rate.rate"), w.field(t, got, "1", join.WaitsColumn); r != rate || wf != waiting {
			t.Fatalf("rate %q, waiting for %q; want %q, %q", r, wf, rate, waiting)
		}
	}
	w.entry(1, "12", "17", 20514, 750)
	want("", "project 17")
	w.project("17", "4", "EUR") // before its customer
	want("", "cost_rate of resource 12 on 2026-03-02")
	w.rate("12", 8, 20000, -1, 600000, "EUR")
	want("60.0000", "customer 4")
	w.customer("4", "Northwind")
	want("60.0000", "")
	w.rate("12", 9, 20514, -1, 700000, "EUR") // from that very day on
	want("70.0000", "")
	w.rate("12", 10, 20514, -1, 710000, "EUR") // the same day: the higher id, 10 after 9
	want("71.0000", "")
	w.rate("12", 10, 20515, -1, 710000, "EUR") // its range shrinks
	want("70.0000", "")
	w.rate("12", 9, 20510, 20514, 700000, "EUR") // ends on that day, exclusive
	want("60.0000", "")
	w.rate("12", 8, 20000, -1, 650000, "EUR") // retroactive
	want("65.0000", "")
	w.rate("12", 8, 20000, -1, 650000, "USD")
	want("", "cost_rate 12, which does not agree: ref.currency == project.currency")
	w.project("17", "4", "USD")
	want("65.0000", "")
	w.delete("ps.cost_rate", "12/8")
	want("", "cost_rate of resource 12 on 2026-03-02") // removed: it waits again
	w.rate("12", 8, 20000, -1, 600000, "USD")
	want("60.0000", "")
	// The rate moves to another person: mapping sends a delete and a new key.
	w.delete("ps.cost_rate", "12/8")
	w.rate("13", 8, 20000, -1, 610000, "USD")
	want("", "cost_rate of resource 12 on 2026-03-02")
	w.entry(1, "13", "17", 20514, 800) // and the entry follows
	want("61.0000", "")
	w.project("17", "5", "USD")
	want("61.0000", "customer 5")
	w.customer("5", "Contoso")
	want("61.0000", "")
	w.delete("ps.customer", "5")
	want("61.0000", "customer 5")
	w.delete("ps.time_entry", "1")
	if got := settled(t, w); got["1"] != nil {
		t.Fatal("a deleted entry is still there")
	}
}

// A customer's rename reaches all entries, through projects, over more pages
// than are read at once.
func TestManyDependents(t *testing.T) {
	w := calm(t)
	w.customer("4", "old")
	for p := range 40 {
		w.project(strconv.Itoa(p+1), "4", "EUR")
	}
	w.rate("12", 8, 0, -1, 600000, "EUR")
	for i := range 2500 {
		w.entry(i+1, "12", strconv.Itoa(1+i%40), 5, 100)
	}
	settled(t, w)
	w.customer("4", "new")
	w.rate("12", 8, 0, -1, 700000, "EUR")
	got := settled(t, w)
	if n := w.field(t, got, "2500", "customer.name"); n != "new" {
		t.Fatalf("customer %q", n)
	}
}

// Only a flush and an idle system: nothing arrives on the left any more, but
// what it keeps must come back, or the right side could never be told.
func TestLossWhileIdle(t *testing.T) {
	w := calm(t)
	w.customer("4", "c")
	w.project("17", "4", "EUR")
	w.entry(1, "12", "17", 5, 100)
	settled(t, w)
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.rate("12", 8, 0, -1, 600000, "EUR")
	got := settled(t, w)
	if r := w.field(t, got, "1", "cost_rate.rate"); r != "60.0000" {
		t.Fatalf("rate %q", r)
	}
}

// Slow for ever if this fails: each lookup of a rate fetches all that there ever
// were.
func TestReplacedRatesLeaveNothing(t *testing.T) {
	w := begin(t, miniRedis(t))
	w.customer("1", "c1")
	w.project("1", "1", "EUR")
	for night := range 5 {
		for id := range 20 {
			if night > 0 {
				w.delete("ps.cost_rate", fmt.Sprintf("1/%d", 20*(night-1)+id))
			}
			w.rate("1", 20*night+id, int64(id), int64(id+1), 600000, "EUR")
		}
		w.apply(t, w.right)
		w.apply(t, w.right) // more than one batch
	}
	index, err := w.rdb.Keys(t.Context(), "*:ix:resource_id:1").Result()
	if err != nil || len(index) != 1 {
		t.Fatal(index, err)
	}
	if n, err := w.rdb.ZCard(t.Context(), index[0]).Result(); n != 20 || err != nil {
		t.Errorf("a lookup fetches %d of 20 rates: %v", n, err)
	}
	w.entry(1, "1", "1", 7, 100)
	w.apply(t, w.left)
	w.compare(t)
}

// Waits for ever if this fails: somebody with a rate in each of two currencies,
// on the projects of the one whose rate is older.
func TestRateThatAgrees(t *testing.T) {
	w := calm(t)
	want := func(id, rate, waiting string) {
		t.Helper()
		got := settled(t, w)
		if r, wf := w.field(t, got, id, "cost_rate.cost_rate_id"), w.field(t, got, id, join.WaitsColumn); r != rate || wf != waiting {
			t.Errorf("entry %s: rate %q, waiting for %q; want %q, %q", id, r, wf, rate, waiting)
		}
	}
	w.customer("1", "c1")
	w.project("1", "1", "GBP")
	w.project("2", "1", "EUR")
	w.rate("1", 1, 0, -1, 500000, "GBP")
	w.rate("1", 2, 5, -1, 600000, "EUR")
	w.entry(1, "1", "1", 7, 100)
	w.entry(2, "1", "2", 7, 100)
	w.entry(3, "1", "2", 3, 100)
	w.entry(4, "1", "3", 7, 100)
	want("1", "1/1", "")
	want("2", "1/2", "")
	want("3", "", "cost_rate 1, which does not agree: ref.currency == project.currency")
	want("4", "", "project 3")
	w.project("3", "1", "GBP") // its currency decides when it comes
	want("4", "1/1", "")
	w.rate("1", 3, 6, -1, 700000, "GBP")
	want("1", "1/3", "")
	w.project("1", "1", "EUR")
	want("1", "1/2", "")
	w.rate("1", 2, 5, 6, 600000, "EUR") // ended before that day
	want("1", "", "cost_rate 1, which does not agree: ref.currency == project.currency")
}
