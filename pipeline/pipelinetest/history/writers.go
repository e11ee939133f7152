// Writers: several sessions that write to a Postgres at once, and record what
// they committed.

package history

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// WritersOptions; zero values give the defaults.
type WritersOptions struct {
	// Sessions that write at once, each to keys of its own, so that the order
	// of a key's changes is known. Default 4.
	Sessions int
	// Pause between two transactions of a session, on average. Default 20 ms.
	Pause time.Duration
	// Keys that a session holds of each table, about. Default 50.
	Keys int
	Seed uint64
}

// Writers write transactions of every kind to tables of their own: several
// changes of one row in one, changes of the key, rows deleted and made again,
// large values that an update leaves alone, savepoints that are rolled back,
// transactions of hundreds of rows.
type Writers struct {
	dsn     string
	o       WritersOptions
	history *History
	dial    func(*pgx.ConnConfig) // nil: as the dsn says

	mu        sync.Mutex
	committed int
	unknown   int // commits whose answer was lost, and that were asked for later
}

// WriterTables are the tables that Writers write to, by the columns of their
// keys: one with the default identity, one with FULL.
var WriterTables = map[string][]string{
	"public.history_item": {"id"},
	"public.history_pair": {"owner", "number"},
}

const writerSchema = `
create table public.history_item (id bigint primary key, mark text not null, note text, body text, amount numeric(12,2), ok boolean, at timestamptz);
alter table public.history_item alter body set storage external;
create table public.history_pair (owner text, number integer, mark text not null, body text, ratio double precision, days date[], primary key (owner, number));
alter table public.history_pair alter body set storage external;
alter table public.history_pair replica identity full;
`

// NewWriters makes the tables, which must not be there yet.
func NewWriters(ctx context.Context, dsn string, o WritersOptions) (*Writers, error) {
	if o.Sessions <= 0 {
		o.Sessions = 4
	}
	if o.Pause <= 0 {
		o.Pause = 20 * time.Millisecond
	}
	if o.Keys <= 0 {
		o.Keys = 50
	}
	w := &Writers{dsn: dsn, o: o, history: New(WriterTables)}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, fmt.Errorf("connecting to write: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, writerSchema, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, fmt.Errorf("making the tables of the writers: %w", err)
	}
	return w, nil
}

// History is what was committed so far.
func (w *Writers) History() *History { return w.history }

// Committed is how many transactions were, and of how many the answer was lost.
func (w *Writers) Committed() (n, unknown int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.committed, w.unknown
}

