// Reload: tables that are read anew while the stream goes on, in chunks of their
// keys (beside.go). How far each is lies beside the position, and is written in the
// transaction of the rows: after a crash it goes on where it was. What is asked
// for comes by a topic (SourceOutlet.Asked).

package postgres

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// tableLoad is how far a table is that is read anew, as it is noted.
type tableLoad struct {
	From  lsn      `json:"from"`            // it reads what was committed before, and more
	After []string `json:"after,omitempty"` // the key of the last row that was read, as text
	Where string   `json:"where,omitempty"` // only such rows
	Rows  int64    `json:"rows"`            // that were read
	Of    int64    `json:"of"`              // an estimate; 0: unknown

	// Again: a row has moved to a key that may have been read by then, with a large
	// value that was not sent again: once more from the beginning.
	Again bool      `json:"again,omitempty"`
	Since time.Time `json:"since"`

	// Sweep: what came before Before and is not there any more ends when it is read.
	// Before is where its changes began to be kept (change.AppendPos).
	Sweep  bool   `json:"sweep,omitempty"`
	Before []byte `json:"before,omitempty"`

	// Stale: the server may have cached that the table is not published. The stream
	// is opened anew before rows are read, once what ran then is acknowledged.
	Stale bool `json:"stale,omitempty"`
}

// mends reports whether x is over when what l reads is read.
func (l *tableLoad) mends(x missing) bool {
	return l != nil && l.Where == "" && (x.mendedBy(l.From) || l.Sweep && x.sweptBy(l.From))
}

// mendedBy reports whether nothing is missing any more when all is read that was
// there at from.
func (x *missing) mendedBy(from lsn) bool {
	return x.Until != 0 && x.Until <= from && (x.Why == whyNew || x.Why == whyColumn || x.Why == whyAttached || x.Why == whyMoved || x.Why == whyHidden)
}

// sweptBy reports whether nothing is wrong any more when all is read that was there
// at from, and what is not there any more has ended. A former name's topic is not read.
func (x *missing) sweptBy(from lsn) bool {
	return x.Until != 0 && x.Until <= from && x.Why != whyRenamed
}

// Reload is what a source is asked for, as JSON.
type Reload struct {
	Form   int      `json:"v"`
	Tables []string `json:"tables"` // schema.table, * for any run of characters
	Where  string   `json:"where,omitempty"`
	Sweep  bool     `json:"sweep,omitempty"` // what is not there any more ends; form 2
}

// reloadForm is the newest form that is known.
const reloadForm = 2

// ParseReload reads what a source is asked for.
func ParseReload(value []byte) (Reload, error) {
	var r Reload
	if err := json.Unmarshal(value, &r); err != nil || r.Form > reloadForm {
		return r, ErrReload.New("a request of form %d cannot be read (%v)", r.Form, err)
	}
	return r, nil
}

// ErrReopen ends a session whose stream is to be opened anew.
var ErrReopen = problem.Define("TW-PG-REOPEN", problem.Retry,
	"The stream is opened anew, so that the server forgets what it cached of tables that were listed in the publication, or since a table has a topic now and had none.",
	"Nothing to do. Of what is listed, PostgreSQL 15.14, 16.10, 17.6 and later do not need it.")

// ErrReload says that a table cannot be read anew.
var ErrReload = problem.Define("TW-PG-RELOAD", problem.Reject,
	"A table cannot be read anew.",
	"The message says why: mend it, and ask for the table once more (tallywire reload).")

const (
	askEvery    = time.Second
	chunkBytes  = 4 << 20 // what a chunk is to have, about, in octets of rows
	chunkAtMost = 8 * chunkBytes
	firstChunk  = 5000 // rows
)

// reloader reads tables anew.
type reloader struct {
	se       *session
	q        *pgx.Conn             // nil: not connected
	recorded map[uint32]*tableLoad // for which the stream keeps changes of their table
	rows     map[uint32]int        // how many are read at once
	rels     map[uint32]*pgoutput.Relation
	said     map[string]bool // of requests that cannot be read
	pace     loadPace
}

