// The stream: transactions in the order of their commits, cut into batches. One
// goroutine frames: it follows begin and commit, drops what was delivered
// before, counts changes, and puts the octets of rows into batches, which are
// decoded where they go (pgoutput.Framer).

package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/internal/problem"
	"github.com/tallywire/tallywire/sources/postgres/pgoutput"
)

// stream frames what a slot sends.
type stream struct {
	*session
	fr *pgoutput.Framer

	at   position // the last commit boundary; Tx is unused here
	idle lsn      // the server has nothing for us before it
	b    *change.Batch
	size int // octets of the rows in b

	inTx bool
	xid  uint32  // of the transaction
	skip bool    // the transaction was delivered before
	part *txPart // what was delivered of the transaction that comes first
	left uint64  // of it, still to be passed over

	proven   bool    // its hash need not match: it did in the run before, in binary
	repeated *txPart // what came again as it was, while its transaction is under way

	sent     []byte // the last Resume sent and not known to be durable
	lastIdle time.Time

	beside
}

func newStream(se *session, p position) *stream {
	st := &stream{
		session: se, at: p, part: p.Tx, lastIdle: time.Now(),
		fr: pgoutput.NewFramer(malformed),
	}
	st.at.Tx, st.at.State, st.at.Attempt = nil, "", 0
	return st
}

func (st *stream) run(ctx context.Context) error {
	defer func() {
		if st.b != nil {
			st.b.Release()
		}
	}()
	for {
		kind, body, ok, err := st.sock.next()
		if err != nil {
			return classify("reading the replication stream", err)
		}
		if ok {
			if err := st.frame(ctx, kind, body); err != nil {
				return st.explain(err)
			}
			continue
		}
		// Nothing is at hand. A transaction is kept whole when it fits a batch.
		if !st.inTx {
			if err := st.flush(ctx); err != nil {
				return err
			}
			if err := st.advance(ctx); err != nil {
				return err
			}
			if err := st.meet(ctx); err != nil {
				return err
			}
		}
		var meetings <-chan *meeting
		if !st.inTx && st.part == nil && st.waiting == nil {
			meetings = st.meetings
		}
		select {
		case m := <-meetings:
			if err := st.take(ctx, m); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		case err := <-st.ack.err:
			return err
		case err := <-st.lost:
			return err
		case <-st.sock.more:
		}
	}
}

// explain turns what the framer says into a problem.
func (st *stream) explain(err error) error {
	if problem.Of(err) != nil || errors.Is(err, context.Canceled) {
		return err
	}
	return malformed(st.fr.Pos, err)
}

// malformed is for a row that cannot be read, wherever that is found.
func malformed(at change.Pos, err error) error {
	return ErrProtocol.New("reading the transaction at %s: %w", lsn(at.LSN), err)
}

func (st *stream) frame(ctx context.Context, kind byte, body []byte) error {
	switch kind {
	case 'd':
	case 'E':
		err := serverError(body)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42704" { // undefined_object: up to version 17
			return st.cfg.notThere("did not exist when something after %s was committed", st.at.LSN)
		}
		return classify("streaming", err)
	case 'c', 'C', 'Z':
		return classify("streaming", errStreamEnd)
	case 'N', 'S', 'A':
		return nil
	default:
		return ErrProtocol.New("a frame of kind %q in the replication stream", kind)
	}
	switch {
	case len(body) == 18 && body[0] == 'k':
		if end := lsn(binary.BigEndian.Uint64(body[1:])); !st.inTx {
			st.idle = max(st.idle, end)
		}
		if body[17] == 1 {
			st.ack.answer()
		}
		return nil
	case len(body) > 25 && body[0] == 'w':
		return st.message(ctx, body[25:])
	}
	return ErrProtocol.New("%d octets of replication data that are neither WAL nor a keepalive", len(body))
}

// message handles one message of pgoutput.
func (st *stream) message(ctx context.Context, m []byte) error {
	switch m[0] {
	case 'I', 'U', 'D', 'T':
		return st.row(ctx, m)
	case 'B':
		return st.begin(m)
	case 'C':
		return st.commit(ctx, m)
	case 'R':
		return st.describe(ctx, m)
	case 'Y', 'O', 'M': // types are looked up in the catalog; messages are not asked for
		return nil
	}
	return ErrProtocol.New("a message of kind %q from pgoutput", m[0])
}

