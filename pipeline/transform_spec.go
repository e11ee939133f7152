// TransformSpec: what the transform loop is told about a chain of stages.

package pipeline

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/tallywire/tallywire/pipeline/state"
)

// TransformSpec is one consumer group: what it reads, the chain of stages that
// every record passes, and what it writes.
type TransformSpec struct {
	// Name names the group ("tallywire."+Name), the transactional id, the
	// parked topic and the component.
	Name string
	// Topics are read.
	Topics []string
	// CoPartitioned are read too (naming one here and in Topics is the same
	// as once): they must have the same number of partitions, and partition i
	// of all of them is read by the same process.
	CoPartitioned []string
	// Stages form the chain: what stage i sends, stage i+1 applies; what the
	// last one sends is written to the topics of the tables.
	Stages []Stage
	// Outputs are the topics that are written: made before the first
	// transaction if they do not exist, compacted.
	Outputs []string
	// KeyPrefixes are, by output, what all keys that are written to it begin
	// with; an output that is not in it may get any key. Two transforms may fill
	// one topic when no prefix of one begins with one of the other.
	KeyPrefixes map[string][]string
	// Restricted are those of Topics whose records become fields that a contract
	// restricts.
	Restricted []string
	// Queues are written as well, but keep every record until it is trimmed
	// by its reader (refresh topics).
	Queues []string
	// Trim are inputs whose records are deleted behind the committed offset,
	// now and then: queues that only this group reads.
	Trim []string
	// Window is how far back from where it reads its state is made again; the
	// records of its inputs stay for as long, at least. 0: nothing of that kind.
	Window time.Duration
	// State is what its stages read and write (decision 43); nil: nothing.
	State *state.Table
	// Rest, if set, does a page of what a stage left for later: it is called
	// between polls, in a transaction of its own, with the partitions that are
	// owned. What it sends goes to the topics of the tables. doing says what is
	// left to do, for people; "": nothing. It needs State, which says what that is.
	Rest func(ctx context.Context, owned []int32, out Outlet) (doing string, err error)
	TransformLimits
}

// Within says that records stay for less time than the window; 0 or less: they
// stay for ever.
func (t *TransformSpec) Within(what string, keep time.Duration) error {
	if keep <= 0 || keep >= t.Window {
		return nil
	}
	return errRetention.New("%s stay for %s, transform %s looks back %s", what, keep, t.Name, t.Window)
}

// Kept is Within of an input, by its topic's settings; one that may not be looked
// at is not said to lose records.
func (t *TransformSpec) Kept(topic string, settings map[string]string) error {
	ms, err := strconv.ParseInt(settings["retention.ms"], 10, 64)
	if err != nil || ms > t.Window.Milliseconds() {
		return nil //nolint:nilerr // as it says
	}
	return t.Within("records of "+topic, time.Duration(ms)*time.Millisecond)
}

// TransformLimits bound what one transaction takes; zero values give the
// defaults.
type TransformLimits struct {
	// PollRecords is how many input records one transaction takes at most.
	// Default 8192.
	PollRecords int
	// BatchRecords and BatchBytes (keys and values) bound one batch.
	// Defaults 4096 and 4 MiB; a single larger record passes alone.
	BatchRecords int
	BatchBytes   int
	// TxnTimeout is Kafka's transaction timeout: how long a dead process may
	// hold up readers. 3 s to 30 s, default 30 s.
	TxnTimeout time.Duration
	// MaxRecordBytes is the largest record that is written, in octets; the
	// input of a larger one is parked. 0: what the topic takes.
	MaxRecordBytes int
}

func (l TransformLimits) WithDefaults() TransformLimits {
	if l.PollRecords <= 0 {
		l.PollRecords = 8192
	}
	if l.BatchRecords <= 0 {
		l.BatchRecords = 4096
	}
	if l.BatchBytes <= 0 {
		l.BatchBytes = 4 << 20
	}
	if l.TxnTimeout <= 0 || l.TxnTimeout > 30*time.Second {
		l.TxnTimeout = 30 * time.Second
	}
	l.TxnTimeout = max(l.TxnTimeout, 3*time.Second)
	return l
}

// Inputs are Topics and CoPartitioned, each once, in their order.
func (s *TransformSpec) Inputs() []string { return unique(s.Topics, s.CoPartitioned) }

func unique(lists ...[]string) []string {
	var out []string
	seen := map[string]bool{}
	for _, l := range lists {
		for _, t := range l {
			if !seen[t] {
				seen[t] = true
				out = append(out, t)
			}
		}
	}
	return out
}

// KeysMayCollide reports whether a key that begins with a may be one that begins
// with b.
func KeysMayCollide(a, b string) bool { return strings.HasPrefix(a, b) || strings.HasPrefix(b, a) }