// loadPace is how fast a table is read, in this session.
type loadPace struct {
	load *tableLoad
	at   time.Time
	rows int64
}

// text tells the pace, and how long the rest takes at it.
func (p *loadPace) text(load *tableLoad, rows, of int64) string {
	if p.load != load {
		*p = loadPace{load, time.Now(), rows}
		return ""
	}
	took := time.Since(p.at)
	if rows <= p.rows || took < time.Second {
		return ""
	}
	text := fmt.Sprintf(", %.0f/s", float64(rows-p.rows)/took.Seconds())
	if of > rows {
		left := time.Duration(float64(took) * float64(of-rows) / float64(rows-p.rows))
		text += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return text
}

// startReload looks for what is asked, until stop.
func (se *session) startReload(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := &reloader{se: se, recorded: map[uint32]*tableLoad{}, rows: map[uint32]int{}, rels: map[uint32]*pgoutput.Relation{}, said: map[string]bool{}}
		defer r.disconnect()
		if err := outage.Guard(func() error { return r.run(ctx) }); err != nil && ctx.Err() == nil {
			se.lose(err)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (r *reloader) disconnect() {
	if r.q != nil {
		closeConn(r.q)
		r.q = nil
	}
}

// run ends with ctx, or with what ends the session.
func (r *reloader) run(ctx context.Context) error {
	for {
		pause, err := r.step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to end
		case problem.Has(err, pgoutput.ErrText):
			return err
		case err != nil:
			r.se.comp.Log.Warn("reading rows beside the stream; it is tried again", "err", err)
			r.se.comp.Progress("rows beside the stream; it is tried again: "+err.Error(), 0, 0)
			r.disconnect()
			pause = 5 * r.se.askEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// step takes what is asked, or reads a chunk of a table, and says for how long
// nothing need be done.
func (r *reloader) step(ctx context.Context) (pause time.Duration, err error) {
	se := r.se
	asked, err := se.out.Asked(ctx)
	if err != nil {
		return 0, err
	}
	ms := se.members.Load()
	pending := ms.loading()
	if len(asked) == 0 && len(pending) == 0 {
		r.disconnect()
		return se.askEvery, nil
	}
	if r.q == nil {
		if r.q, err = se.cfg.connect(ctx); err != nil {
			return 0, err
		}
	}
	if len(asked) > 0 {
		if err := r.take(ctx, ms, asked); err != nil {
			return 0, err
		}
		pending = ms.loading()
	}
	if len(pending) == 0 {
		return se.askEvery, nil
	}
	if stale := ms.staleLoads(); len(stale) > 0 {
		return 0, r.reopen(ctx, stale)
	}
	if err := r.record(ctx, ms, pending); err != nil {
		return 0, err
	}
	began := time.Now()
	for _, id := range pending {
		read, err := r.chunk(ctx, ms, id, len(pending)-1)
		if err != nil {
			return 0, err
		}
		if read {
			return time.Since(began) / 2, nil // the database has others to serve
		}
	}
	return se.askEvery, r.forget(ctx)
}

// forget has the stream forget what is visible.
func (r *reloader) forget(ctx context.Context) error {
	var text string
	if err := r.q.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return classify("looking what is visible", err)
	}
	seen, err := parseSnapshot(text)
	if err == nil {
		_, err = r.meet(ctx, &meeting{seen: seen})
	}
	return err
}

// loading gives the tables that are to be read, in order of name.
func (ms *members) loading() []uint32 {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	var ids []uint32
	for id, m := range ms.of {
		if m.Load != nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b uint32) int { return cmp.Compare(ms.of[a].String(), ms.of[b].String()) })
	return ids
}

// take begins what is asked for.
func (r *reloader) take(ctx context.Context, ms *members, asked map[string][]byte) error {
	se := r.se
	// What the catalogue says now: what is missing of a table is to be known before
	// it is read.
	if err := se.compareMembers(ctx, r.q, ms); err != nil {
		return err
	}
	head, err := readHead(ctx, r.q)
	if err != nil {
		return err
	}
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(asked)) {
		ask, err := ParseReload(asked[id])
		if err != nil {
			if !r.said[id] {
				se.comp.Log.Error("a request is left to a newer version", "err", err)
			}
			r.said[id] = true
			continue
		}
		var ids []uint32
		for oid, m := range ms.of {
			if slices.ContainsFunc(ask.Tables, func(p string) bool { return matches(p, m.String()) }) && !m.has(whyDropped) {
				load := &tableLoad{From: head, Where: ask.Where, Sweep: ask.Sweep, Since: time.Now().UTC().Truncate(time.Second)}
				if m.Load != nil { // what is under way is begun again
					load.Stale, load.Sweep = m.Load.Stale, ask.Sweep || m.Load.Sweep
					if m.Load.Where != load.Where {
						load.Where = ""
					}
				}
				m.Load = load
				ids = append(ids, oid)
			}
		}
		if len(ids) == 0 {
			se.comp.Log.Warn("no captured table is to be read anew", "tables", strings.Join(ask.Tables, ", "))
		} else {
			se.comp.Log.Info("tables are read anew", "tables", strings.Join(ask.Tables, ", "), "number", len(ids))
		}
		se.note(ms, ids)
		se.out.Answer(id)
	}
	se.say(ms)
	return nil
}

// staleLoads gives those that wait for the stream to be opened anew.
func (ms *members) staleLoads() (loads []*tableLoad) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for _, m := range ms.of {
		if m.Load != nil && m.Load.Stale {
			loads = append(loads, m.Load)
		}
	}
	return loads
}

// staleNoMore notes that the stream is opened anew.
func (se *session) staleNoMore(loads []*tableLoad) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	var ids []uint32
	for id, m := range ms.of {
		if m.Load != nil && slices.Contains(loads, m.Load) {
			m.Load.Stale = false
			ids = append(ids, id)
		}
	}
	se.note(ms, ids)
}

