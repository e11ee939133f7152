// pace: when a transaction is committed that could be.

package pipeline

import "time"

// turnRest is how long an id rests after a transaction before the next one is
// begun on it: by then the markers of the former are written, and the broker
// holds nothing back (decision 21).
const turnRest = 6 * time.Millisecond

// pace is the sequencer's own.
type pace struct {
	last time.Time // when the last position was durable
}

// commit is when a transaction is committed if nothing more comes: as soon as
// the next one has an id that is rested. Until then it may as well be filled.
func (p *pace) commit(next *turn) time.Time { return next.free.Add(turnRest) }

// position is when the position of records that went out outside of
// transactions is written if nothing more comes.
func (p *pace) position() time.Time { return p.last.Add(busyTxn) }

func (p *pace) ended(t *ingestTxn) { p.last = t.endedAt }
