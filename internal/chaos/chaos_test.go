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
	"github.com/tallywire/tallywire/pipeline/pipelinetest/history"
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

// work runs the firm, and the sessions of the writers beside it, until the
// returned func is called, which waits for their end.
func (s *stack) work(rate float64) (end func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	g := firm.NewGenerator(s.psa.DSN("psa"), firm.Options{Rate: rate})
	done := make(chan error, 2)
	go func() { done <- g.Run(ctx) }()
	go func() { done <- s.writers.Run(ctx) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				s.t.Errorf("who writes: %v", err)
			}
		}
		s.t.Logf("the firm made %+v", g.Stats())
		n, unknown := s.writers.Committed()
		s.t.Logf("the writers committed %d transactions, %d after they had asked whether they had; %d changes", n, unknown, s.writers.History().Changes())
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
		bad, err := s.erpFindings(ctx)
		if err != nil {
			return false, err.Error()
		}
		return len(bad) == 0, fmt.Sprint(bad[:min(len(bad), 10)])
	})
}

const timeEntry = "public.time_entry"

// erpFindings holds the ERP's ledger against the approved entries from the
// go-live date on.
func (s *stack) erpFindings(ctx context.Context) ([]history.Finding, error) {
	if _, err := s.firm.Witness(ctx, s.psaPool, "truth"); err != nil {
		return nil, err
	}
	sets, err := erp.ReadLedger(s.dir + "/erp")
	if err != nil {
		return nil, err
	}
	var rows []history.SinkRow
	for _, r := range sets["timeRegistrationEntries"] {
		rows = append(rows, history.SinkRow{
			Key: strings.TrimPrefix(r.Fields["externalReference"], "ps.time_entry/"),
			Row: history.Row{"quantity": r.Fields["quantity"]},
		})
	}
	live := firm.GoLive.Format("2006-01-02")
	return s.firm.CheckSink(timeEntry, rows, func(r history.Row) (string, history.Row, bool) {
		return r["id"], history.Row{"quantity": trimmed(r["hours"])}, r["status"] == "approved" && r["work_date"] >= live
	}), nil
}

// trimmed is a number without the zeros at the end of its fraction.
func trimmed(number string) string {
	if !strings.Contains(number, ".") {
		return number
	}
	return strings.TrimSuffix(strings.TrimRight(number, "0"), ".")
}

// loaded says that the initial load is over: what is committed from now on must
// arrive as changes.
func (s *stack) loaded() {
	s.t.Helper()
	if _, err := s.firm.Witness(s.t.Context(), s.psaPool, "truth"); err != nil {
		s.t.Fatal(err)
	}
	s.firm.Loaded()
	s.writers.History().Loaded()
}

