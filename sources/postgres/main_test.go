package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/embedded"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/secret"
	"github.com/tallywire/tallywire/internal/testkit"
	"github.com/tallywire/tallywire/internal/testkit/leak"
	"github.com/tallywire/tallywire/pipeline"
)

// pg17 is shared by the tests of this package; each takes a database of its
// own. It is started by the first that asks: a fuzz worker asks not.
var pg17 struct {
	once sync.Once
	*embedded.Postgres
	err error
}

func shared(t *testing.T) *embedded.Postgres {
	t.Helper()
	pg17.once.Do(func() {
		pg17.Postgres, pg17.err = embedded.StartPostgres(context.Background(), embedded.PostgresOptions{
			Unix: true, TLS: true,
			Params: map[string]string{"fsync": "off", "max_prepared_transactions": "5", "max_replication_slots": "100", "max_wal_senders": "40"},
		})
	})
	if pg17.err != nil {
		t.Fatal("starting Postgres:", pg17.err)
	}
	return pg17.Postgres
}

func TestMain(m *testing.M) {
	change.PoisonOnRelease(true)
	leak.Main(m, func() error {
		if pg17.Postgres == nil {
			return nil
		}
		return pg17.Stop()
	})
}

var dbs atomic.Int32

// db is a database of its own on a server, with a plain connection.
type db struct {
	t    *testing.T
	pg   *embedded.Postgres
	name string
	*pgx.Conn
}

func newDB(t *testing.T, pg *embedded.Postgres) *db {
	t.Helper()
	d := &db{t: t, pg: pg, name: fmt.Sprintf("t%d", dbs.Add(1))}
	if err := pg.CreateDatabase(t.Context(), d.name); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.Conn, err = pgx.Connect(t.Context(), pg.DSN(d.name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(context.Background()) })
	return d
}