// reopen has the stream opened anew once all that runs now has ended and is
// acknowledged: the server does not decode it again (C4). That ends ctx.
func (r *reloader) reopen(ctx context.Context, loads []*tableLoad) error {
	if err := r.awaitOlder(ctx); err != nil {
		return err
	}
	head, err := readInserted(ctx, r.q)
	if err == nil {
		err = r.flush(ctx, head)
	}
	if err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		slot, err := readSlot(ctx, r.q, r.se.cfg.Slot)
		if err != nil {
			return err
		}
		if slot == nil {
			return ErrSlotMissing.New("slot %q went away while streaming", r.se.cfg.Slot)
		}
		at, err := slot.confirmedLSN()
		if err != nil {
			return err
		}
		if at >= head {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	_, err = r.meet(ctx, &meeting{reopen: loads})
	return err
}

// awaitOlder waits until the transactions that run now have ended.
func (r *reloader) awaitOlder(ctx context.Context) error {
	return awaitOlder(ctx, r.q, func(who string) error {
		r.se.comp.Progress("rows beside the stream: waiting for "+cmp.Or(who, "the transactions that run now")+" to end", 0, 0)
		return r.forget(ctx)
	})
}

// record has the stream keep the changes of tables from now on, and waits until all
// that was delivered before is visible.
func (r *reloader) record(ctx context.Context, ms *members, ids []uint32) error {
	loads, meets := map[uint32]*tableLoad{}, &meeting{}
	ms.mu.Lock()
	for _, id := range ids {
		if m := ms.of[id]; m != nil && m.Load != nil && m.Load != r.recorded[id] {
			loads[id] = m.Load
			if m.Load.Sweep && m.Load.Before == nil {
				// Rows that went before it was asked for came before Before, too.
				meets.sweeps, meets.after = append(meets.sweeps, m.Load), max(meets.after, m.Load.From)
			}
		}
	}
	ms.mu.Unlock()
	if len(loads) == 0 {
		return nil
	}
	meets.record = slices.Sorted(maps.Keys(loads))
	if meets.after > 0 {
		if err := r.flush(ctx, meets.after); err != nil {
			return err
		}
	}
	if _, err := r.meet(ctx, meets); err != nil {
		return err
	}
	if err := r.leaveExplained(ctx, ms, loads); err != nil {
		return err
	}
	if err := r.awaitOlder(ctx); err != nil {
		return err
	}
	maps.Copy(r.recorded, loads)
	return nil
}

// leaveExplained gives up loads of tables that were emptied whole: the stream has said
// so by now.
func (r *reloader) leaveExplained(ctx context.Context, ms *members, loads map[uint32]*tableLoad) error {
	se, meets := r.se, &meeting{}
	ms.mu.Lock()
	for id, load := range loads {
		m := ms.of[id]
		if m == nil || m.Load != load || !m.explained(se.truncatedBy(id)) {
			continue
		}
		m.Missing = slices.DeleteFunc(slices.Clone(m.Missing), load.mends)
		m.Load = nil
		delete(loads, id)
		meets.leave = append(meets.leave, id)
	}
	if len(meets.leave) > 0 {
		se.note(ms, meets.leave)
		se.say(ms)
	}
	ms.mu.Unlock()
	if len(meets.leave) == 0 {
		return nil
	}
	_, err := r.meet(ctx, meets)
	return err
}

// meet waits until the stream has done what m says.
func (r *reloader) meet(ctx context.Context, m *meeting) (verdict, error) {
	m.ends = make(chan verdict, 1)
	select {
	case r.se.meetings <- m:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case v := <-m.ends:
		return v, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// chunk reads the next rows of a table and has them sent, unless it has to wait.
func (r *reloader) chunk(ctx context.Context, ms *members, id uint32, others int) (read bool, err error) {
	se, more := r.se, ""
	if others > 0 {
		more = fmt.Sprintf("; and %d more tables", others)
	}
	ms.mu.Lock()
	m := ms.of[id]
	if m == nil || m.Load == nil {
		ms.mu.Unlock()
		return false, nil
	}
	load, name, after := m.Load, m.String(), m.Load.After
	rows, of := load.Rows, load.Of
	ms.mu.Unlock()
	se.comp.Progress("rows of "+name+" beside the stream"+r.pace.text(load, rows, of)+more, rows, of)
	c, why, err := r.read(ctx, id, name, load, after)
	switch p := problem.Of(err); {
	case p != nil && p.ID == ErrReload.ID: // it would say the same the next time
		se.comp.Log.Error("a table is not read", "table", name, "err", err, "remedy", p.WhatToDo())
		se.endLoad(id, load)
		_, err = r.meet(ctx, &meeting{leave: []uint32{id}})
		return true, err
	case err != nil:
		return false, err
	case why != "":
		se.comp.Progress("rows of "+name+" beside the stream"+more+"; waiting: "+why, rows, of)
		return false, nil
	}
	ms.mu.Lock()
	load.Of = max(load.Of, c.of)
	ms.mu.Unlock()
	v, err := r.meet(ctx, &meeting{chunk: c})
	if err == nil && v == again {
		se.comp.Log.Info("rows are read again, since their table was altered", "table", name)
	}
	return true, err
}

// insertedSQL is an LSN at or behind the commits of all that is visible, and what
// tells whether it is where the first record behind a page's head would begin.
const insertedSQL = `SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END - '0/0')::bigint,
  current_setting('wal_block_size')::bigint, pg_size_bytes(current_setting('wal_segment_size'))`

func readInserted(ctx context.Context, q *pgx.Conn) (lsn, error) {
	var at, block, segment int64
	if err := q.QueryRow(ctx, insertedSQL).Scan(&at, &block, &segment); err != nil {
		return 0, classify("asking how far the server's log is", err)
	}
	return inserted(at, block, segment), nil
}

// inserted is the end of the last record, given where the next would begin: behind
// the head of its page, when that is the first of it (SizeOfXLogShortPHD and
// SizeOfXLogLongPHD in src/include/access/xlog_internal.h). The stream gets as far
// as the end.
func inserted(at, block, segment int64) lsn {
	switch {
	case at%segment == 40:
		return lsn(at - 40)
	case at%block == 24:
		return lsn(at - 24)
	}
	return lsn(at)
}

// read reads rows behind a key, or says why it has to wait. An error of class Reject
// is for good.
func (r *reloader) read(ctx context.Context, id uint32, name string, load *tableLoad, after []string) (c *chunk, why string, err error) {
	t, err := tableByID(ctx, r.q, id)
	if err != nil {
		return nil, "", err
	}
	if t == nil {
		return nil, "", ErrReload.New("%s does not exist any more", name)
	}
	exec := func(sql string) error {
		_, err := r.q.Exec(ctx, sql)
		return classify("reading "+name+" anew", err)
	}
	if err := exec("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '" + lockWait + "'"); err != nil {
		return nil, "", err
	}
	defer func() {
		if r.q != nil && !r.q.IsClosed() {
			_ = exec("ROLLBACK")
		}
	}()
	// Before the snapshot is taken, so that it sees the table as it is while it is
	// locked (PostgreSQL documentation, LOCK; C5).
	_, err = r.q.Exec(ctx, "LOCK TABLE "+only(t)+t.sql()+" IN ACCESS SHARE MODE")
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "55P03": // lock_not_available
		return nil, "it is locked", nil
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000"): // undefined_table, invalid_schema_name
		return nil, "it was dropped or renamed", nil
	case err != nil:
		return nil, "", classify("locking "+name, err)
	}
	was := t.String()
	if t, err = tableByID(ctx, r.q, id); err != nil {
		return nil, "", err
	}
	if t == nil || t.String() != was {
		return nil, "it was dropped or renamed", nil
	}
	pub, err := readPublication(ctx, r.q, r.se.cfg.Publication)
	if err != nil {
		return nil, "", err
	}
	selected, named := r.se.cfg.selects(t.schema, t.name)
	p := pub[t.String()]
	switch {
	case !selected:
		return nil, "", ErrReload.New("%s is not among `tables`", t)
	case !t.captured():
		return nil, "", ErrReload.New("%s has no key", t)
	case p == nil:
		return nil, "", ErrReload.New("%s is not in publication %q: what changes while it is read would be missing", t, r.se.cfg.Publication)
	}
	t.named = named
	if e, err := r.se.leaves(ctx, r.q, t); err != nil {
		return nil, "", err
	} else if e != nil {
		return nil, "", ErrReload.New("%s", e.Text).WithRemedy("%s", e.WhatToDo())
	}
	cols, notNull, err := columnsOf(ctx, r.q, id)
	if err != nil {
		return nil, "", err
	}
	rel, err := r.se.cfg.newRelation(ctx, r.q, t, p.published(cols), notNull)
	if err != nil {
		return nil, "", err
	}
	if rel.Text() && r.se.binary {
		return nil, "", pgoutput.ErrText.New("a column of %s", t)
	}
	if was := r.rels[id]; was != nil && reflect.DeepEqual(was, rel) {
		rel = was // the same shape keeps its Table
	}
	r.rels[id] = rel
	c = &chunk{id: id, load: load, rel: rel}
	c.of = max(t.rows, 0)
	var text string
	if err := r.q.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return nil, "", classify("reading "+name+" anew", err)
	}
	if c.seen, err = parseSnapshot(text); err != nil {
		return nil, "", err
	}
	if c.head, err = readInserted(ctx, r.q); err != nil {
		return nil, "", err
	}
	if err := r.rowsOf(ctx, c, t, p.filter, after); err != nil {
		return nil, "", err
	}
	if !r.q.IsClosed() {
		err = exec("COMMIT")
	} else { // it was cut off
		r.q, err = r.se.cfg.connect(ctx)
	}
	if err != nil {
		return nil, "", err
	}
	return c, "", r.flush(ctx, c.head)
}

const flushedSQL = "SELECT CASE WHEN pg_is_in_recovery() THEN true ELSE pg_current_wal_flush_lsn() >= $1::text::pg_lsn END"

// flush has the server write its log up to head, which it sends not before. Where only
// rows were read nothing else does: what reading writes (it prunes pages) is no commit.
// The end of a transaction that has an id is (PostgreSQL documentation, "Asynchronous
// Commit"); it changes nothing, and nothing of it is sent.
func (r *reloader) flush(ctx context.Context, head lsn) error {
	var flushed bool
	err := r.q.QueryRow(ctx, flushedSQL, head.String()).Scan(&flushed)
	if err == nil && !flushed {
		_, err = r.q.Exec(ctx, "SELECT pg_current_xact_id()")
	}
	return classify("having the server write its log", err)
}

func only(t *tableInfo) string {
	if t.partitioned {
		return "" // its partitions, too
	}
	return "ONLY "
}

// chunkSQL reads n rows behind a key: the columns that are captured, and those of
// the key as text.
func chunkSQL(t *tableInfo, rel *pgoutput.Relation, filters []string, behind bool, n int) string {
	var cols, key, params []string
	for i := range rel.Cells {
		cols = append(cols, cellSQL(rel, i))
	}
	for i, at := range rel.KeyCells() {
		key, params = append(key, cols[at]), append(params, fmt.Sprintf("$%d", i+1))
	}
	for _, k := range key {
		cols = append(cols, "format('%s', "+k+")")
	}
	var where []string
	if behind {
		where = append(where, fmt.Sprintf("(%s) > (%s)", strings.Join(key, ", "), strings.Join(params, ", ")))
	}
	for _, f := range filters {
		where = append(where, "("+f+")")
	}
	sql := "SELECT " + strings.Join(cols, ", ") + " FROM " + only(t) + t.sql()
	if len(where) > 0 {
		sql += " WHERE " + strings.Join(where, " AND ")
	}
	return sql + fmt.Sprintf(" ORDER BY %s LIMIT %d", strings.Join(key, ", "), n)
}

// rowsOf reads the rows of c. Beyond chunkAtMost octets it breaks off, which closes
// the connection.
func (r *reloader) rowsOf(ctx context.Context, c *chunk, t *tableInfo, filter *string, after []string) error {
	n := cmp.Or(r.rows[c.id], r.se.chunkRows)
	var filters []string
	if filter != nil {
		filters = append(filters, *filter)
	}
	if c.load.Where != "" {
		filters = append(filters, c.load.Where)
	}
	kind, form := byte('t'), int16(pgx.TextFormatCode)
	if r.se.binary {
		kind, form = 'b', pgx.BinaryFormatCode
	}
	columns, key := len(c.rel.Cells), c.rel.KeyCells()
	forms := slices.Repeat([]int16{form}, columns+len(key))
	for i := range key {
		forms[columns+i] = pgx.TextFormatCode
	}
	var params [][]byte
	for _, k := range after {
		params = append(params, []byte(k))
	}
	res := r.q.PgConn().ExecParams(ctx, chunkSQL(t, c.rel, filters, after != nil, n), params, nil, nil, forms)
	size, cut := 0, false
	for res.NextRow() {
		values := res.Values()
		row := make([]pgoutput.Cell, columns)
		for i := range row {
			if row[i].Kind = 'n'; values[i] != nil {
				row[i] = pgoutput.Cell{Kind: kind, Data: values[i]}
			}
		}
		msg := pgoutput.AppendInsert(nil, c.id, row)
		_, row, _, err := pgoutput.Tuples(msg, columns) // spans of msg
		if err != nil {
			return ErrProtocol.New("reading %s anew: %w", t, err)
		}
		c.rows = append(c.rows, chunkRow{key: string(pgoutput.AppendKey(nil, row, key)), cells: row, msg: msg})
		c.last = c.last[:0]
		for i := range key {
			c.last = append(c.last, string(values[columns+i]))
		}
		if size += len(msg); size >= chunkAtMost {
			cut = true
			break
		}
	}
	if cut {
		closeConn(r.q)
	} else if _, err := res.Close(); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "42501" || c.load.Where != "" && (strings.HasPrefix(pg.Code, "42") || strings.HasPrefix(pg.Code, "22"))) {
			return ErrReload.New("reading %s: %s (SQLSTATE %s)", t, pg.Message, pg.Code)
		}
		return classify(fmt.Sprintf("reading %s anew", t), err)
	}
	c.end = !cut && len(c.rows) < n
	if len(c.rows) > 0 {
		per := max(size/len(c.rows), 1)
		r.rows[c.id] = min(max(chunkBytes/per, 1), r.se.chunkRows*4)
	}
	return nil
}

