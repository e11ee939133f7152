// What can be wrong with a single record.

package records

import (
	"github.com/tallywire/tallywire/internal/problem"
)

// Problems of single records.
var (
	ErrTooLarge = problem.Define("TW-RECORD-TOO-LARGE", problem.Reject,
		"A record is larger than its topic takes.",
		"Raise max.message.bytes of the topic (and of the brokers), then `tallywire parked retry STAGE --all`; or make the row smaller at its source.")
	ErrNoRecord = problem.Define("TW-NO-RECORD", problem.Reject,
		"A change that its topic has no record for, such as a truncate of a canonical entity.",
		"Delete the rows one by one at the source, then discard this case.")
	ErrBatchTooSmall = problem.Define("TW-BATCH-TOO-SMALL", problem.Retry,
		"A record is larger than the batches that a source began to write with; it goes on with batches as large as the topic takes.",
		"Nothing to do.")
)
