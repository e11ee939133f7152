// The problems of the engine, and what is done about an error.

package pipeline

import (
	"github.com/tallywire/tallywire/internal/outage"
	"github.com/tallywire/tallywire/internal/problem"
)

// The engine's own problems.
var (
	ErrFenced = problem.Define("TW-FENCED", problem.Halt,
		"Another process took over this source, transform or sink.",
		"Run one process per instance id, or let this one stay stopped; see `tallywire status`.")
	ErrTxnUnknown = problem.Define("TW-TRANSACTION-UNKNOWN", problem.Retry,
		"A Kafka transaction was aborted, or its end was not confirmed.",
		"Nothing to do: the work goes on from the offsets that Kafka has committed.")
	ErrTopicRecreated = problem.Define("TW-TOPIC-RECREATED", problem.Halt,
		"A topic was deleted and created again: committed offsets mean other records now.",
		"Decide where to go on and say so with kafka-consumer-groups --reset-offsets (--to-earliest reads all of the new topic) or `tallywire replay`, then start again.")
	errRetention = problem.Define("TW-RETENTION", problem.Halt,
		"Records of a topic go sooner than a transform looks back: what it remembers of them could not be made again.",
		"Raise kafka.retention, or lower the window; of a topic that is there: kafka-configs --alter --topic TOPIC --add-config retention.ms=MILLISECONDS. Then start again.")
	ErrCoPartition = problem.Define("TW-CO-PARTITION", problem.Halt,
		"Topics that are read together do not lie together: another number of partitions, or a partition that was given to another process.",
		"Give the topics the same number of partitions before they are read for the first time, and run the same configuration in every process of the group; then start again.")
)

// Classify is where retry, reject or halt is decided (M6): an Error's own class;
// a broken connection or a server that says "later" is retried; what nobody
// classified halts, since skipping it could lose data. Cancellation is the
// caller's business and not classified.
func Classify(err error) problem.Class { return outage.Classify(err) }