// loaded notes that a chunk is read, with the batch or checkpoint that follows, and
// reports whether its table is, and before which position came what is to end then.
func (se *session) loaded(c *chunk) (end bool, before *change.Pos, err error) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.of[c.id]
	if m == nil || m.Load != c.load { // it was asked for once more
		return false, nil, nil
	}
	l := m.Load
	l.Rows += int64(len(c.rows))
	switch {
	case !c.end:
		l.After = slices.Clone(c.last)
	case l.Again:
		l.After, l.Again = nil, false
		se.comp.Log.Info("a table is read once more, since rows got other keys", "table", m.String())
	default:
		end = true
		m.Load = nil
		if l.Sweep {
			at, err := change.ParsePos(l.Before)
			if err != nil {
				return false, nil, ErrProtocol.New("what is noted of %s: before %x: %w", m, l.Before, err)
			}
			before = &at
			se.swept(ms, m)
		}
		if l.Where == "" {
			m.reloaded(l.From, l.Sweep)
		}
		se.comp.Log.Info("a table was read", "table", m.String(), "rows", l.Rows, "seconds", int(time.Since(l.Since).Seconds()))
		se.comp.Progress("", 0, 0)
		se.say(ms)
	}
	se.note(ms, []uint32{c.id})
	return end, before, nil
}