func (d *db) sql(format string, args ...any) {
	d.t.Helper()
	if _, err := d.Exec(d.t.Context(), fmt.Sprintf(format, args...), pgx.QueryExecModeSimpleProtocol); err != nil {
		d.t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

func (d *db) one(sql string) string {
	d.t.Helper()
	var s *string
	if err := d.QueryRow(d.t.Context(), sql).Scan(&s); err != nil {
		d.t.Fatalf("%s: %v", sql, err)
	}
	return deref(s)
}

func (d *db) config() Config {
	c := Default(d.name)
	c.DSN = secret.DSNOf(d.pg.DSN(d.name))
	c.IdleInterval = 100 * time.Millisecond
	return c
}

func (d *db) source(edit ...func(*Config)) *Source {
	d.t.Helper()
	c := d.config()
	for _, e := range edit {
		e(&c)
	}
	s, err := New(c, "psa", obs.New(slog.New(slog.NewTextHandler(io.Discard, nil))).Component("source", "psa"))
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// rec is one change as it was sent, in text.
type rec struct {
	topic    string
	op       change.Op
	key      string
	oldKey   string // of an old row, if there is one
	old, new string
	kinds    string
	pos      change.Pos
	before   *change.Pos
	time     int64
	xid      uint32
}

func (r rec) String() string {
	return fmt.Sprintf("%s %c %s old(%s) new(%s) at %s", r.topic, r.op, r.key, r.old, r.new, r.pos)
}

// outlet is a SourceOutlet that commits each batch at once, unless told not to.
type outlet struct {
	mu       sync.Mutex
	recs     []rec
	resumes  []pipeline.Resume // after each batch and checkpoint
	upTo     []int             // len(recs) at each resume
	position pipeline.Resume
	durable  chan pipeline.Resume
	changed  chan struct{}

	noted  map[string][]byte // with position
	noting map[string][]byte // with the next; nil: forgotten
	asks   map[string][]byte // what is asked
	done   []string          // of it, with the next position
	asking string            // the last request
	beside uint64            // records that were given places

	resumed  int
	prepared []string // topics, by the last Prepare
	ended    error    // of the last Run
	// onSend runs before a batch is taken; an error refuses it.
	onSend func(ctx context.Context, b *change.Batch) error
	// onCheckpoint likewise.
	onCheckpoint func(r pipeline.Resume) error
	holdDurable  bool // commits are not told
}

func newOutlet() *outlet {
	return &outlet{durable: make(chan pipeline.Resume, 1), changed: make(chan struct{}, 1)}
}

func render(b *change.Batch, t *change.Table, row []change.Value) (text, kinds string) {
	if row == nil {
		return "", ""
	}
	var s, k []string
	for i, v := range row {
		switch {
		case v.IsUnchanged():
			s = append(s, t.Columns[i].Name+"=<unchanged>")
		case v.IsNull():
			s = append(s, t.Columns[i].Name+"=<null>")
		default:
			s = append(s, t.Columns[i].Name+"="+string(b.AppendText(nil, v)))
		}
		k = append(k, v.Kind().String())
	}
	return strings.Join(s, "|"), strings.Join(k, "|")
}

func (o *outlet) Send(ctx context.Context, b *change.Batch) error {
	defer b.Release()
	if err := b.Decode(); err != nil {
		return err
	}
	o.mu.Lock()
	hook := o.onSend
	o.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, b); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if b.Resume == nil {
		return errors.New("a batch without a Resume")
	}
	var place change.Pos
	if b.Beside { // as the engine does
		var is bool
		if place, is = new(Source).Beside(b.Resume, o.beside+1); !is {
			return fmt.Errorf("a batch beside the stream at %s", b.Resume)
		}
		o.beside += uint64(b.Len())
	}
	for i := range b.Changes {
		c := &b.Changes[i]
		if b.Beside {
			c.Pos = place
			place.Ordinal++
		}
		r := rec{topic: c.Table.Topic, op: c.Op, pos: c.Pos, time: c.Time, xid: c.XID, key: string(change.AppendKey(nil, b, c))}
		r.before = c.Before
		r.old, _ = render(b, c.Table, c.Old)
		if c.Old != nil {
			r.oldKey = string(change.AppendKeyRow(nil, b, c.Table, c.Old))
		}
		r.new, r.kinds = render(b, c.Table, c.New)
		o.recs = append(o.recs, r)
	}
	o.commit(bytes.Clone(b.Resume))
	return nil
}

// commit is called with mu held.
func (o *outlet) commit(r pipeline.Resume) {
	o.position = r
	for key, value := range o.noting {
		if o.noted == nil {
			o.noted = map[string][]byte{}
		}
		if o.noted[key] = value; value == nil {
			delete(o.noted, key)
		}
	}
	for _, id := range o.done {
		delete(o.asks, id)
	}
	o.noting, o.done = nil, nil
	o.resumes = append(o.resumes, r)
	o.upTo = append(o.upTo, len(o.recs))
	if !o.holdDurable {
		select {
		case <-o.durable:
		default:
		}
		o.durable <- r
	}
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

func (o *outlet) Note(key string, value []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.noting == nil {
		o.noting = map[string][]byte{}
	}
	o.noting[key] = value
}

func (o *outlet) Notes() map[string][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.noted)
}

func (o *outlet) Asked(context.Context) (map[string][]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	asks := maps.Clone(o.asks)
	for _, id := range o.done {
		delete(asks, id)
	}
	return asks, nil
}

func (o *outlet) Answer(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done = append(o.done, id)
}

func (o *outlet) ask(value string) (id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.asks == nil {
		o.asks = map[string][]byte{}
	}
	id = rand.Text()
	o.asks[id] = []byte(value)
	return id
}

func (o *outlet) Reject(c *change.Change, err error) { panic(err) }

func (o *outlet) Resume(context.Context) (pipeline.Resume, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.resumed++
	o.noting, o.done = nil, nil // what was not written is gone
	return o.position, nil
}

func (o *outlet) Prepare(_ context.Context, tables []*change.Table) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.prepared = nil
	for _, t := range tables {
		o.prepared = append(o.prepared, t.Topic)
	}
	return nil
}

// topics gives those that were prepared.
func (o *outlet) topics() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(slices.Values(o.prepared))
}

func (o *outlet) Checkpoint(ctx context.Context, r pipeline.Resume) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.onCheckpoint != nil {
		if err := o.onCheckpoint(r); err != nil {
			return err
		}
	}
	o.commit(r)
	return nil
}

func (o *outlet) Durable() <-chan pipeline.Resume { return o.durable }

func (o *outlet) end(err error) {
	o.mu.Lock()
	o.ended = err
	o.mu.Unlock()
}

func (o *outlet) records() []rec {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]rec(nil), o.recs...)
}

func (o *outlet) last(t *testing.T) position {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	p, err := parsePosition(o.position)
	if err != nil {
		t.Fatal(err)
	}
	if p == nil {
		return position{}
	}
	return *p
}

