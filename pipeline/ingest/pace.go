// pace: when a transaction is committed that could be.

package ingest

import (
	"time"
)

const (
	// producerRest is how long an id rests after a transaction before the next
	// one is begun on it: by then the markers of the former are written, and
	// the broker holds nothing back (decision 21).
	producerRest = 10 * time.Millisecond
	// txnGap is how far apart commits are at least. Closer ones gain less
	// time than the broker takes to write so many more markers.
	txnGap = 4 * time.Millisecond
)

// pace is the sequencer's own.
type pace struct {
	commits time.Time // when the last commit was begun
	durable time.Time // when the last position was
}

// commit is when a transaction is committed if nothing more comes: as soon as
// the next one has an id that is rested. Until then it may as well be filled.
func (p *pace) commit(next *txnProducer) time.Time {
	rested, apart := next.rested(), p.commits.Add(txnGap)
	if apart.After(rested) {
		return apart
	}
	return rested
}

// position is when the position of records that went out outside of
// transactions is written if nothing more comes.
func (p *pace) position() time.Time { return p.durable.Add(busyTxn) }

func (p *pace) began(at time.Time) { p.commits = at }

func (p *pace) ended(at time.Time) { p.durable = at }
