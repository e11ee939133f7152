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
	// ErrForm: the changelog is newer than this program.
	ErrForm = problem.Define("TW-STATE-FORM", problem.Halt,
		"The state topic of a transform holds a form that this program does not know: a newer version wrote it.",
		"Run the newer version again; docs/upgrading.md says which may follow which.")
	// ErrTooLarge: the changelog does not take so large a record.
	ErrTooLarge = problem.Define("TW-STATE-TOO-LARGE", problem.Reject,
		"What a transform has to remember of one row is larger than a record of its state topic may be.",
		"Raise max.message.bytes of the topic _tallywire.state.TRANSFORM (and of the broker, where it is lower) and start again; or have the row give fewer records. Then retry what is parked: tallywire parked retry TRANSFORM --all.")
)
