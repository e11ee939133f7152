// Doctor: how a component says whether it could work, before it does.

package pipeline

import (
	"context"

	"github.com/tallywire/tallywire/change"
)

// Finding is one thing that a Doctor looked at.
type Finding struct {
	// What was looked at, and what was seen: "slot \"tallywire\" is free". Never
	// a secret.
	What string
	// Err says what is wrong, as a problem with its remedy; nil: it is well.
	Err error
	// Advice is for what works and could be better; "": none.
	Advice string
}

// Doctor is a Source, a Stage or a Sink that can be asked whether all that it
// needs is there: servers, rights, settings, tables, columns. It changes
// nothing, needs no Run before it, and gives all findings at once rather than
// the first; what hangs together with a failed one it leaves out. ctx bounds
// the whole. A component that is one should look at each thing that would stop
// its Run.
type Doctor interface {
	Doctor(ctx context.Context) []Finding
}

// Catalog is a Source that can tell, before it runs, the Tables that its
// changes will be of: with it a Doctor holds what reads them against them. It
// changes nothing, as a Doctor. What cannot be captured it leaves out.
type Catalog interface {
	Tables(ctx context.Context) ([]*change.Table, error)
}
