// A bug takes its component down, and no other.

package outage

import (
	"fmt"
	"runtime/debug"

	"github.com/tallywire/tallywire/internal/problem"
)

// ErrPanic is the panic of a component.
var ErrPanic = problem.Define("TW-PANIC", problem.Halt,
	"A component met a bug of its own and was taken down; the others go on.",
	"Report it with the stack in the log. A restart goes on at the last committed position.")

// Panic is the cause of an ErrPanic.
type Panic struct {
	Value any
	Stack string // of the goroutine that panicked
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Guard calls f, and gives a panic of it as an ErrPanic with its Panic. Every
// goroutine of a component runs under it, since one that panics elsewhere ends
// the process. What f had locked without a defer stays locked.
func Guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = ErrPanic.New("%w", &Panic{v, string(debug.Stack())})
		}
	}()
	return f()
}