// begun notes that changes of tables that are to be swept are kept from at on.
func (se *session) begun(loads []*tableLoad, at change.Pos) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	for id, m := range ms.of {
		if m.Load != nil && slices.Contains(loads, m.Load) {
			m.Load.Before = change.AppendPos(nil, at)
			se.note(ms, []uint32{id})
		}
	}
}

// swept forgets tables that had m's name and were dropped, or have another by now:
// their rows end with m's.
func (se *session) swept(ms *members, m *member) {
	for id, o := range ms.of {
		if o == m {
			continue
		}
		if o.String() == m.String() && (o.has(whyDropped) || o.has(whyLeft)) {
			delete(ms.of, id)
			se.note(ms, []uint32{id})
			continue
		}
		// What was renamed lacks its rows now in its own topic alone, if at all.
		at := slices.IndexFunc(o.Missing, func(x missing) bool { return x.Why == whyRenamed && x.What == m.String() })
		if at < 0 {
			continue
		}
		if o.Missing = slices.Clone(o.Missing); o.Missing[at].Reloaded {
			o.Missing = slices.Delete(o.Missing, at, at+1)
		} else {
			o.Missing[at].Why, o.Missing[at].After = whyNew, 0
		}
		se.note(ms, []uint32{id})
	}
}

// beginLoad notes that the rows of all tables are to be read, as of at.
func (se *session) beginLoad(at lsn) (loads map[uint32]*tableLoad) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	now := time.Now().UTC().Truncate(time.Second)
	loads = map[uint32]*tableLoad{}
	for id, m := range ms.of {
		if m.Out {
			continue
		}
		m.Missing = append(slices.Clone(m.Missing), missing{Why: whyNew, Until: at, At: now})
		m.Load = &tableLoad{From: at, Since: now}
		loads[id] = m.Load
	}
	se.note(ms, slices.Collect(maps.Keys(loads)))
	se.say(ms)
	return loads
}

