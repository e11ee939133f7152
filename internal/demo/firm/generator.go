// The generator: people at work. It enters, edits, submits, approves and
// rejects time, changes rates, sells projects and writes invoices, from
// several sessions at once, in transactions of 1 to 200 rows.

package firm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Options of a Generator; zero values give the defaults.
type Options struct {
	// Rate is how many row changes per second are asked for; 0: as many as
	// the PSA takes.
	Rate float64
	// Max ends Run after about that many changes; 0: when its context ends.
	Max int64
	// Seed of the chance. Default 1. The order of commits between sessions is
	// Postgres's own: two runs of one Seed resemble each other, no more.
	Seed uint64
	// Workers is how many sessions work at once, 1 to 32. Default 3.
	Workers int
	// Day is how long a day of the firm lasts. Default 20 s.
	Day time.Duration
	Log *slog.Logger // nil: none
}

const maxTxn = 200 // rows of a transaction

// Kind is what a change was, for Stats.
type Kind int

const (
	Entered Kind = iota
	Edited
	Submitted
	Approved
	Rejected
	Reentered
	Deleted
	RateChanged
	RateRemoved
	RatePutBack
	ProjectSold
	CustomerAdded
	MasterDataEdited
	Hired
	RateOfHire
	InvoiceWritten
	InvoiceIssued
	CreditNoteIssued
	kinds
)

var kindNames = [kinds]string{
	"entered", "edited", "submitted", "approved", "rejected", "re-entered", "deleted", "rate changed", "rate removed",
	"rate put back", "project sold", "customer added", "master data edited", "hired", "rate of a hire", "invoice written", "invoice issued", "credit note issued",
}

func (k Kind) String() string { return kindNames[k] }

// Stats of a Generator, from when Run began.
type Stats struct {
	Asked        float64          // row changes per second; 0: as many as possible
	Reached      float64          // row changes per second, until now or until Run ended
	Changes      int64            // rows inserted, updated and deleted
	Transactions int64            // committed
	ByKind       map[string]int64 // rows
	Elapsed      time.Duration
	Today        time.Time // the firm's date
	LSN          string    // at or after the last commit that is counted; final when Run has returned
}

// Generator works in one PSA. Its methods are safe for concurrent use; Run is
// called once.
type Generator struct {
	dsn     string
	o       Options
	limit   *rate.Limiter
	counts  [kinds]atomic.Int64
	changes atomic.Int64
	txns    atomic.Int64
	ids     struct{ entry, project, customer, employee, costRate, invoice, line atomic.Int64 }

	mu      sync.Mutex // guards what follows
	began   time.Time
	ended   time.Time
	lsn     string
	base    day // the firm's date when Run began
	people  []staff
	byFirm  [][]int // people by entity
	sold    [][]job // projects by entity
	clients [][]int64
}

type staff struct {
	id     int64
	entity int
	level  int
	hired  day
}

type job struct {
	id, customer int64
	price        int64
}

// NewGenerator makes a Generator for a seeded PSA; it connects in Run.
func NewGenerator(dsn string, o Options) *Generator {
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Workers <= 0 {
		o.Workers = 3
	}
	o.Workers = min(o.Workers, 32)
	if o.Day <= 0 {
		o.Day = 20 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	limit := rate.Inf
	if o.Rate > 0 {
		limit = rate.Limit(o.Rate)
	}
	return &Generator{dsn: dsn, o: o, limit: rate.NewLimiter(limit, maxTxn)}
}

// Load makes about n changes as fast as the PSA takes them, and returns.
func Load(ctx context.Context, dsn string, n int64) (Stats, error) {
	g := NewGenerator(dsn, Options{Max: n})
	err := g.Run(ctx)
	return g.Stats(), err
}

// Run works until ctx ends, or Max changes were made. It finishes the
// transactions that it is in, and before it returns adds the customers that
// projects still wait for. It waits for a PSA that restarts. After a restart
// of its own it goes on where it, or another Run, stopped.
func (g *Generator) Run(ctx context.Context) error {
	g.mu.Lock()
	g.began = time.Now()
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.ended = time.Now()
		g.mu.Unlock()
	}()
	if err := g.learn(ctx); err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	for n := range g.o.Workers {
		group.Go(func() error {
			w := &worker{g: g, n: n, rnd: rand.New(rand.NewPCG(g.o.Seed, uint64(n)))}
			return w.run(gctx)
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("working in the PSA: %w", err)
	}
	return g.readLSN(ctx)
}

// readLSN reads a position that is not before any commit made here.
func (g *Generator) readLSN(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, g.dsn)
	if err != nil {
		return fmt.Errorf("reading the PSA's LSN: %w", err)
	}
	defer hangUp(ctx, conn)
	var lsn string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn); err != nil {
		return fmt.Errorf("reading the PSA's LSN: %w", err)
	}
	g.setLSN(lsn)
	return nil
}