// exact holds every change of every row in the raw topics, and what the sinks
// hold of the time entries, against what was committed. Nobody writes any more,
// and all has settled.
func (s *stack) exact(o history.Options) {
	s.t.Helper()
	ctx := s.t.Context()
	if _, err := s.firm.Witness(ctx, s.psaPool, "truth"); err != nil {
		s.t.Fatal(err)
	}
	// The last of the writers' changes may still be on their way.
	if err := s.psa.Exec(ctx, "psa", "insert into history_item values (0, 'the last')"); err != nil {
		s.t.Fatal(err)
	}
	s.writers.History().Commit(history.Change{Table: "public.history_item", Op: 'c', New: history.Row{
		"id": "0", "mark": "the last", "note": history.Null, "body": history.Null, "amount": history.Null, "ok": history.Null, "at": history.Null,
	}})
	findings := append(s.rawFindings(s.firm, o), s.rawFindings(s.writers.History(), o)...)
	rows, err := history.ReadTable(ctx, s.warehouse, `select time_entry_id, resource_id, project_id, work_date, trim_scale(hours) as hours, status, note from ps.time_entry`)
	if err != nil {
		s.t.Fatal(err)
	}
	var entries []history.SinkRow
	for _, r := range rows {
		entries = append(entries, history.SinkRow{Key: r["time_entry_id"], Row: r})
	}
	findings = append(findings, s.firm.CheckSink(timeEntry, entries, func(r history.Row) (string, history.Row, bool) {
		return r["id"], history.Row{
			"resource_id": r["employee_id"], "project_id": r["project_id"], "work_date": r["work_date"], "hours": trimmed(r["hours"]), "status": r["status"], "note": r["note"],
		}, true
	})...)
	posted, err := s.erpFindings(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	findings = append(findings, posted...)
	s.none(findings)
}

// rawExact holds the raw topics against a history.
func (s *stack) rawExact(h *history.History, o history.Options) {
	s.t.Helper()
	if _, err := h.Witness(s.t.Context(), s.psaPool, "truth"); err != nil {
		s.t.Fatal(err)
	}
	s.none(s.rawFindings(h, o))
}

// rawFindings are what is wrong in the raw topics of a history's tables.
func (s *stack) rawFindings(h *history.History, o history.Options) []history.Finding {
	s.t.Helper()
	var topics []string
	for _, t := range h.Tables() {
		topics = append(topics, "psa."+t)
	}
	var seen *history.Seen
	s.until(patience, "all is in the raw topics", func(ctx context.Context) (bool, string) {
		var err error
		if seen, err = history.ReadTopics(ctx, s.cluster, s.registry.SchemaByID, topics...); err != nil {
			return false, err.Error()
		}
		return h != s.writers.History() || seen.Has("public.history_item", "0"), "the last change is not there"
	})
	if h.Changes() == 0 {
		s.t.Fatal("nothing was committed: the test proves nothing")
	}
	s.t.Logf("%d changes of %v, %d records in their raw topics", h.Changes(), h.Tables(), seen.Records)
	return h.Check(seen, o)
}

// none reports findings.
func (s *stack) none(findings []history.Finding) {
	s.t.Helper()
	for _, f := range findings[:min(len(findings), 40)] {
		s.t.Error(f)
	}
	if s.t.Failed() {
		s.t.Logf("%d findings\n%s", len(findings), s.tail())
	}
}

// TestChaosKill: without fencing, one transaction for position and records,
// or read-back, a kill -9 at the wrong moment loses, doubles or reorders.
func TestChaosKill(t *testing.T) { chaosKill(t, true) }

// TestChaosKillWithoutReference is the same with an ERP that takes everything
// twice: without reading back, and the wait before that, each kill in a call
// posts it again, or a call that is still at work does.
func TestChaosKillWithoutReference(t *testing.T) { chaosKill(t, false) }

func chaosKill(t *testing.T, unique bool) {
	kills := 30
	if n, err := strconv.Atoi(os.Getenv("CHAOS_KILLS")); err == nil {
		kills = n
	}
	rnd := seeded(t)
	s := newStackOf(t, unique)
	s.start()
	s.settled(patience)
	s.loaded()
	end := s.work(400)
	for i := range kills {
		s.pause(time.Duration(300+rnd.IntN(5700)) * time.Millisecond)
		s.kill()
		t.Logf("kill %d, after %s", i+1, s.reached())
		s.start()
	}
	end()
	s.settled(patience)
	s.exact(history.Options{})
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
	s.loaded()
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
	s.exact(history.Options{})
}

// TestChaosKafkaKilled: the broker is killed again and again, between what it
// decides and what it writes down of that. What it leaves open is ended as it
// was decided.
func TestChaosKafkaKilled(t *testing.T) {
	rnd := seeded(t)
	s := newStack(t)
	s.start()
	s.settled(patience)
	s.loaded()
	end := s.work(200)
	for range 3 {
		s.pause(time.Duration(500+rnd.IntN(3000)) * time.Millisecond)
		if err := s.kafka.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.kafka.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.advance("it goes on after Kafka was killed", 0, "")
		t.Logf("after %s", s.reached())
	}
	end()
	s.settled(patience)
	s.exact(history.Options{})
}

// TestChaosLoad: killed during the initial load, it reads the rest beside the stream,
// and all converges.
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
	s.exact(history.Options{LoadResumed: true})
}

// TestChaosTruncate: a table is truncated, and tallywire is killed while it
// deletes what was made of its rows. None of them stays, none that came after is
// deleted.
func TestChaosTruncate(t *testing.T) {
	rnd := seeded(t)
	s := newStack(t)
	s.start()
	s.settled(patience)
	s.loaded()
	end := s.work(200)
	for i := range 5 {
		// The first empties what was loaded, the others what the firm wrote since.
		s.sql(s.psaPool, `truncate invoice_line; insert into invoice_line select 1000000000 + i, (select max(id) from invoice), (select max(id) from project), 'again', 1, 1, 1 from generate_series(1, 20000) i`)
		s.pause(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		s.kill()
		t.Logf("kill %d, after %s", i+1, s.reached())
		s.start()
	}
	end()
	s.settled(patience)
	s.exact(history.Options{})
}

// TestChaosServers: Redis flushed, Kafka and Postgres restarted, the ERP
// throttling, losing answers and down: same end state, and the warehouse flows on
// while the ERP is away.
func TestChaosServers(t *testing.T) {
	s := newStack(t)
	ctx := t.Context()
	s.start()
	s.settled(patience)
	s.loaded()
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
	s.exact(history.Options{})
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

	replay := []string{"replay", "warehouse", "--to", "beginning", "--yes", "-c", s.config}
	if out, stderr, code := command(ctx, replay...); code == 0 || !strings.Contains(stderr, "TW-REPLAY-ACTIVE") {
		t.Errorf("replay of a group that runs: exit code %d: %s%s", code, out, stderr)
	}
	s.stop()
	// Remedy: TW-REPLAY-ACTIVE, TW-REPLAY-GROUP
	if out, stderr, code := command(ctx, replay...); code != 0 || !strings.Contains(out, "is set back") {
		t.Errorf("replay: exit code %d: %s%s", code, out, stderr)
	}
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
