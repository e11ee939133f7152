package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallywire/tallywire/internal/demo/erp"
	"github.com/tallywire/tallywire/internal/demo/firm"
	"github.com/tallywire/tallywire/internal/demo/truth"
	"github.com/tallywire/tallywire/internal/embedded"
)

// keys are the key's columns of each captured table.
var keys = map[string][]string{
	"public.legal_entity": {"id"}, "public.customer": {"id"}, "public.project": {"id"},
	"public.task": {"project_id", "number"}, "public.employee": {"id"}, "public.cost_rate": {"id"},
	"public.time_entry": {"id"}, "public.invoice": {"id"}, "public.invoice_line": {"id"},
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CHAOS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("CHAOS_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// work runs the firm until the returned func is called, which waits for its end.
func (s *stack) work(rate float64) (end func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	g := firm.NewGenerator(s.psa.DSN("psa"), firm.Options{Rate: rate})
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("the firm: %v", err)
		}
		s.t.Logf("the firm made %+v", g.Stats())
	}
	s.t.Cleanup(end)
	return end
}

// settled waits until the warehouse and the ERP agree with the PSA.
func (s *stack) settled(bound time.Duration) {
	s.t.Helper()
	s.until(bound, "the warehouse agrees with the PSA", func(ctx context.Context) (bool, string) {
		r, err := truth.Compare(ctx, s.psaPool, s.warehouse, truth.Options{Keep: 5})
		if err != nil {
			return false, err.Error()
		}
		return r.Count == 0 && r.Rows > 0, fmt.Sprint(r.Differences)
	})
	s.until(bound, "the ERP holds what is approved, once", func(ctx context.Context) (bool, string) {
		bad, err := s.erpDifferences(ctx)
		if err != nil {
			return false, err.Error()
		}
		return len(bad) == 0, fmt.Sprint(bad)
	})
}

// erpDifferences names each approved entry from the go-live date on that the
// ERP's ledger lacks, holds twice or should not hold.
func (s *stack) erpDifferences(ctx context.Context) ([]string, error) {
	want := map[string]string{}
	rows, err := s.psaPool.Query(ctx, `select id::text, trim_scale(hours)::text from time_entry where status = 'approved' and work_date >= $1`, firm.GoLive)
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		var id, hours string
		if err := rows.Scan(&id, &hours); err != nil {
			return nil, err
		}
		want[id] = hours
	}
	if rows.Err() != nil {
		return nil, rows.Err()
	}
	sets, err := erp.ReadLedger(s.dir + "/erp")
	if err != nil {
		return nil, err
	}
	var bad []string
	say := func(format string, args ...any) {
		if len(bad) < 10 {
			bad = append(bad, fmt.Sprintf(format, args...))
		}
	}
	seen := map[string]int{}
	for _, r := range sets["timeRegistrationEntries"] {
		id := strings.TrimPrefix(r.Fields["externalReference"], "ps.time_entry/")
		seen[id]++
		hours, ok := want[id]
		switch {
		case !ok:
			say("entry %s should not be there", id)
		case seen[id] > 1:
			say("entry %s is there %d times", id, seen[id])
		case hours != r.Fields["quantity"]:
			say("entry %s has %s hours, should have %s", id, r.Fields["quantity"], hours)
		}
	}
	for id := range want {
		if seen[id] == 0 {
			say("entry %s is not there", id)
		}
	}
	return bad, nil
}

// exact compares every version of every row in the raw topics with the truth.
func (s *stack) exact() {
	s.t.Helper()
	ctx := s.t.Context()
	rows, err := s.psaPool.Query(ctx, `select data from pg_logical_slot_peek_changes('truth', null, null, 'include-xids', 'off')`)
	if err != nil {
		s.t.Fatal(err)
	}
	var lines []Version
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			s.t.Fatal(err)
		}
		v, ok, err := ParseTestDecoding(line)
		if err != nil {
			s.t.Fatal(err)
		}
		if ok {
			lines = append(lines, v)
		}
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	want := Expand(lines, keys)
	var topics []string
	for _, t := range firm.Tables {
		topics = append(topics, "psa.public."+t)
	}
	got, n, err := ReadRaw(ctx, s.cluster, s.registry, topics...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%d changes in the truth, %d records in the raw topics", len(lines), n)
	if len(lines) == 0 {
		s.t.Fatal("the truth is empty: the test proves nothing")
	}
	for _, d := range Compare(want, got) {
		s.t.Error(d)
	}
	if s.t.Failed() {
		s.t.Log(s.tail())
	}
}

// TestChaosKill: without fencing, one transaction for position and records,
// or read-back, a kill -9 at the wrong moment loses, doubles or reorders.
func TestChaosKill(t *testing.T) {
	kills := 30
	if n, err := strconv.Atoi(os.Getenv("CHAOS_KILLS")); err == nil {
		kills = n
	}
	rnd := seeded(t)
	s := newStack(t)
	s.start()
	s.settled(patience) // the initial load is compared by content only
	end := s.work(400)
	for i := range kills {
		s.pause(time.Duration(300+rnd.IntN(5700)) * time.Millisecond)
		s.kill()
		t.Logf("kill %d, after %s", i+1, s.reached())
		s.start()
	}
	end()
	s.settled(patience)
	s.exact()
}

// TestChaosAllAtOnce: the machine goes down. tallywire and Kafka are killed,
// Redis comes back empty; state is rebuilt from Kafka and nobody waits for ever.
func TestChaosAllAtOnce(t *testing.T) {
	s := newStack(t)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.start()
	s.settled(patience)
	end := s.work(200)
	s.pause(3 * time.Second)
	s.kill()
	must(s.kafka.Kill())
	must(s.redis.FlushAll(ctx))
	must(s.kafka.Restart(ctx))
	s.start()
	s.pause(3 * time.Second)
	end()
	s.settled(patience)
	s.exact()
}

