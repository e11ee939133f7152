// Source: one run of capture, from connecting to the end of the stream.

package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/obs"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/pipeline"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// Source implements pipeline.Source.
type Source struct {
	cfg  Config
	name string
	comp *obs.Component

	// form is nil to choose by the types of the columns, else whether to
	// stream in binary: set by a run for the next one. Runs do not overlap.
	form *bool
	// proof is what was delivered in binary of a transaction that can only be
	// read on in text: it came again as it was, told by its hash, in the run
	// before. The octets differ in text, and their number of changes does not.
	proof *txPart

	batchChanges int // in one batch, at most
	slotPatience time.Duration
	ladderEvery  time.Duration // how often it asks the server how far it is
	keepEvery    time.Duration // how often keep looks after what is published
	compareEvery time.Duration // how often at most it compares the tables with what is noted
	askEvery     time.Duration // how often it looks for what is asked of it
	chunkRows    int           // that are read at once of a table of which nothing is known
}

var _ pipeline.Source = (*Source)(nil)

// Run implements pipeline.Source.
func (s *Source) Run(ctx context.Context, out pipeline.SourceOutlet) error {
	err := s.run(ctx, out)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was told to end: what broke on the way is of no interest
	}
	return err
}

// session is what one run holds.
type session struct {
	*Source
	out    pipeline.SourceOutlet
	q      *pgx.Conn
	sys    *system
	srv    *server
	tables []*tableInfo
	pub    map[string]*publishedTable
	binary bool
	// nextXID is the transaction id that the server would give out, about: those
	// of the stream have no epoch.
	nextXID decimal

	publication decimal    // its OID
	published   lsn        // the server had not written more when it was there
	lost        chan error // one, when it is not there any more

	members   atomic.Pointer[members] // nil at first
	comparing sync.Mutex
	meetings  chan *meeting // of who reads rows beside the stream with it

	truncMu   sync.Mutex
	truncated map[uint32][]uint32 // tables, and the last transactions that emptied them whole

	topicLeft []*tableInfo // tables without a topic, when it began
	passedMu  sync.Mutex
	passed    passedOver

	known   atomic.Pointer[map[uint32]bool] // their OIDs
	unknown atomic.Bool                     // the stream told of another

	created  bool // this run made the slot
	base     lsn  // its consistent point, when created
	snapshot bool // q is in a transaction under the exported snapshot

	sock   *socket
	ack    *acker
	ladder *ladder
}

