// IngestSpec: what the ingest loop is told about a source.

package pipeline

import (
	"runtime"
	"time"
)

// IngestSpec is one source with its name.
type IngestSpec struct {
	// Name is the source's name in the configuration: part of its topics, of
	// its transactional id and of its positions topic.
	Name   string
	Source Source
	IngestLimits
}

// Delivery says what a consumer of a source's raw topics may meet after a
// crash.
type Delivery string

const (
	// ExactlyOnce: a read-committed consumer sees each change once.
	ExactlyOnce Delivery = "exactly-once"
	// AtLeastOnce: records go out outside of transactions, so that they are
	// seen as soon as they are written. After a crash, or an outage that ended
	// the session, all since the last position come again: a fraction of a
	// second of them.
	AtLeastOnce Delivery = "at-least-once"
)

// IngestLimits bound what is in flight; zero values give the defaults.
type IngestLimits struct {
	// Delivery: ExactlyOnce by default.
	Delivery Delivery
	// MaxBytes is how much memory of batches may be in flight, in bytes
	// (change.Batch.Size, which is about what their records take); Send
	// blocks above it. Default 12 MiB, some 20,000 small rows: a tenth of a
	// second at the rate of one slot, of which Kafka needs a part; in a load the
	// process takes 200 MiB then. A single batch larger than that passes alone.
	MaxBytes int64
	// TxnTimeout is Kafka's transaction timeout: how long a dead process's
	// open transaction may hold up readers. 3 s to 30 s; default 30 s. A
	// transaction is committed, or aborted, within it. A third of it is how
	// long one may fill while the end of the one before is not confirmed.
	TxnTimeout time.Duration
	// TxnBytes is how much a transaction takes before it is committed though
	// there is more to send, in octets of keys and values. Default 32 MiB.
	TxnBytes int64
	// MaxRecordBytes is the largest record, key, value and headers together,
	// in octets; a larger one is parked. 0: what the topic takes.
	MaxRecordBytes int
	// TopicsBytes is what a position may repeat of the names of its raw topics,
	// in octets, about; more lie beside it. Default 16 KiB.
	TopicsBytes int
	// Workers encode in parallel; default: one per core.
	Workers int
}

// Workers beyond this many bring nothing: the walsender is one process.
const maxWorkers = 16

func (l IngestLimits) WithDefaults() IngestLimits {
	if l.TopicsBytes <= 0 {
		l.TopicsBytes = 16 << 10
	}
	if l.MaxBytes <= 0 {
		l.MaxBytes = 12 << 20
	}
	if l.TxnTimeout <= 0 || l.TxnTimeout > 30*time.Second {
		l.TxnTimeout = 30 * time.Second
	}
	l.TxnTimeout = max(l.TxnTimeout, 3*time.Second)
	if l.TxnBytes <= 0 {
		l.TxnBytes = 32 << 20
	}
	if l.Workers <= 0 {
		l.Workers = runtime.GOMAXPROCS(0)
	}
	l.Workers = min(l.Workers, maxWorkers)
	return l
}
