// Package pipeline is what the author of a source, a transform or a sink sees
// of the engine: the contracts (this file), what a component says of itself,
// and how it enters. The engine moves batches from sources through stages to
// sinks, and owns what they have in common: Kafka transactions, offsets,
// batching, retry, order, metrics. Its loops are in the folders below.
package pipeline

import (
	"context"
	"time"

	"github.com/tallywire/tallywire/change"
	"github.com/tallywire/tallywire/pipeline/state"
)

// Resume is a source's own token (Postgres: JSON of slot, end LSN, and how far
// into a transaction). It is opaque to the engine and stored as it is, so keep
// it readable.
type Resume []byte

// Source captures changes.
type Source interface {
	// Run captures until ctx ends or something fails; it blocks, and has no
	// goroutine left when it returns. A cancelled ctx is not an error: Run
	// returns nil then. The order of calls is binding (invariant 1):
	//
	//	1. take the upstream lock (Postgres: START_REPLICATION on the slot)
	//	2. out.Resume: fences every predecessor, then reads the last position
	//	3. drop what lies at or before it, send the rest
	//
	// The engine restarts Run, after a backoff, when it returns a Retry error;
	// also when a Kafka transaction was aborted or its end is unknown: ctx is
	// then cancelled and Run is called again with everything to be redone
	// since the last committed position.
	Run(ctx context.Context, out SourceOutlet) error
}

// Outlet takes changes. Their topics are those of their Tables.
type Outlet interface {
	// Send passes a batch on, and its ownership. It blocks while the budget
	// of bytes in flight is used up. After an error the batch is gone all the
	// same, and the caller returns the error. A source's batch may carry rows
	// that are not decoded (change.Batch.Carry): a worker does it, and what is
	// wrong with a row then ends the session as if Run had returned it. One
	// batch is one piece of work: a few hundred changes are a good size.
	Send(ctx context.Context, b *change.Batch) error

	// Reject takes one change out of the flow because of err; the engine
	// parks the record that it came from. The caller drops the change from
	// its batch itself (Batch.Keep). c is only read during the call.
	Reject(c *change.Change, err error)
}

// SourceOutlet is what a Source writes to.
type SourceOutlet interface {
	Outlet

	// Resume fences predecessors (InitProducerID), then reads the last
	// committed position: nil when there is none. Call it once per Run, after
	// the upstream lock is held.
	Resume(ctx context.Context) (Resume, error)

	// Prepare makes the topics of Tables and registers their schemas, before
	// there is a change of them: who reads a topic waits until it exists, and
	// a table may stay empty for long. Call it after Resume, with all Tables
	// that are captured: the topic of one that was written before must still be
	// there (TW-POSITION-TOPICS), those of others may be gone.
	Prepare(ctx context.Context, tables []*change.Table) error

	// Note keeps value under key beside the position, such as what a table was when
	// it was loaded; without a value the key is forgotten. It is written in the
	// transaction of the next batch or checkpoint, and is durable with the position
	// of that. Of one key within a transaction the last counts. The value is copied.
	Note(key string, value []byte)

	// Notes gives what is kept for the position that Resume gave, nil when that has
	// none: a new source's, and one that a version wrote which kept none. Call it
	// after Resume; it does not change, and is only read.
	Notes() map[string][]byte

	// Asked gives what was asked of the source, by the id of each request, such as
	// to read tables anew, and was not answered yet. Call it after Resume, from one
	// goroutine.
	Asked(ctx context.Context) (map[string][]byte, error)

	// Answer is for a request that need not be given again, since what is noted
	// knows of it. It is written like a note.
	Answer(id string)

	// Checkpoint makes a position durable without records: the start of a
	// load, its end, an idle advance. It returns when it is committed.
	Checkpoint(ctx context.Context, r Resume) error

	// Durable gives the latest Resume (of a batch or a checkpoint) that is
	// committed in Kafka with all before it; only this may be acknowledged
	// upstream. Older ones that nobody took are replaced. Never closed.
	Durable() <-chan Resume
}

// Besider is a Source that can place records beside its stream: what was parked
// is sent again with a Pos of its own, and so is what it sends in batches that are
// marked so (rule C6).
type Besider interface {
	Source
	// Beside gives a Pos for the n-th record (from 1, over the source's whole
	// life) that goes out behind all that r counts as delivered and before all
	// that is to come; the n+1st has the next Ordinal at the same r. false: not at
	// this r, such as inside a transaction or a load; it is asked again at a later
	// one. A batch that is marked so has such a Resume.
	Beside(r Resume, n uint64) (change.Pos, bool)
}