func (s *Source) run(ctx context.Context, out pipeline.SourceOutlet) error {
	s.comp.Is(obs.Starting, "connecting")
	q, err := s.cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(q)
	srv, err := readServer(ctx, q)
	if err != nil {
		return err
	}
	if err := srv.check(); err != nil {
		return err
	}
	r, err := s.cfg.connectReplication(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	se := &session{Source: s, out: out, q: q, srv: srv, nextXID: srv.nextXID, lost: make(chan error, 1), meetings: make(chan *meeting, 1)}
	if se.sys, err = identify(ctx, r); err != nil {
		return err
	}
	slot, err := readSlot(ctx, q, s.cfg.Slot)
	if err != nil {
		return err
	}
	if slot != nil {
		if err := slot.check(s.cfg.Slot); err != nil {
			return err
		}
	}
	if err := se.chooseTables(ctx, slot == nil); err != nil {
		return err
	}
	if slot == nil {
		if err := se.createSlot(ctx, r); err != nil {
			return err
		}
	}
	rels, err := se.relations(ctx)
	if err != nil {
		return err
	}
	se.binary = true
	for _, rel := range rels {
		se.binary = se.binary && !rel.Text()
	}
	if s.form != nil {
		se.binary = *s.form
	}
	var history []byte
	if se.sys.timeline > 1 {
		h, err := pglogrepl.TimelineHistory(ctx, r.PgConn, se.sys.timeline)
		if err != nil {
			return classify("reading the timeline's history", err)
		}
		history = h.Content
	}
	// From here on the slot is ours: START_REPLICATION is the lock (A4). At
	// 0/0 it begins at confirmed_flush.
	if err := se.start(ctx, r, srv.senderTimeout); err != nil {
		return err
	}
	defer se.ack.close()
	defer se.sock.close()
	defer se.ladder.close()
	return se.follow(ctx, rels, history)
}

// follow goes on from the last position, or loads first. rels are the captured
// tables.
func (se *session) follow(ctx context.Context, rels []*pgoutput.Relation, history []byte) error {
	p, confirmed, err := se.resume(ctx, history)
	if err != nil {
		return err
	}
	if err := se.beginMembers(ctx); err != nil {
		return err
	}
	tables := make([]*change.Table, len(rels))
	for i, r := range rels {
		tables[i] = r.Table
	}
	if err := se.out.Prepare(ctx, tables); err != nil { // the topic of an empty table, too
		return err
	}
	if p, err = se.begin(ctx, p, confirmed); err != nil {
		return err
	}
	proven := p.Tx != nil && se.proof != nil && *p.Tx == *se.proof && !se.binary
	if p.Tx != nil && p.Tx.Binary != se.binary && !proven {
		se.form = &p.Tx.Binary
		return pgoutput.ErrText.New("a transaction was delivered in part with binary = %v", p.Tx.Binary)
	}
	p.Timeline, p.Publication = se.sys.timeline, se.publication
	se.comp.Is(obs.Running, "")
	st := newStream(se, *p)
	st.proven = proven
	stop := se.startReload(ctx)
	err = st.run(ctx)
	stop()
	if problem.Has(err, pgoutput.ErrText) {
		text := false
		se.form, se.proof = &text, st.repeated
	}
	return err
}

// resume gives the last position, nil when there is none, once it is known that
// all after it is still to come, and what the slot has confirmed.
func (se *session) resume(ctx context.Context, history []byte) (p *position, confirmed lsn, err error) {
	token, err := se.out.Resume(ctx)
	if err != nil {
		return nil, 0, err
	}
	if p, err = parsePosition(token); err != nil {
		return nil, 0, err
	}
	confirmed = se.base
	if !se.created {
		slot, err := readSlot(ctx, se.q, se.cfg.Slot)
		if err != nil {
			return nil, 0, err
		}
		if slot == nil {
			return nil, 0, ErrSlotMissing.New("slot %q went away while streaming", se.cfg.Slot)
		}
		if confirmed, err = slot.confirmedLSN(); err != nil {
			return nil, 0, err
		}
	}
	if p == nil {
		return nil, confirmed, nil
	}
	err = checkPosition(p, se.sys, se.cfg.Slot, confirmed, history)
	if se.created {
		// Capture had begun and the slot is gone (invariant 3). The one that
		// we have just made goes again, so that the next start finds the same.
		if err == nil || problem.Has(err, ErrGap) {
			err = ErrSlotMissing.New("slot %q does not exist, the last position in Kafka is %s: changes committed from %s to %s may be missing", se.cfg.Slot, p.LSN, p.LSN, confirmed).
				WithRemedy("Start over with a new load: delete the topics %s.* and _tallywire.positions.%s, then start again; or capture under another source name. (Deleting the position alone leaves rows in the topics that were deleted meanwhile.)", se.name, se.name)
		}
		return nil, 0, errors.Join(err, se.dropSlot(ctx))
	}
	if err == nil {
		err = se.checkWritten(ctx, p)
	}
	if err == nil && p.Publication != 0 && p.Publication != se.publication {
		err = se.cfg.notThere("is not the one that was captured through up to %s", p.LSN)
	}
	if err != nil {
		return nil, 0, err
	}
	se.ack.advance(p.LSN)
	return p, confirmed, nil
}

// begin makes the first position durable, and loads where that is not done yet:
// then streaming starts at the position that it gives.
func (se *session) begin(ctx context.Context, p *position, confirmed lsn) (*position, error) {
	start := position{System: se.sys.id, Timeline: se.sys.timeline, Slot: se.cfg.Slot, LSN: confirmed, Publication: se.publication}
	switch {
	case p == nil && se.cfg.Load == LoadNever:
		return &start, se.out.Checkpoint(ctx, start.resume())
	case (p == nil || p.State == loading) && !se.snapshot:
		// The snapshot of the slot's beginning is gone. What was sent is as of then,
		// and the rest is read beside the stream; all, when no table is noted: nothing
		// was sent, or an older version was loading.
		if len(se.members.Load().loading()) == 0 {
			se.beginLoad(confirmed)
		}
		return &start, se.out.Checkpoint(ctx, start.resume())
	case p == nil:
		start.State, start.Attempt = loading, 1
		loads := se.beginLoad(confirmed)
		if err := se.out.Checkpoint(ctx, start.resume()); err != nil {
			return nil, err
		}
		last, err := se.load(ctx, start, loads)
		if err != nil {
			return nil, err
		}
		start.State, start.Attempt = "", 0
		se.tableLoaded(last, loads[last])
		return &start, se.out.Checkpoint(ctx, start.resume())
	}
	return p, nil
}

// chooseTables decides what is captured and publishes it.
func (se *session) chooseTables(ctx context.Context, fresh bool) error {
	tables, left, err := se.cfg.selectTables(ctx, se.q)
	if err != nil {
		return err
	}
	var named []*tableInfo
	for _, t := range left {
		if t.noTopic != nil && !fresh { // others may have theirs: claim
			se.topicLeft = append(se.topicLeft, t)
		} else if t.named {
			named = append(named, t)
		}
	}
	if len(named) > 0 {
		return leftError(named)[0]
	}
	for _, e := range leftError(left) {
		se.comp.Log.Warn("tables without a key or a topic are not captured", "code", e.ID, "tables", e.Text, "remedy", e.WhatToDo())
	}
	if text, remedy := passed(tables, left); text != "" {
		se.comp.Log.Info("what looks like a secret is not captured", "what", text, "remedy", remedy)
	}
	if len(tables) == 0 {
		if i := slices.IndexFunc(left, func(t *tableInfo) bool { return t.noTopic != nil }); i >= 0 {
			return left[i].noTopic
		}
		return ErrNoTables.New("no table with a key matches %s", strings.Join(se.cfg.Tables, ", "))
	}
	se.published = se.sys.flushed
	cuts, err := se.cfg.cuts(ctx, se.q, tables)
	if err != nil {
		return err
	}
	if se.pub, err = se.cfg.ensurePublication(ctx, se.q, tables, cuts, fresh); err != nil {
		return err
	}
	if err := se.cfg.narrowed(se.pub, tables, cuts); err != nil {
		return err
	}
	if text, remedy := se.cfg.sent(se.pub, tables, cuts); text != "" {
		se.comp.Log.Warn("the publication has columns that are to be left out: they are passed over", "columns", text, "remedy", remedy)
	}
	if se.publication, err = se.cfg.publicationID(ctx, se.q); err != nil {
		return err
	}
	lacks, sql := se.cfg.lacking(se.pub, tables, cuts)
	se.tables = slices.DeleteFunc(tables, func(t *tableInfo) bool { return slices.Contains(lacks, t) })
	if len(lacks) > 0 && len(se.tables) == 0 {
		return se.cfg.notIn(lacks, sql)
	}
	return nil // the others are said (beginMembers)
}

// relations describes the captured tables as they are now (or at the snapshot).
func (se *session) relations(ctx context.Context) ([]*pgoutput.Relation, error) {
	var rels []*pgoutput.Relation
	for _, t := range se.tables {
		cols, notNull, err := columnsOf(ctx, se.q, t.id)
		if err != nil {
			return nil, err
		}
		r, err := se.cfg.newRelation(ctx, se.q, t, se.pub[t.String()].published(cols), notNull)
		if err != nil {
			return nil, err
		}
		rels = append(rels, r)
	}
	return rels, nil
}

// createSlot makes the slot, permanent and without two_phase (B5), and
// puts q under its exported snapshot.
func (se *session) createSlot(ctx context.Context, r *replication) error {
	const doing = "making the slot"
	se.comp.Is(obs.Starting, doing+"; waiting for the transactions that run now to end")
	snapshot := "EXPORT_SNAPSHOT"
	if se.cfg.Load == LoadNever {
		snapshot = "NOEXPORT_SNAPSHOT"
	}
	stop := se.whileSlotIsMade(ctx, r.PID(), doing)
	within, cancel := context.WithTimeout(ctx, se.slotPatience)
	res, err := pglogrepl.CreateReplicationSlot(within, r.PgConn, `"`+se.cfg.Slot+`"`, "pgoutput",
		pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication, SnapshotAction: snapshot})
	cancel()
	who := stop()
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		who = cmp.Or(who, "transactions of nobody that could be seen")
		return ErrSlotWait.New("slot %q could not be made within %s: it waited for %s to end", se.cfg.Slot, se.slotPatience, who)
	}
	if err != nil {
		return classify(fmt.Sprintf("making slot %q", se.cfg.Slot), err)
	}
	at, err := pglogrepl.ParseLSN(res.ConsistentPoint)
	if err != nil {
		return ErrProtocol.New("consistent point %q: %w", res.ConsistentPoint, err)
	}
	se.created, se.base = true, lsn(at)
	if se.cfg.Load == LoadNever {
		return nil
	}
	// The snapshot lives until the next command on r.
	_, err = se.q.Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	if err == nil {
		_, err = se.q.Exec(ctx, "SET TRANSACTION SNAPSHOT '"+strings.ReplaceAll(res.SnapshotName, "'", "''")+"'")
	}
	se.snapshot = err == nil
	return classify("taking the slot's snapshot", err)
}