// until waits for a condition on the outlet.
func (o *outlet) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		o.mu.Lock()
		ended := o.ended
		o.mu.Unlock()
		if ended != nil {
			t.Fatalf("waiting for %s: Run ended with %v", what, ended)
		}
		select {
		case <-o.changed:
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %d records, last %v", what, len(o.records()), tail(o.records()))
		}
	}
}

func tail(rs []rec) []rec {
	if len(rs) > 5 {
		rs = rs[len(rs)-5:]
	}
	return rs
}

func (o *outlet) untilCount(t *testing.T, n int) {
	t.Helper()
	o.until(t, fmt.Sprintf("%d records", n), func() bool { return len(o.records()) >= n })
	if got := len(o.records()); got != n {
		t.Fatalf("%d records, want %d; last %v", got, n, tail(o.records()))
	}
}

// running is a Run in its goroutine.
type running struct {
	t      *testing.T
	cancel context.CancelFunc
	err    chan error
}

func start(t *testing.T, s *Source, o *outlet) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, cancel: cancel, err: make(chan error, 1)}
	select { // a session has a channel of its own: nothing is left in it
	case <-o.durable:
	default:
	}
	go func() {
		err := s.Run(ctx, o)
		o.end(err)
		r.err <- err
	}()
	t.Cleanup(cancel)
	return r
}

// stop cancels and wants a clean end.
func (r *running) stop() {
	r.t.Helper()
	r.cancel()
	select {
	case err := <-r.err:
		if err != nil {
			r.t.Fatalf("Run ended with %v", err)
		}
	case <-time.After(testkit.Patience):
		r.t.Fatal("Run does not end")
	}
}

// fails waits for Run to end by itself.
func (r *running) fails() error {
	r.t.Helper()
	select {
	case err := <-r.err:
		if err == nil {
			r.t.Fatal("Run ended without an error")
		}
		return err
	case <-time.After(testkit.Patience):
		r.t.Fatal("Run does not end")
	}
	return nil
}

// free waits until nobody streams from the slot.
func (d *db) free(slot string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), testkit.Patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for d.one("SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = '"+slot+"' AND active") != "0" {
		select {
		case <-ctx.Done():
			d.t.Fatalf("slot %s stays active", slot)
		case <-tick.C:
		}
	}
}

// state replays records into the last row of each key.
func state(recs []rec, topic string) map[string]string {
	m, at := map[string]string{}, map[string]change.Pos{}
	for _, r := range recs {
		switch {
		case r.topic != topic:
		case r.op == change.Delete:
			delete(m, r.key)
		case r.op == change.Truncate:
			clear(m)
		case r.op == change.Sweep:
			sweep(m, at, r)
		default:
			at[r.key] = r.pos
			if r.oldKey != "" {
				delete(m, r.oldKey)
			}
			m[r.key] = r.new
		}
	}
	return m
}

// sweep takes out of m what came, by at, before a sweep's position.
func sweep(m map[string]string, at map[string]change.Pos, r rec) {
	for k := range m {
		if at[k].Compare(*r.before) < 0 {
			delete(m, k)
		}
	}
}

// rising checks that positions strictly rise: nothing twice, nothing out of order.
func rising(t *testing.T, recs []rec) {
	t.Helper()
	for i := 1; i < len(recs); i++ {
		if recs[i-1].pos.Compare(recs[i].pos) >= 0 {
			t.Fatalf("record %d at %s does not come after %s", i, recs[i].pos, recs[i-1].pos)
		}
	}
}

// tapOutlet shows each change before it is recorded.
type tapOutlet struct {
	*outlet
	see func(*change.Change)
}

func (o *tapOutlet) Send(ctx context.Context, b *change.Batch) error {
	if err := b.Decode(); err != nil {
		b.Release()
		return err
	}
	for i := range b.Changes {
		o.see(&b.Changes[i])
	}
	return o.outlet.Send(ctx, b)
}

func startTap(t *testing.T, s *Source, o *tapOutlet) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, cancel: cancel, err: make(chan error, 1)}
	go func() {
		err := s.Run(ctx, o)
		o.end(err)
		r.err <- err
	}()
	t.Cleanup(cancel)
	return r
}

// connect opens another connection to the same database.
func (d *db) connect() (*pgx.Conn, error) { return pgx.Connect(d.t.Context(), d.pg.DSN(d.name)) }