// tableLoaded notes, with the batch or checkpoint that follows, that the initial load
// has read a table, unless more of it came since.
func (se *session) tableLoaded(id uint32, load *tableLoad) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.of[id]; m != nil && m.Load != nil && m.Load == load {
		m.reloaded(load.From, false)
		m.Load = nil
		se.note(ms, []uint32{id})
		se.say(ms)
	}
}

// endLoad gives up a table that cannot be read.
func (se *session) endLoad(id uint32, load *tableLoad) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.of[id]; m != nil && m.Load == load {
		m.Load = nil
		se.note(ms, []uint32{id})
		se.say(ms)
	}
	se.comp.Failed(problem.Reject.String(), ErrReload.ID)
	se.comp.Progress("", 0, 0)
}

// readOnceMore is for a table in which a row got another key.
func (se *session) readOnceMore(id uint32) {
	ms := se.members.Load()
	ms.mu.Lock()
	defer ms.mu.Unlock()
	if m := ms.of[id]; m != nil && m.Load != nil && !m.Load.Again {
		m.Load.Again = true
		se.note(ms, []uint32{id})
	}
}

// reloaded takes off what is missing of a table that was read whole since from. What
// was deleted while its changes were missing stays in its topic, unless it was swept.
func (m *member) reloaded(from lsn, sweep bool) {
	m.Missing = slices.DeleteFunc(slices.Clone(m.Missing), func(x missing) bool {
		return x.mendedBy(from) || sweep && x.sweptBy(from)
	})
	for i := range m.Missing {
		if x := &m.Missing[i]; x.Until != 0 && x.Until <= from || x.Why == whyRenamed {
			x.Reloaded = true
		}
	}
}

