// What the state of a transform can meet.

package state

import (
	"github.com/tallywire/tallywire/internal/problem"
)

// What the state of a transform can meet.
var (
	// ErrLost: the owner found another mark than it left. The engine
	// aborts, asks Check, and replays through Keeper.Restore.
	ErrLost = problem.Define("TW-STATE-LOST", problem.Retry,
		"The state in Redis is not what this process last wrote: it was flushed, rolled back, or another process took the partition over.",
		"Nothing to do: the state is rebuilt from Kafka. If it happens again and again, two groups of processes share one Redis database.")
	// ErrUnknown: a reader cannot tell 'missing' from 'not there yet'.
	ErrUnknown = problem.Define("TW-STATE-UNKNOWN", problem.Retry,
		"State that another partition's owner keeps is being rebuilt, or was not confirmed since Redis restarted.",
		"Nothing to do while that owner runs; see `tallywire status` for a group that is halted or has no process.")
)