func (g *Generator) setLSN(lsn string) {
	g.mu.Lock()
	g.lsn = lsn
	g.mu.Unlock()
}

// Stats of the work until now.
func (g *Generator) Stats() Stats {
	s := Stats{Asked: g.o.Rate, Changes: g.changes.Load(), Transactions: g.txns.Load(), ByKind: map[string]int64{}, Today: g.today().time()}
	for k := range g.counts {
		if n := g.counts[k].Load(); n > 0 {
			s.ByKind[Kind(k).String()] = n
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.LSN = g.lsn
	if g.began.IsZero() {
		return s
	}
	end := g.ended
	if end.IsZero() {
		end = time.Now()
	}
	s.Elapsed = end.Sub(g.began)
	if sec := s.Elapsed.Seconds(); sec > 0 {
		s.Reached = float64(s.Changes) / sec
	}
	return s
}

// today is the firm's date: it moves on by a day every Options.Day, and rests
// at the weekend.
func (g *Generator) today() day {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := max(g.base, dayOf(Today))
	if g.began.IsZero() {
		return d
	}
	end := g.ended
	if end.IsZero() {
		end = time.Now()
	}
	for n := int(end.Sub(g.began) / g.o.Day); n > 0; n-- {
		d = d.workday(1)
	}
	return d
}

// workday is the next working day in the direction of step, 1 or -1.
func (d day) workday(step day) day {
	for {
		d += step
		if wd := d.time().Weekday(); wd != time.Saturday && wd != time.Sunday {
			return d
		}
	}
}

// learn reads who and what there is.
func (g *Generator) learn(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, g.dsn)
	if err != nil {
		return fmt.Errorf("connecting to the PSA: %w", err)
	}
	defer hangUp(ctx, conn)
	g.mu.Lock()
	defer g.mu.Unlock()
	var entry, project, customer, employee, costRate, invoice, line int64
	var last time.Time
	err = conn.QueryRow(ctx, `SELECT (SELECT max(id) FROM time_entry), (SELECT max(id) FROM project), (SELECT max(id) FROM customer), (SELECT max(id) FROM employee),
		(SELECT max(id) FROM cost_rate), (SELECT max(id) FROM invoice), (SELECT max(id) FROM invoice_line), (SELECT max(work_date) FROM time_entry)`).
		Scan(&entry, &project, &customer, &employee, &costRate, &invoice, &line, &last)
	if err != nil {
		return fmt.Errorf("reading the PSA's ids (is it seeded?): %w", err)
	}
	// A project may have announced a customer that was never added.
	var announced int64
	if err := conn.QueryRow(ctx, "SELECT max(customer_id) FROM project").Scan(&announced); err != nil {
		return fmt.Errorf("reading the PSA's ids: %w", err)
	}
	g.ids.entry.Store(entry)
	g.ids.project.Store(project)
	g.ids.customer.Store(max(customer, announced))
	g.ids.employee.Store(employee)
	g.ids.costRate.Store(costRate)
	g.ids.invoice.Store(invoice)
	g.ids.line.Store(line)
	g.base = max(dayOf(Today), dayOf(last))
	g.byFirm, g.sold, g.clients = make([][]int, len(entities)), make([][]job, len(entities)), make([][]int64, len(entities))
	index := map[string]int{}
	for i, e := range entities {
		index[e.code] = i
	}
	rows, err := conn.Query(ctx, "SELECT id, legal_entity, title, hired_on FROM employee WHERE active ORDER BY id")
	if err != nil {
		return fmt.Errorf("reading the PSA's people: %w", err)
	}
	var id, customerID int64
	var entity, title string
	var hired time.Time
	if _, err := pgx.ForEachRow(rows, []any{&id, &entity, &title, &hired}, func() error {
		g.addStaff(staff{id, index[entity], levelOf(title), dayOf(hired)})
		return nil
	}); err != nil {
		return fmt.Errorf("reading the PSA's people: %w", err)
	}
	if rows, err = conn.Query(ctx, "SELECT id, customer_id, legal_entity FROM project WHERE status = 'active' ORDER BY id"); err != nil {
		return fmt.Errorf("reading the PSA's projects: %w", err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &customerID, &entity}, func() error {
		e := index[entity]
		g.sold[e] = append(g.sold[e], job{id, customerID, priceOf(id)})
		return nil
	}); err != nil {
		return fmt.Errorf("reading the PSA's projects: %w", err)
	}
	if rows, err = conn.Query(ctx, "SELECT id, legal_entity FROM customer ORDER BY id"); err != nil {
		return fmt.Errorf("reading the PSA's customers: %w", err)
	}
	if _, err := pgx.ForEachRow(rows, []any{&id, &entity}, func() error {
		e := index[entity]
		g.clients[e] = append(g.clients[e], id)
		return nil
	}); err != nil {
		return fmt.Errorf("reading the PSA's customers: %w", err)
	}
	return nil
}

func (g *Generator) addStaff(s staff) { // g.mu is held
	g.byFirm[s.entity] = append(g.byFirm[s.entity], len(g.people))
	g.people = append(g.people, s)
}

func levelOf(title string) int {
	for i, t := range titles {
		if t == title {
			return i
		}
	}
	return 0
}

// priceOf is the price of an hour at level 0 for work entered from now on,
// 1/10000 of the currency.
func priceOf(project int64) int64 { return (900 + 25*(project*17%40)) * 1000 }

// worker is one session. It owns the people, and the entries, whose id leaves
// its number as remainder, so that sessions do not wait for each other.
type worker struct {
	g    *Generator
	n    int
	rnd  *rand.Rand
	conn *pgx.Conn

	drafts, submitted, rejected []int64 // ids of entries
	invoices                    []int64 // drafts; the first worker's
	later                       []followUp
	busy                        map[int64]bool // people whose rate is away
	owed                        int            // rows written since the rate was last minded
}

// followUp is what was promised for later: a project's customer, a rate.
type followUp struct {
	due  time.Time
	must bool // also when Run ends before
	do   func(context.Context) error
}

// own is the next id of a sequence that is this worker's.
func (w *worker) own(seq *atomic.Int64) int64 {
	for {
		if id := seq.Add(1); id%int64(w.g.o.Workers) == int64(w.n) {
			return id
		}
	}
}

func (w *worker) run(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := w.session(ctx)
		if err == nil || ctx.Err() != nil && w.conn == nil {
			return nil
		}
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.Code[:2] != "57" && pe.Code[:2] != "08" && pe.Code[:2] != "53" {
			return err
		}
		w.g.o.Log.Warn("the PSA does not answer; trying again", "worker", w.n, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// session works over one connection, until ctx ends (nil) or it breaks.
func (w *worker) session(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.g.dsn)
	if err != nil {
		return err
	}
	w.conn = conn
	defer func() {
		hangUp(ctx, conn)
		w.conn = nil
	}()
	if err := w.recall(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for ctx.Err() == nil && (w.g.o.Max == 0 || w.g.changes.Load() < w.g.o.Max) {
		did, err := w.followUps(ctx, false)
		if err != nil {
			return err
		}
		if did {
			continue
		}
		if err := w.act(ctx); err != nil {
			if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				break
			}
			return err
		}
	}
	_, err = w.followUps(ctx, true)
	return err
}

// followUps does what is due; at the end of Run what must be.
func (w *worker) followUps(ctx context.Context, ending bool) (did bool, err error) {
	now := time.Now()
	for i := 0; i < len(w.later); i++ {
		f := w.later[i]
		if ending && !f.must || !ending && f.due.After(now) {
			continue
		}
		w.later = append(w.later[:i], w.later[i+1:]...)
		i--
		if err := f.do(ctx); err != nil {
			return did, err
		}
		did = true
	}
	return did, nil
}

func (w *worker) after(least, spread time.Duration, must bool, do func(context.Context) error) {
	w.later = append(w.later, followUp{time.Now().Add(least + time.Duration(w.rnd.Int64N(int64(spread)))), must, do})
}

// statement is one of a transaction.
type statement struct {
	sql  string
	args []any
}

// txn runs statements in one transaction, and counts their rows. It is not
// broken off when ctx ends, so that every commit is counted.
func (w *worker) txn(ctx context.Context, kind Kind, ss ...statement) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	batch := &pgx.Batch{} // a batch without BEGIN is one transaction
	for _, s := range ss {
		batch.Queue(s.sql, s.args...)
	}
	results := w.conn.SendBatch(ctx, batch)
	rows := int64(0)
	for range ss {
		tag, err := results.Exec()
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", kind, err), ignoreSame(results.Close(), err))
		}
		rows += tag.RowsAffected()
	}
	if err := results.Close(); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	w.g.counts[kind].Add(rows)
	w.g.changes.Add(rows)
	w.g.txns.Add(1)
	w.owed += int(rows)
	return nil
}

// pace waits for as long as the rows just written take at the rate asked for.
func (w *worker) pace(ctx context.Context) error {
	n := min(w.owed, maxTxn)
	w.owed = 0
	if err := w.g.limit.WaitN(ctx, n); err != nil {
		<-ctx.Done() // ends before so many rows are due
		return ctx.Err()
	}
	return nil
}

func ignoreSame(err, same error) error {
	if errors.Is(same, err) || err != nil && err.Error() == same.Error() {
		return nil
	}
	return err
}
