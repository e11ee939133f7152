// DeliverSpec: what the deliver loop is told about a sink.

package pipeline

import (
	"time"
)

// DeliverSpec is one consumer group that feeds one sink.
type DeliverSpec struct {
	// Name names the group ("tallywire."+Name), the component, and the stage
	// in the control database.
	Name string
	// Topics are read, in the order of dependency: when several parked
	// records are tried again together, those of earlier topics go first.
	Topics []string
	Sink   Sink
	DeliverLimits
}

// DeliverLimits; zero values give the defaults.
type DeliverLimits struct {
	// MaxRecords of one Write. Default 5000.
	MaxRecords int
	// MaxBytes of one Write, keys and values. Default 8 MiB; a single larger
	// record passes alone.
	MaxBytes int
	// Gather is how long records are gathered towards MaxRecords when there
	// are many; when there are few they are written at once. Default 100 ms.
	Gather time.Duration
	// Tick is how often parked records that were asked for are looked up.
	// Default 1 s.
	Tick time.Duration
	// Patience is after how long a waiting record is tried again though
	// nobody released it. Default 1 min.
	Patience time.Duration
}

// Inputs are Topics, each once.
func (s *DeliverSpec) Inputs() []string { return unique(s.Topics) }

func (l DeliverLimits) WithDefaults() DeliverLimits {
	if l.MaxRecords <= 0 {
		l.MaxRecords = 5000
	}
	if l.MaxBytes <= 0 {
		l.MaxBytes = 8 << 20
	}
	if l.Gather <= 0 {
		l.Gather = 100 * time.Millisecond
	}
	if l.Tick <= 0 {
		l.Tick = time.Second
	}
	if l.Patience <= 0 {
		l.Patience = time.Minute
	}
	return l
}