// dropSlot gives up the stream and the slot that this run made.
func (se *session) dropSlot(ctx context.Context) error {
	se.sock.close()
	closeConn(se.q) // it is in a transaction
	q, err := se.cfg.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(q)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := q.Exec(ctx, "SELECT pg_drop_replication_slot($1)", se.cfg.Slot)
		err = classify(fmt.Sprintf("dropping slot %q again", se.cfg.Slot), err)
		if !problem.Has(err, ErrSlotInUse) { // our walsender has not ended yet
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// start begins to stream; from then on the connection is the socket's.
func (se *session) start(ctx context.Context, r *replication, senderTimeout time.Duration) error {
	pub := strings.ReplaceAll(pgx.Identifier{se.cfg.Publication}.Sanitize(), "'", "''")
	args := []string{"proto_version '1'", "publication_names '" + pub + "'"}
	if se.binary {
		args = append(args, "binary 'true'")
	}
	err := pglogrepl.StartReplication(ctx, r.PgConn, `"`+se.cfg.Slot+`"`, 0, pglogrepl.StartReplicationOptions{PluginArgs: args})
	if err != nil {
		return classify(fmt.Sprintf("streaming from slot %q", se.cfg.Slot), err)
	}
	pid := r.PID()
	h, err := r.Hijack()
	if err != nil {
		return classify("taking over the replication connection", err)
	}
	if se.sock, err = newSocket(h, r); err != nil {
		return errors.Join(classify("reading the replication connection", err), h.Conn.Close())
	}
	// A quarter of the server's patience: it ends a walsender that hears nothing.
	interval := 10 * time.Second
	if senderTimeout > 0 {
		interval = min(interval, max(senderTimeout/4, 10*time.Millisecond))
	}
	se.ack = startAcker(se.sock, se.out.Durable(), interval, se.cfg.IdleInterval)
	se.ladder = startLadder(&se.cfg, se.comp, pid, se.ack, se.keep, se.keepEvery, se.ladderEvery)
	return nil
}

// close ends a connection that was not taken over.
func (r *replication) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = r.Close(ctx) // the server notices either way
}

func closeConn(q *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = q.Close(ctx) // the server notices either way
}