// begin: final LSN, commit time in µs since 2000, xid.
func (st *stream) begin(m []byte) error {
	if len(m) != 21 || st.inTx {
		return ErrProtocol.New("a Begin of %d octets (inside a transaction: %v)", len(m), st.inTx)
	}
	final := lsn(binary.BigEndian.Uint64(m[1:]))
	st.inTx = true
	pos := change.Pos{System: uint64(st.sys.id), Timeline: uint32(st.sys.timeline), LSN: uint64(final), Kind: change.PosCommit}
	st.xid = binary.BigEndian.Uint32(m[17:])
	st.fr.Begin(st.b, pos, st.xid, int64(binary.BigEndian.Uint64(m[9:]))+pgoutput.EpochUS)
	// A transaction is told by where its commit record begins (invariant 2).
	if st.skip = final < st.at.LSN; st.skip {
		return nil
	}
	if st.part != nil {
		if final != st.part.Final {
			return ErrSplit.New("of the transaction at %s %d changes were delivered, but the next to come is the one at %s", st.part.Final, st.part.Delivered, final)
		}
		st.left = st.part.Delivered
	}
	return nil
}

// commit: flags, LSN of the commit record, its end, time.
func (st *stream) commit(ctx context.Context, m []byte) error {
	if len(m) != 26 || !st.inTx {
		return ErrProtocol.New("a Commit of %d octets (inside a transaction: %v)", len(m), st.inTx)
	}
	if at := binary.BigEndian.Uint64(m[2:]); at != st.fr.Pos.LSN {
		return ErrProtocol.New("a transaction that begins as %s ends as %s", lsn(st.fr.Pos.LSN), lsn(at))
	}
	st.inTx = false
	if st.skip {
		return nil
	}
	if st.left > 0 {
		return ErrSplit.New("of the transaction at %s %d changes were delivered, now it ends after %d", st.part.Final, st.part.Delivered, st.part.Delivered-st.left)
	}
	st.part, st.repeated = nil, nil
	st.at.XID = fullXID(st.xid, st.nextXID)
	st.nextXID = max(st.nextXID, st.at.XID+1)
	st.at.LSN = max(st.at.LSN, lsn(binary.BigEndian.Uint64(m[10:])))
	st.ladder.received.Store(uint64(st.at.LSN))
	if st.waiting != nil || len(st.meetings) > 0 {
		return st.meet(ctx)
	}
	return nil
}

func (st *stream) row(ctx context.Context, m []byte) error {
	if !st.inTx {
		return ErrProtocol.New("a row outside a transaction")
	}
	if st.skip {
		return nil
	}
	if st.left > 0 {
		return st.pass(m)
	}
	if st.b == nil {
		st.b = change.Get()
	}
	if err := st.fr.Append(st.b, m); err != nil {
		return err
	}
	if len(st.recorded) > 0 || m[0] == 'T' {
		if err := st.touch(m); err != nil {
			return err
		}
	}
	st.size += len(m)
	if st.fr.Len() >= st.batchChanges || st.size >= batchBytes {
		return st.flush(ctx)
	}
	return nil
}

// pass counts a change that was delivered before (A9).
func (st *stream) pass(m []byte) error {
	n, err := pgoutput.Count(m)
	if err != nil {
		return err
	}
	if n > st.left {
		return ErrSplit.New("of the transaction at %s %d changes were delivered, now the boundary is inside a message", st.part.Final, st.part.Delivered)
	}
	st.fr.Pass(st.b, m, n)
	if st.left -= n; st.left > 0 {
		return nil
	}
	if !st.proven && hash(st.fr.Hash(st.b)) != st.part.Hash {
		return ErrSplit.New("the first %d changes of the transaction at %s are not those that were delivered", st.part.Delivered, st.part.Final)
	}
	st.repeated = st.part
	return nil
}

// flush sends the batch with the position after it.
func (st *stream) flush(ctx context.Context) error {
	b := st.b
	if b == nil || st.fr.Len() == 0 {
		return nil
	}
	p := st.at
	if st.inTx {
		p.Tx = &txPart{Final: lsn(st.fr.Pos.LSN), Delivered: st.fr.Pos.Ordinal, Hash: hash(st.fr.Hash(b)), Binary: st.binary}
	}
	st.fr.Finish(b)
	b.Resume = p.resume()
	st.sent = slices.Clone(b.Resume)
	st.b, st.size = nil, 0
	return st.out.Send(ctx, b)
}