// Laggard is a Source that can show how far it falls behind while it does not
// run.
type Laggard interface {
	Source
	// ShowBehind does, until ctx ends. It changes nothing.
	ShowBehind(ctx context.Context)
}

// Stage transforms changes: one to one, one to many, or none.
type Stage interface {
	// Apply owns in: it sends it on (changed in place, or another) or
	// releases it. What it sends must be sent before it returns. Per key,
	// order in is order out (invariant 4). Everything that one Apply sends
	// is committed in one Kafka transaction with the offsets of in.Ranges.
	//
	// A truncate of an output, which is a Truncate without a row whose Table
	// has no Source, ends every key that was made of the input partition of
	// its Coord; a Sweep those that were made of rows of before. A stage sends
	// it for one of the input, and only where no other partition gives these
	// keys (F7).
	//
	// An error aborts that transaction: the same records come again, maybe
	// cut into other batches.
	Apply(ctx context.Context, in *change.Batch, out Outlet) error
}

// Keeper is a Stage with state in Redis.
type Keeper interface {
	Stage
	// Restore takes records that were applied and committed before, after
	// the state that they left was lost or found behind: it brings the state
	// to where they lead, and emits nothing. It owns in.
	Restore(ctx context.Context, in *change.Batch) error
	// Stores lists what the stage keeps, for the engine to check before each
	// batch and to rebuild from.
	Stores() []*state.Store
}

// Failure is one change that a sink could not take, by its index in the batch.
// A later change of the same key in the same batch was not written either.
type Failure struct {
	Index int
	// Err says why. Its class is Reject, or the change merely waits for
	// another: then WaitsFor names it.
	Err error
	// WaitsFor is "entity/key" of what must be delivered first, or "".
	WaitsFor string
}

// Sink delivers changes.
type Sink interface {
	// Write delivers the batch; it does not own it. A nil error means that
	// all but the failures is durable. On an error nothing may be assumed of
	// the batch: it comes again, maybe cut differently, and writing it again
	// must not show.
	Write(ctx context.Context, b *change.Batch) ([]Failure, error)
}

// OffsetKeeper is a Sink that stores offsets in the transaction of its writes
// (invariant 10). The engine then commits to Kafka only for others to see.
type OffsetKeeper interface {
	Sink
	// Claim makes assignment the owner of the partitions (fencing a previous
	// owner: its writes fail from now on) and gives the stored offset of
	// each; -1 where none is stored.
	Claim(ctx context.Context, assignment string, parts []change.Coord) ([]int64, error)
	// SetOffsets overrides stored offsets, after a reset by Kafka's own tool.
	SetOffsets(ctx context.Context, assignment string, parts []change.Coord) error
	// WriteWithOffsets writes the batch and moves the offset of each of its
	// Ranges from From to To in one transaction; when a stored offset is not
	// From, or the owner is another, it fails with ErrFenced and nothing is
	// written.
	WriteWithOffsets(ctx context.Context, assignment string, b *change.Batch) ([]Failure, error)
}

// Reconciler is an OffsetKeeper that finds deletions which its topics do not
// tell of any more, since it was away for too long (F6).
type Reconciler interface {
	OffsetKeeper
	// ReadAt gives for each claimed partition a moment: all that was written
	// there before is in the sink. The zero Time: that is not known of any.
	ReadAt(ctx context.Context, parts []change.Coord) ([]time.Time, error)
	// SetReadAt says so anew, without a write; ErrFenced, and nothing is
	// changed, when assignment does not own all of the partitions.
	SetReadAt(ctx context.Context, assignment string, parts []change.Coord, at []time.Time) error
	// Reconcile deletes what the sink has of records in span, unless keys gives
	// a change of its key, and sets ReadAt, in one transaction: ErrFenced when
	// assignment does not own the partition. keys calls take with batches that
	// are read during the call only; its error, after which nothing is
	// deleted, is returned as it is. If something that would be deleted is of
	// a record before span, nothing is deleted, ReadAt stays, and before is
	// how much of that there is.
	Reconcile(ctx context.Context, assignment string, span change.Range, at time.Time,
		keys func(take func(*change.Batch) error) error) (deleted, before int64, err error)
}