// PlanReload gives what the source is to be asked to read the tables that patterns
// select anew, and of each about how many rows that are; -1: not known. It looks
// whether they are published, and whether where can be asked of each.
func (s *Source) PlanReload(ctx context.Context, patterns []string, where string, sweep bool) (ask []byte, rows map[string]int64, err error) {
	q, err := s.cfg.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer closeConn(q)
	tables, _, err := s.cfg.selectTables(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	pub, err := readPublication(ctx, q, s.cfg.Publication)
	if err != nil {
		return nil, nil, err
	}
	if pub == nil {
		return nil, nil, s.cfg.notThere("does not exist")
	}
	rows = map[string]int64{}
	for _, p := range patterns {
		found := false
		for _, t := range tables {
			if !matches(p, t.String()) {
				continue
			}
			if pub[t.String()] == nil {
				if p == t.String() {
					return nil, nil, ErrReload.New("%s is not in publication %q", t, s.cfg.Publication).
						WithRemedy("ALTER PUBLICATION %s ADD TABLE %s, and reload it then.", pgx.Identifier{s.cfg.Publication}.Sanitize(), t.sql())
				}
				continue
			}
			found = true
			if rows[t.String()], err = about(ctx, q, t, where); err != nil {
				return nil, nil, err
			}
		}
		if !found {
			return nil, nil, ErrReload.New("no captured table is %q", p).
				WithRemedy("Name tables as schema.table, with * for any run of characters, as `tables` of source %s selects them.", s.name)
		}
	}
	form := 1
	if sweep {
		form = reloadForm
	}
	ask, err = json.Marshal(Reload{Form: form, Tables: slices.Sorted(maps.Keys(rows)), Where: where, Sweep: sweep})
	return ask, rows, err
}

// about is how many rows of a table there are, as the server guesses.
func about(ctx context.Context, q *pgx.Conn, t *tableInfo, where string) (int64, error) {
	if where == "" {
		return t.rows, nil
	}
	var text []byte
	var plans []struct {
		Plan struct {
			Rows int64 `json:"Plan Rows"`
		}
	}
	err := q.QueryRow(ctx, "EXPLAIN (FORMAT JSON) SELECT FROM "+only(t)+t.sql()+" WHERE ("+where+")").Scan(&text)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "42") || strings.HasPrefix(pg.Code, "22")) {
		return 0, ErrReload.New("the condition %q on %s: %s (SQLSTATE %s)", where, t, pg.Message, pg.Code).WithRemedy("Correct --where.")
	}
	if err != nil {
		return 0, classify("asking how many rows there are", err)
	}
	if err := json.Unmarshal(text, &plans); err != nil || len(plans) == 0 {
		return -1, nil //nolint:nilerr // it is a guess
	}
	return plans[0].Plan.Rows, nil
}