// Run writes until ctx ends. A server that goes away is waited for; what became
// of a commit whose answer was lost is asked of the server, so that the history
// says no more and no less than what it holds.
func (w *Writers) Run(ctx context.Context) error {
	errs := make([]error, w.o.Sessions)
	var wg sync.WaitGroup
	for i := range errs {
		s := &session{w: w, number: i, rnd: rand.New(rand.NewPCG(w.o.Seed, uint64(i))), items: map[string]Row{}, pairs: map[string]Row{}}
		wg.Go(func() { errs[i] = s.run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// session is one connection and the rows that it alone writes.
type session struct {
	w      *Writers
	number int
	rnd    *rand.Rand
	conn   *pgx.Conn
	items  map[string]Row // by id, as they are committed
	pairs  map[string]Row // by number
	made   int            // keys ever made
	marks  int
}

func (s *session) run(ctx context.Context) error {
	defer func() {
		if s.conn != nil {
			s.conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for {
		if err := pause(ctx, time.Duration(s.rnd.Int64N(int64(2*s.w.o.Pause)))); err != nil {
			return nil
		}
		if s.conn == nil || s.conn.IsClosed() {
			if s.conn = s.connect(ctx); s.conn == nil {
				continue
			}
		}
		// A transaction that was begun is ended, whatever ctx says.
		if err := s.transaction(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("session %d: %w", s.number, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// connect is nil while the server does not answer.
func (s *session) connect(ctx context.Context) *pgx.Conn {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig(s.w.dsn)
	if err != nil {
		return nil
	}
	if s.w.dial != nil {
		s.w.dial(cfg)
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil
	}
	if _, err := conn.Exec(ctx, "set timezone to 'UTC'"); err != nil {
		conn.Close(ctx)
		return nil
	}
	return conn
}

// attempt is a transaction that is not committed yet.
type attempt struct {
	*session
	items, pairs map[string]Row // as they will be
	changes      []Change
}

func (a *attempt) copy() *attempt {
	c := &attempt{session: a.session, items: map[string]Row{}, pairs: map[string]Row{}, changes: append([]Change(nil), a.changes...)}
	for k, r := range a.items {
		c.items[k] = r
	}
	for k, r := range a.pairs {
		c.pairs[k] = r
	}
	return c
}

// transaction makes one; an error is one that no waiting mends.
func (s *session) transaction(ctx context.Context) error {
	a := (&attempt{session: s, items: s.items, pairs: s.pairs}).copy()
	xid, err := a.write(ctx)
	switch {
	case gone(s.conn, err): // before the commit: it is rolled back
		return nil
	case errors.Is(err, errRollBack):
		_, err := s.conn.Exec(ctx, "rollback")
		if gone(s.conn, err) {
			return nil
		}
		return err
	case err != nil:
		return err
	}
	_, err = s.conn.Exec(ctx, "commit")
	if gone(s.conn, err) {
		happened, err := s.ask(ctx, xid)
		if err != nil || !happened {
			return err
		}
	} else if err != nil {
		return err
	}
	s.items, s.pairs = a.items, a.pairs
	s.w.history.Commit(a.changes...)
	s.w.mu.Lock()
	s.w.committed++
	s.w.mu.Unlock()
	return nil
}

func gone(conn *pgx.Conn, err error) bool { return err != nil && conn.IsClosed() }

// ask says whether a transaction was committed whose answer did not come.
func (s *session) ask(ctx context.Context, xid string) (bool, error) {
	s.w.mu.Lock()
	s.w.unknown++
	s.w.mu.Unlock()
	for range 600 {
		if s.conn = s.connect(ctx); s.conn != nil {
			var status string
			err := s.conn.QueryRow(ctx, "select coalesce(pg_xact_status($1::text::xid8), 'too old')", xid).Scan(&status)
			switch {
			case err == nil && status == "committed":
				return true, nil
			case err == nil && status == "aborted":
				return false, nil
			case err == nil && status != "in progress":
				return false, fmt.Errorf("transaction %s is %s: what became of it is not known", xid, status)
			}
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return false, err
		}
	}
	return false, fmt.Errorf("the server did not say within a minute what became of transaction %s", xid)
}

var errRollBack = errors.New("this transaction is to be rolled back")

// write does all of a transaction but its end.
func (a *attempt) write(ctx context.Context) (xid string, err error) {
	if _, err := a.conn.Exec(ctx, "begin"); err != nil {
		return "", err
	}
	ops := 1 + a.rnd.IntN(6)
	if a.rnd.IntN(100) == 0 {
		ops = 300
	}
	for ops > 0 {
		n := min(ops, 1+a.rnd.IntN(4))
		ops -= n
		if a.rnd.IntN(5) > 0 {
			if err := a.several(ctx, n); err != nil {
				return "", err
			}
			continue
		}
		if _, err := a.conn.Exec(ctx, "savepoint s"); err != nil {
			return "", err
		}
		inner := a.copy()
		if err := inner.several(ctx, n); err != nil {
			return "", err
		}
		end := "release savepoint s"
		if a.rnd.IntN(2) == 0 {
			end = "rollback to savepoint s"
		} else {
			*a = *inner
		}
		if _, err := a.conn.Exec(ctx, end); err != nil {
			return "", err
		}
	}
	if err := a.conn.QueryRow(ctx, "select pg_current_xact_id()::text").Scan(&xid); err != nil {
		return "", err
	}
	if a.rnd.IntN(12) == 0 {
		return "", errRollBack
	}
	return xid, nil
}

func (a *attempt) several(ctx context.Context, n int) error {
	for range n {
		write := a.item
		if a.rnd.IntN(3) == 0 {
			write = a.pair
		}
		if err := write(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mark is a text that no other change has.
func (a *attempt) mark() string {
	a.marks++
	return fmt.Sprintf("%d.%d", a.number, a.marks)
}

// number that no other session takes.
func (a *attempt) fresh() int {
	a.made++
	return a.made*a.w.o.Sessions + a.number + 1
}

// body is null, short, or stored out of line.
func (a *attempt) body() any {
	switch a.rnd.IntN(3) {
	case 0:
		return nil
	case 1:
		return "it's short, \\ and \"quoted\"\n{,}"
	}
	b := make([]byte, 2500+a.rnd.IntN(4000))
	for i := range b {
		b[i] = byte('a' + a.rnd.IntN(26))
	}
	return string(b)
}

func pick(rnd *rand.Rand, rows map[string]Row) Row {
	n := rnd.IntN(len(rows))
	// Go's order of a map is not ours to seed; which row it is does not matter.
	for _, r := range rows {
		if n--; n < 0 {
			return r
		}
	}
	return nil
}

// one runs a statement that returns the row that it left.
func (a *attempt) one(ctx context.Context, sql string, args ...any) (Row, error) {
	rows, err := ReadTable(ctx, a.conn, sql, args...)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("%d rows, want 1: %s %v", len(rows), sql, args)
	}
	if err != nil {
		return nil, err
	}
	return rows[0], nil
}

func (a *attempt) item(ctx context.Context) error {
	const table = "public.history_item"
	insert := func(id any) error {
		r, err := a.one(ctx, `insert into history_item values ($1, $2, $3, $4, $5, $6, clock_timestamp()) returning *`,
			id, a.mark(), "inserted", a.body(), float64(a.rnd.IntN(1_000_000))/100, a.rnd.IntN(2) == 0)
		if err != nil {
			return err
		}
		a.items[r["id"]] = r
		a.changes = append(a.changes, Change{Table: table, Op: 'c', New: r})
		return nil
	}
	if len(a.items) < 2 || len(a.items) < a.w.o.Keys && a.rnd.IntN(3) == 0 {
		return insert(a.fresh())
	}
	was := pick(a.rnd, a.items)
	switch kind := a.rnd.IntN(10); {
	case kind == 0 || len(a.items) > 2*a.w.o.Keys: // deleted, and sometimes made again at once
		if _, err := a.conn.Exec(ctx, "delete from history_item where id = $1::text::bigint", was["id"]); err != nil {
			return err
		}
		delete(a.items, was["id"])
		a.changes = append(a.changes, Change{Table: table, Op: 'd', Old: was})
		if a.rnd.IntN(2) == 0 {
			return insert(was["id"])
		}
		return nil
	case kind == 1: // another key; the large value comes along
		r, err := a.one(ctx, `update history_item set id = $2, mark = $3 where id = $1::text::bigint returning *`, was["id"], a.fresh(), a.mark())
		if err != nil {
			return err
		}
		delete(a.items, was["id"])
		a.items[r["id"]] = r
		a.changes = append(a.changes, Change{Table: table, Op: 'u', Old: was, New: r})
		return nil
	case kind < 4:
		r, err := a.one(ctx, `update history_item set mark = $2, body = $3, ok = null where id = $1::text::bigint returning *`, was["id"], a.mark(), a.body())
		return a.updated(a.items, table, was["id"], was, r, err)
	default: // the large value is left alone, and not sent
		r, err := a.one(ctx, `update history_item set mark = $2, amount = amount + 0.01, at = clock_timestamp() where id = $1::text::bigint returning *`, was["id"], a.mark())
		return a.updated(a.items, table, was["id"], was, r, err)
	}
}

func (a *attempt) updated(rows map[string]Row, table, key string, was, is Row, err error) error {
	if err != nil {
		return err
	}
	rows[key] = is
	a.changes = append(a.changes, Change{Table: table, Op: 'u', Old: was, New: is})
	return nil
}

func (a *attempt) pair(ctx context.Context) error {
	const table = "public.history_pair"
	owner := fmt.Sprintf("o/%d", a.number)
	if len(a.pairs) < 2 || len(a.pairs) < a.w.o.Keys && a.rnd.IntN(3) == 0 {
		r, err := a.one(ctx, `insert into history_pair values ($1, $2, $3, $4, $5, '{2026-01-31,null,infinity}') returning *`,
			owner, a.fresh(), a.mark(), a.body(), a.rnd.Float64()*1e6)
		if err != nil {
			return err
		}
		a.pairs[r["number"]] = r
		a.changes = append(a.changes, Change{Table: table, Op: 'c', New: r})
		return nil
	}
	was := pick(a.rnd, a.pairs)
	const where = ` where owner = $1 and number = $2::text::integer`
	switch kind := a.rnd.IntN(8); {
	case kind == 0 || len(a.pairs) > 2*a.w.o.Keys:
		if _, err := a.conn.Exec(ctx, "delete from history_pair"+where, owner, was["number"]); err != nil {
			return err
		}
		delete(a.pairs, was["number"])
		a.changes = append(a.changes, Change{Table: table, Op: 'd', Old: was})
		return nil
	case kind == 1:
		r, err := a.one(ctx, `update history_pair set number = $3, mark = $4`+where+` returning *`, owner, was["number"], a.fresh(), a.mark())
		if err != nil {
			return err
		}
		delete(a.pairs, was["number"])
		a.pairs[r["number"]] = r
		a.changes = append(a.changes, Change{Table: table, Op: 'u', Old: was, New: r})
		return nil
	default:
		r, err := a.one(ctx, `update history_pair set mark = $3, ratio = ratio / 3, days = null`+where+` returning *`, owner, was["number"], a.mark())
		return a.updated(a.pairs, table, was["number"], was, r, err)
	}
}