// TestChaosLoad: a kill during the initial load starts it again on the same
// slot, and all converges.
func TestChaosLoad(t *testing.T) {
	rnd := seeded(t)
	s := newStack(t)
	end := s.work(200)
	for range 4 {
		s.start()
		s.pause(time.Duration(200+rnd.IntN(1500)) * time.Millisecond)
		s.kill()
	}
	s.start()
	end()
	s.settled(patience)
}

// TestChaosServers: Redis flushed, Kafka and Postgres restarted, the ERP
// throttling, losing answers and down: same end state, and the warehouse flows on
// while the ERP is away.
func TestChaosServers(t *testing.T) {
	s := newStack(t)
	ctx := t.Context()
	s.start()
	s.settled(patience)
	end := s.work(300)
	step := func(name string, err error) {
		t.Helper()
		t.Log(name)
		if err != nil {
			t.Fatal(name, err)
		}
		s.pause(3 * time.Second)
	}
	faults := func(name string, f erp.Faults) {
		t.Helper()
		s.erp.SetFaults(f)
		step(name, nil)
	}
	s.pause(2 * time.Second)
	step("Redis flushed", s.redis.FlushAll(ctx))
	faults("the ERP loses every fifth answer", erp.Faults{LosePercent: 20, Lose: "close"})
	step("Kafka restarted", s.kafka.Restart(ctx))
	faults("the ERP throttles", erp.Faults{Throttle: erp.Duration(5 * time.Second), RetryAfter: 1})
	step("Redis flushed again", s.redis.FlushAll(ctx))
	if err := s.psa.Down(ctx); err != nil {
		t.Fatal(err)
	}
	step("Postgres restarted", s.psa.Start(ctx))
	step("Kafka killed", s.kafka.Kill())
	step("Kafka back", s.kafka.Restart(ctx))

	down := 60 * time.Second
	if testing.Short() {
		down = 15 * time.Second
	}
	faults("the ERP is down", erp.Faults{Down: erp.Duration(down)})
	var before int64
	if err := s.warehouse.QueryRow(ctx, `select max(_offset) from ps.time_entry`).Scan(&before); err != nil {
		t.Fatal(err)
	}
	s.until(down, "the warehouse flows on while the ERP is down", func(ctx context.Context) (bool, string) {
		var now int64
		if err := s.warehouse.QueryRow(ctx, `select max(_offset) from ps.time_entry`).Scan(&now); err != nil {
			return false, err.Error()
		}
		return now > before, fmt.Sprintf("offset %d, was %d", now, before)
	})
	end()
	s.settled(down + patience)
	s.exact()
}

// TestChaosReset: a reset by Kafka's own tool is honoured; content is the same
// whether the tables were emptied or not, and the ERP gets nothing twice.
func TestChaosReset(t *testing.T) {
	s := newStack(t)
	ctx := t.Context()
	s.start()
	s.settled(patience)
	end := s.work(200)
	s.pause(5 * time.Second)
	end()
	s.settled(patience)
	reset := func(group string) {
		t.Helper()
		s.until(patience, "Kafka resets the group "+group, func(ctx context.Context) (bool, string) {
			out, err := s.kafka.Tool(ctx, embedded.ConsumerGroups, "--bootstrap-server", s.kafka.Addr(),
				"--group", group, "--reset-offsets", "--to-earliest", "--all-topics", "--execute")
			return err == nil, out
		})
	}
	posted := func() int {
		sets, err := erp.ReadLedger(s.dir + "/erp")
		if err != nil {
			t.Fatal(err)
		}
		return len(sets["timeRegistrationEntries"])
	}
	was := posted()

	s.stop()
	reset("tallywire.warehouse")
	reset("tallywire.erp")
	s.start()
	s.replayed(ctx)
	s.settled(patience)

	s.stop()
	reset("tallywire.warehouse")
	s.sql(s.warehouse, `truncate ps.customer, ps.project, ps.resource, ps.cost_rate, ps.time_entry, ps.invoice, ps.invoice_line, ps.time_entry_costed`)
	s.start()
	s.settled(patience)
	if now := posted(); now != was {
		t.Errorf("the ERP holds %d entries after the reset, %d before", now, was)
	}
}

// replayed waits until the sinks have read their topics to the end again.
func (s *stack) replayed(context.Context) {
	s.t.Helper()
	s.until(patience, "the groups are at the end", func(ctx context.Context) (bool, string) {
		lags, err := s.cluster.Admin().Lag(ctx, "tallywire.warehouse", "tallywire.erp")
		if err != nil {
			return false, err.Error()
		}
		var total int64
		for _, g := range lags {
			if g.Error() != nil {
				return false, g.Error().Error()
			}
			total += g.Lag.Total()
		}
		return total == 0, fmt.Sprintf("%d records behind", total)
	})
}

// reached says how far the sinks are, so that the log shows which parts were
// at work between two kills.
func (s *stack) reached() string {
	var entries, costed int64
	err := s.warehouse.QueryRow(s.t.Context(), `select (select sum(next_offset) from _tallywire.offsets where topic = 'ps.time_entry'), (select sum(next_offset) from _tallywire.offsets where topic = 'ps.time_entry_costed')`).Scan(&entries, &costed)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d entries and %d costed in the warehouse, %d in the ERP", entries, costed, len(s.erp.Records()["timeRegistrationEntries"]))
}

// pause lets time pass under load: the moment is what is random here.
func (s *stack) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
	}
}
