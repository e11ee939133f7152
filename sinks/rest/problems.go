// The sink's problems.

package rest

import "github.com/tallywire/tallywire/internal/problem"

var (
	ErrConfig = problem.Define("TW-REST-CONFIG", problem.Halt,
		"The configuration of a REST sink is wrong.",
		"Correct the named setting; docs/config describes each.")
	ErrCredentials = problem.Define("TW-REST-CREDENTIALS", problem.Halt,
		"The far side rejected the client id or secret, or gives them no right to its pages.",
		"Check client_id, client_secret and token_url, and the permission sets of the application; then start again.")
	ErrProtocol = problem.Define("TW-REST-PROTOCOL", problem.Halt,
		"The far side does not have the company or page, or does not answer as its profile says.",
		"Check url and company, and that the custom pages are published.")
	ErrOutage = problem.Define("TW-REST-UNAVAILABLE", problem.Retry,
		"The far side does not answer, or fails.",
		"Nothing is lost or skipped: work goes on when it is back.")
	ErrThrottled = problem.Define("TW-REST-THROTTLED", problem.Retry,
		"The far side asks to be called less often.",
		"Nothing is lost: work goes on after the time it asked for. Lower rate or concurrency if it stays so.")
	ErrUnknown = problem.Define("TW-REST-OUTCOME-UNKNOWN", problem.Retry,
		"It is not known yet whether the far side took a record.",
		"Nothing to do: the record is looked up there, late enough, before anything is sent again.")
	ErrControl = problem.Define("TW-REST-CONTROL", problem.Retry,
		"The control database does not answer, so nothing may be written to the far side.",
		"Nothing is lost: work goes on when it is back.")
	ErrRejected = problem.Define("TW-REST-REJECTED", problem.Reject,
		"The far side does not accept the record.",
		"Correct the record in the PSA or the setup of the far side, then `tallywire parked retry STAGE --all`.")
	ErrWaits = problem.Define("TW-REST-WAITS", problem.Reject,
		"The record refers to one that the far side does not have yet.",
		"Nothing to do when that one is on its way; else see why it is parked.")
	ErrTimeFinal = problem.Define("TW-REST-TIME-FINAL", problem.Reject,
		"A time entry was changed or deleted after it was delivered as approved.",
		"Approved time is final: correct it by a new entry in the PSA, and set this one back.")
	ErrConflict = problem.Define("TW-REST-CONFLICT", problem.Reject,
		"The far side holds another record under the same number or reference.",
		"Find out who made it; change the number on one side, then `tallywire parked retry STAGE --all`.")
	ErrGone = problem.Define("TW-REST-GONE", problem.Reject,
		"The far side no longer has a record that was delivered to it.",
		"Restore it there, or remove its row from tallywire.delivered to have it made anew; then `tallywire parked retry STAGE --all`.")
	ErrRecord = problem.Define("TW-REST-RECORD", problem.Reject,
		"The record lacks a field that the far side needs, or the sink does not know its topic.",
		"Check the contract of the topic and the sink's topics.")
)
