package pipeline

import (
	"context"
	"errors"

	"github.com/tallywire/tallywire/internal/problem"
)

// The engine's own problems.
var (
	ErrFenced = problem.Define("TW-FENCED", problem.Halt,
		"Another process took over this source, transform or sink.",
		"Run one process per instance id, or let this one stay stopped; see `tallywire status`.")
	ErrUnclassified = problem.Define("TW-INTERNAL", problem.Halt,
		"An error that nobody foresaw; going on could lose data.",
		"Report it with the log around it; a restart resumes at the last committed position.")
)

// Classify is the one place where retry, reject or halt is decided (style rule
// 14): an Error's own class; what nobody classified halts, since skipping it
// could lose data. Cancellation is the caller's business and not classified.
func Classify(err error) problem.Class {
	if e := problem.Of(err); e != nil {
		return e.Class
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return problem.Retry
	}
	return problem.Halt
}