// advance moves the slot on while nothing of ours changes, so that it does not
// hold the WAL of others: the position first becomes durable, then it is
// acknowledged (B3). Only when nothing is in flight.
func (st *stream) advance(ctx context.Context) error {
	to := max(st.at.LSN, st.idle)
	switch {
	case st.part != nil, uint64(to) <= st.ack.flushed.Load():
		return nil
	case st.sent != nil && !st.ack.isDurable(st.sent):
		return nil
	case time.Since(st.lastIdle) < st.cfg.IdleInterval/2:
		return nil
	}
	st.at.LSN = to
	if err := st.out.Checkpoint(ctx, st.at.resume()); err != nil {
		return err
	}
	st.sent, st.lastIdle = nil, time.Now()
	st.ack.advance(to)
	st.ack.answer()
	return nil
}

// describe takes a Relation message: the shape of the rows that follow.
func (st *stream) describe(ctx context.Context, m []byte) error {
	parsed, err := pglogrepl.Parse(m)
	if err != nil {
		return err
	}
	rm, ok := parsed.(*pglogrepl.RelationMessage)
	if !ok {
		return ErrProtocol.New("a Relation message that is a %T", parsed)
	}
	id := rm.RelationID
	was := st.fr.Relation(id)
	selected, named := st.cfg.selects(rm.Namespace, rm.RelationName)
	if !selected {
		if was != nil && !was.Skip {
			st.comp.Log.Warn("a table was renamed to what `tables` does not match: it is not captured any more", "was", was.Table.Topic, "table", rm.Namespace+"."+rm.RelationName)
		}
		st.fr.Define(id, &pgoutput.Relation{Skip: true})
		return nil
	}
	st.isKnown(id)
	t, err := tableByID(ctx, st.q, id)
	if err != nil {
		return err
	}
	if t == nil { // dropped since
		t = &tableInfo{id: id}
	}
	// Names and identity are those of then, the key's order that of now.
	t.schema, t.name, t.identity, t.named = rm.Namespace, rm.RelationName, rm.ReplicaIdentity, named
	var cols []wireColumn
	names, flagged := map[string]bool{}, []string(nil)
	for _, c := range rm.Columns {
		w := wireColumn{name: c.Name, typ: c.DataType, mod: c.TypeModifier, identity: c.Flags&1 != 0}
		cols = append(cols, w)
		names[c.Name] = true
		if w.identity && t.identity != 'f' {
			flagged = append(flagged, c.Name)
		}
	}
	if t.key == nil || slices.ContainsFunc(t.key, func(k string) bool { return !names[k] }) {
		t.key = flagged // renamed or dropped since
		if t.key == nil && was != nil && !was.Skip && len(was.Cells) == len(cols) {
			for _, k := range was.KeyCells() {
				t.key = append(t.key, cols[k].name)
			}
		}
	}
	if t.key == nil {
		if named || was != nil && !was.Skip {
			return noKeyError([]*tableInfo{t})
		}
		st.comp.Log.Warn("a table without a key is not captured", "code", ErrNoKey.ID, "table", t.String())
		st.fr.Define(id, &pgoutput.Relation{Skip: true})
		return nil
	}
	if e, err := st.leaves(ctx, st.q, t); err != nil {
		return err
	} else if e != nil {
		st.comp.Log.Warn("a table is not captured", "code", e.ID, "what", e.Text, "remedy", e.WhatToDo())
		st.passOver(id)
		st.fr.Define(id, &pgoutput.Relation{Skip: true})
		return nil
	}
	_, notNull, err := columnsOf(ctx, st.q, id)
	if err != nil {
		return err
	}
	r, err := st.cfg.newRelation(ctx, st.q, t, cols, notNull)
	if err != nil {
		return err
	}
	if was != nil && reflect.DeepEqual(was, r) {
		return nil // the same shape keeps its Table
	}
	st.fr.Define(id, r)
	if t := st.recorded[id]; t != nil {
		t.shapes = append(t.shapes, shaped{fullXID(st.xid, st.nextXID), r})
	}
	return nil
}
